"""A small seeded BigGAN-deep in the layout of pytorch-pretrained-BigGAN's files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONFIG: dict[str, Any] = {
    "output_dim": 32,
    "z_dim": 8,
    "class_embed_dim": 8,
    "channel_width": 16,
    "num_classes": 5,
    "layers": [[False, 16, 16], [True, 16, 8], [True, 8, 4], [False, 4, 4], [True, 4, 2], [False, 2, 1]],
    "attention_layer_position": 3,
    "eps": 1e-4,
    "n_stats": 51,
}
# The published sizes: side → rows of layers, as letters for what enlarges, and multiples of the width
PUBLISHED = {
    128: "F16-16 T16-16 F16-16 T16-8 F8-8 T8-4 F4-4 T4-2 F2-2 T2-1",
    256: "F16-16 T16-16 F16-16 T16-8 F8-8 T8-8 F8-8 T8-4 F4-4 T4-2 F2-2 T2-1",
    512: "F16-16 T16-16 F16-16 T16-8 F8-8 T8-8 F8-8 T8-4 F4-4 T4-2 F2-2 T2-1 F1-1 T1-1",
}
NAMES = {"0": "tench, Tinca tinca", "1": "goldfish", "2": "great white shark, white shark", "3": "hen", "4": "ostrich"}


def published(side: int) -> dict[str, Any]:
    """The config of a published size."""
    rows = [[row[0] == "T", *map(int, row[1:].split("-"))] for row in PUBLISHED[side].split()]
    return {**CONFIG, "output_dim": side, "z_dim": 128, "class_embed_dim": 128, "channel_width": 128,
            "num_classes": 1000, "layers": rows, "attention_layer_position": 8}  # fmt: skip


def shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names in a file and their shapes; matrices with a spectral norm are `….weight_orig`."""
    width, told, stats = config["channel_width"], 2 * config["z_dim"], config["n_stats"]
    yield "embeddings.weight", (config["z_dim"], config["num_classes"])
    yield "generator.gen_z.weight_orig", (256 * width, told)
    yield "generator.gen_z.bias", (256 * width,)
    place = config["attention_layer_position"]
    for i, (_, reads, makes) in enumerate(config["layers"]):
        name, (reads, makes) = f"generator.layers.{i + (i >= place)}", (width * reads, width * makes)
        if i == place:
            yield f"generator.layers.{i}.gamma", (1,)
            for part, out, into in ("theta", reads // 8, reads), ("phi", reads // 8, reads), ("g", reads // 2, reads):
                yield f"generator.layers.{i}.snconv1x1_{part}.weight_orig", (out, into, 1, 1)
            yield f"generator.layers.{i}.snconv1x1_o_conv.weight_orig", (reads, reads // 2, 1, 1)
        inner = reads // 4
        for k, (into, out, kernel) in enumerate(
            [(reads, inner, 1), (inner, inner, 3), (inner, inner, 3), (inner, makes, 1)]
        ):
            yield f"{name}.bn_{k}.scale.weight_orig", (into, told)
            yield f"{name}.bn_{k}.offset.weight_orig", (into, told)
            yield f"{name}.bn_{k}.running_means", (stats, into)
            yield f"{name}.bn_{k}.running_vars", (stats, into)
            yield f"{name}.conv_{k}.weight_orig", (out, into, kernel, kernel)
            yield f"{name}.conv_{k}.bias", (out,)
    for part, shape in ("weight", (width,)), ("bias", (width,)):
        yield f"generator.bn.{part}", shape
    yield "generator.bn.running_means", (stats, width)
    yield "generator.bn.running_vars", (stats, width)
    yield "generator.conv_to_rgb.weight_orig", (width, width, 3, 3)
    yield "generator.conv_to_rgb.bias", (width,)


def make_tensors(config: dict[str, Any]) -> dict[str, Tensor]:
    """Seeded tensors; the vectors of spectral norms are those of the largest singular value, nearly."""
    generator = torch.Generator().manual_seed(31)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes(config):
        one = torch.randn(shape, generator=generator)
        tensors[name] = one.exp() if name.endswith("running_vars") else 0.3 * one if "running" in name else one
        if name.endswith("weight_orig"):
            u, _, v = torch.linalg.svd(one.reshape(shape[0], -1), full_matrices=False)
            stem = name.removesuffix("orig")
            tensors[f"{stem}u"], tensors[f"{stem}v"] = u[:, 0] + 1e-3, v[0] * 0.99
    tensors["generator.bn.weight"] *= 0.3
    return tensors


def make_biggan(folder: Path, *, names: bool = True, file: str | None = None, **changes: Any) -> dict[str, Tensor]:
    """Write config.json and pytorch_model.bin; with `file`, both under the names of a download. Return the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **changes}
    tensors = make_tensors(config)
    stem = f"{file}-" if file else ""
    torch.save(tensors, folder / f"{stem}pytorch_model.bin")
    said = {**config, "id2label": NAMES} if names else config
    (folder / f"{stem}config.json").write_text(json.dumps(said))
    return tensors

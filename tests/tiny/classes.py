"""Small seeded checkpoints that draw classes: DiT in both its layouts, guided-diffusion's files, a UNet2DModel.

Folders are made with diffusers; the original files come from functions that know nothing of gencli (`guided_reference`,
and `dit_network` here), under the names of the original code.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.oracles.guided_reference import Reference
from tests.oracles.libraries import diffusers
from tests.tiny.image import DDPM, INDEX, SCHEDULER, SMALL_DDPM, keep_keys, make_vae, randomise, save, write_scheduler

# --- DiT

NAMES = {0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 134: "crane", 207: "golden retriever"}
NAMES |= {208: "Labrador retriever", 281: "tabby, tabby cat", 517: "crane"}
ID2LABEL = {str(number): NAMES.get(number, f"thing {number}") for number in range(1000)}
DIT: dict[str, Any] = {  # the keys of facebook/DiT-XL-2-256
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 8,
    "cross_attention_dim": None,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": 2,
    "num_embeds_ada_norm": 1000,
    "num_layers": 2,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 8,
    "upcast_attention": False,
    "use_linear_projection": False,
}
DIT_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.12.0.dev0",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "trained_betas": None,
}
DIT_KEYS = "num_attention_heads attention_head_dim in_channels out_channels num_layers sample_size patch_size"
DIT_INDEX: dict[str, Any] = {
    "_class_name": "DiTPipeline",
    "_diffusers_version": "0.12.0.dev0",
    "id2label": ID2LABEL,
    "scheduler": ["diffusers", "DDIMScheduler"],
    "transformer": ["diffusers", "Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def make_dit(folder: Path, *, old_class: bool = True, scheduler: dict[str, Any] | None = None) -> diffusers.DiTPipeline:
    """facebook/DiT-XL-2-256, small: 64×64 pictures of 1000 classes. old_class: the name that the hub's file has for the
    transformer, with positions in the weights as some versions saved them."""
    config = {key: DIT[key] for key in DIT_KEYS.split()} | {"num_embeds_ada_norm": 1000}
    torch.manual_seed(60)
    transformer = diffusers.DiTTransformer2DModel(**config)
    for parameter in transformer.parameters():
        parameter.data *= 2 if parameter.ndim > 1 else 1
    save(randomise(transformer, 61), folder / "transformer")
    kind = "Transformer2DModel" if old_class else "DiTTransformer2DModel"
    keep_keys(folder / "transformer" / "config.json", "", **(DIT | {"_class_name": kind}))
    vae = make_vae(folder / "vae")
    parts = {"scheduler": write_scheduler(folder / "scheduler", DIT_SCHEDULER | (scheduler or {}))}
    (folder / "model_index.json").write_text(json.dumps(DIT_INDEX))
    pipe = diffusers.DiTPipeline(transformer=transformer, vae=vae, id2label=ID2LABEL, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def dit_network(state: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor, *, layers: int = 2) -> Tensor:
    """DiT-S/2 as facebookresearch/DiT computes it (384 wide, 6 heads; Peebles & Xie 2023, section 3.2), from tensors
    of its file; where `state` is empty they are made, seeded."""
    generator = torch.Generator().manual_seed(62)
    D, heads, patch = 384, 6, 2
    B, C, H, W = x.shape

    def p(name: str, *shape: int) -> Tensor:
        if name not in state:
            state[name] = torch.randn(shape, generator=generator) * (math.prod(shape[1:]) ** -0.5 if shape[1:] else 0.2)
        return state[name]

    def linear(name: str, h: Tensor, out: int) -> Tensor:
        return F.linear(h, p(f"{name}.weight", out, h.shape[-1]), p(f"{name}.bias", out))

    def norm(h: Tensor) -> Tensor:
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()

    def waves(values: Any, count: int) -> np.ndarray:
        """Sines and cosines of (N,) values: (N, count / 2) each."""
        return np.outer(np.asarray(values, np.float64), 1 / 10000 ** (np.arange(count // 2) / (count / 2)))

    angles = torch.from_numpy(waves(t, 256)).float()
    c = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1), D)
    c = linear("t_embedder.mlp.2", F.silu(c), D) + p("y_embedder.embedding_table.weight", 1001, D)[y]
    h = F.conv2d(x, p("x_embedder.proj.weight", D, C, patch, patch), p("x_embedder.proj.bias", D), stride=patch)
    rows, columns = (grid.flatten() for grid in np.mgrid[: H // patch, : W // patch])
    places = [f(waves(axis, D // 2)) for axis in (columns, rows) for f in (np.sin, np.cos)]
    state.setdefault("pos_embed", torch.from_numpy(np.concatenate(places, 1)).float()[None])
    h = h.flatten(2).transpose(1, 2) + state["pos_embed"]
    for i in range(layers):
        told = linear(f"blocks.{i}.adaLN_modulation.1", F.silu(c), 6 * D)[:, None].chunk(6, 2)
        qkv = linear(f"blocks.{i}.attn.qkv", norm(h) * (1 + told[1]) + told[0], 3 * D)
        q, k, v = qkv.reshape(B, -1, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(2, 3) / math.sqrt(D // heads)).softmax(-1) @ v
        h = h + told[2] * linear(f"blocks.{i}.attn.proj", mixed.transpose(1, 2).reshape(B, -1, D), D)
        inner = linear(f"blocks.{i}.mlp.fc1", norm(h) * (1 + told[4]) + told[3], 4 * D)
        h = h + told[5] * linear(f"blocks.{i}.mlp.fc2", F.gelu(inner, approximate="tanh"), D)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c), 2 * D)[:, None].chunk(2, 2)
    h = linear("final_layer.linear", norm(h) * (1 + scale) + shift, patch * patch * 2 * C)
    h = h.reshape(B, H // patch, W // patch, patch, patch, 2 * C)
    return torch.einsum("nhwpqc->nchpwq", h).reshape(B, 2 * C, H, W)


def make_dit_file(file: Path) -> dict[str, Tensor]:
    """DiT's own file, 2 layers of DiT-S/2 for 64×64 pictures, in safetensors or as `.pt`; its tensors."""
    state: dict[str, Tensor] = {}
    dit_network(state, torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    write(file, state)
    return state


# --- guided-diffusion

SIDE = 16
FLAGS = {"image_size": SIDE, "num_head_channels": 16}


def make_guided(file: Path, flags: dict[str, Any] | None = None, *, side: int = SIDE, **shape: Any) -> Reference:
    """A UNet of guided-diffusion in `file` (.pt or .safetensors) and the same as functions. shape: see Reference.
    flags: what the JSON beside the file says; None for no JSON."""
    network = Reference(**{"head": 16, **shape})
    y = None if network.classes is None else torch.zeros(1, dtype=torch.long)
    network.unet(torch.zeros(1, network.inputs, side, side), torch.zeros(1), y)
    return _written(file, network, flags)


def make_classifier(file: Path, flags: dict[str, Any] | None = None, *, side: int = SIDE, **shape: Any) -> Reference:
    """A classifier of guided-diffusion, likewise."""
    network = Reference(**{"head": 16, "pool": "attention", "outputs": 10, "seed": 1, **shape})
    network.classifier(torch.zeros(1, network.inputs, side, side), torch.zeros(1))
    return _written(file, network, flags)


def _written(file: Path, network: Reference, flags: dict[str, Any] | None) -> Reference:
    write(file, network.state)
    if flags is not None:
        file.with_suffix(".json").write_text(json.dumps(flags))
    return network


def write(file: Path, state: dict[str, Tensor]) -> None:
    """Tensors into a file of the kind that its name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    else:
        torch.save(state, file)


# --- UNet2DModel with classes


def make_class_unet(folder: Path) -> diffusers.UNet2DModel:
    """google/ddpm-cifar10-32, small, and told one of 10 classes, as diffusers' training scripts leave such."""
    config = DDPM | SMALL_DDPM | {"num_class_embeds": 10}
    torch.manual_seed(70)
    unet = save(randomise(diffusers.UNet2DModel(**config), 71), folder)
    keep_keys(folder / "config.json", " ".join(config))
    index = INDEX["ddpm"] | {"id2label": {str(i): name for i, name in enumerate("abcdefghij")}}
    (folder / "model_index.json").write_text(json.dumps(index))
    diffusers.DDPMPipeline(unet=unet, scheduler=write_scheduler(folder, SCHEDULER["ddpm"]))
    return unet

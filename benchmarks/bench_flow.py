"""Memory of `gencli image` on the shapes of Z-Image, FLUX.1 and FLUX.2 klein with packed weights, and the seconds of a
step:

    python benchmarks/bench_flow.py [z-image | flux | klein] [Q4_K | Q8_0] [whole] [SIDE]

The transformer is a GGUF file, the text encoders in bfloat16, the autoencoder in float32; all random. The peak of one
step at SIDE × SIDE pixels (default: 512) is wanted to be at most the weights on disk and 3 GB. Without `whole` the
widths are real and the layers fewer (a quarter of Z-Image's and of its text encoder's, of FLUX.1's and of its T5's, and
of klein's transformer), for machines and disks that the whole (11 to 16 GB, more with 8 bits) would fill; what is said
is of that.

The whole, on a machine of 24 GB with two cores: GiB of weights on disk, and at the peak (most of it the text encoder,
which is let go before the transformer is opened):

    z-image Q4_K, 256 pixels   11.03   6.86        klein Q4_K, 64 pixels    9.84   5.63
    z-image Q8_0, 64 pixels    13.90   6.86        klein Q8_0, 64 pixels   11.64   5.54

Not collected by pytest, and no test depends on it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.tiny import flow, systems  # noqa: E402
from tests.tiny.chat_templates import FAMILIES, make_chat_tokenizer  # noqa: E402
from tests.tiny.gguf import packed  # noqa: E402
from tests.tiny.image import TEXT, VAE, make_tokenizer  # noqa: E402

WIDE = {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}
QWEN3 = flow.QWEN3 | {
    "head_dim": 128, "hidden_size": 2560, "intermediate_size": 9728, "max_position_embeddings": 40960,
    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "vocab_size": 151936,
}  # fmt: skip
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "z-image": flow.Z_IMAGE | {
        "axes_dims": [32, 48, 48], "cap_feat_dim": 2560, "dim": 3840, "n_heads": 30, "n_kv_heads": 30, "n_layers": 30,
    },
    "flux": flow.FLUX | {
        "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56], "joint_attention_dim": 4096,
        "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38, "pooled_projection_dim": 768,
    },
    "klein": flow.FLUX2 | {
        "attention_head_dim": 128, "axes_dims_rope": [32, 32, 32, 32], "in_channels": 128, "joint_attention_dim": 7680,
        "num_attention_heads": 24, "num_layers": 5, "num_single_layers": 20,
    },
}  # fmt: skip
T5 = systems.T5 | {"d_ff": 10240, "d_kv": 64, "d_model": 4096, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}
CLIP = TEXT["sd15"] | {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
    "projection_dim": 768, "vocab_size": 49408,
}  # fmt: skip
SHARD = 2**29  # numbers
FEWER = {
    "z-image": ({"n_layers": 7}, {"num_hidden_layers": 9}),
    "flux": ({"num_layers": 5, "num_single_layers": 10}, {"num_layers": 6}),
    "klein": ({"num_layers": 2, "num_single_layers": 5}, {"num_hidden_layers": 28}),  # whose 27th is read
}


def shapes_of(config: dict[str, Any]) -> dict[str, torch.Size]:
    from gencli.models import architecture

    module = architecture(config.get("_class_name") or config["model_type"])
    with torch.device("meta"):
        return {name: one.shape for name, one in module.Model(module.Config.from_dict(config)).state_dict().items()}


def write_model(folder: Path, config: dict[str, Any], stem: str, dtype: torch.dtype) -> None:
    """In shards, so that this needs no memory for the whole; all numbers are cut from the same few."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    some = torch.empty(2**20).normal_(0, 0.02).abs_().to(dtype)
    shapes = {
        name: shape
        for name, shape in shapes_of(config).items()
        if not (config.get("tie_word_embeddings") and name == "lm_head.weight")
    }
    shards: list[dict[str, torch.Size]] = [{}]
    for name, shape in shapes.items():
        if sum(one.numel() for one in shards[-1].values()) + shape.numel() > SHARD and shards[-1]:
            shards.append({})
        shards[-1][name] = shape
    where = {}
    for number, names in enumerate(shards, 1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else f"{stem}.safetensors"
        tensors = {name: some.repeat(shape.numel() // len(some) + 1)[: shape.numel()] for name, shape in names.items()}
        tensors = {name: (one + 0.5 if name.startswith("bn.") else one.clone()) for name, one in tensors.items()}
        save_file({name: one.view(names[name]) for name, one in tensors.items()}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    if len(shards) > 1:
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def write_transformer(folder: Path, config: dict[str, Any], kind: str) -> Path:
    """Under the names of the original, fused; every packed row is the same."""
    import gguf

    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    tensors = flow.as_original({name: torch.empty(shape, device="meta") for name, shape in shapes_of(config).items()})
    writer = gguf.GGUFWriter(folder / f"{kind}.gguf", "lumina2", use_temp_file=True)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and tensor.shape[1] % 256 == 0 and not name.endswith("_pad_token"):
            row = packed(np.random.default_rng(0).normal(0, 0.02, (1, tensor.shape[1])).astype(np.float32), kind)
            writer.add_tensor(name, np.tile(row, (tensor.shape[0], 1)), raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, np.full(tensor.shape, 0.02, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / f"{kind}.gguf"


def write(folder: Path, shape: str, kind: str, *, whole: bool) -> Path:
    network, text = ({}, {}) if whole else FEWER[shape]
    names = ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"]
    if shape == "flux":
        names += ["text_encoder_2", "tokenizer_2"]
        write_model(folder / "text_encoder", CLIP, "model", torch.bfloat16)
        write_model(folder / "text_encoder_2", T5 | text, "model", torch.bfloat16)
        make_tokenizer(folder / "tokenizer")
        systems.make_t5_tokenizer(folder / "tokenizer_2")
    else:
        write_model(folder / "text_encoder", QWEN3 | text, "model", torch.bfloat16)
        make_chat_tokenizer(folder / "tokenizer", next(one for one in FAMILIES if one.name == "qwen3"))
    vae = VAE | WIDE | {"_class_name": "AutoencoderKL"} | flow.FLUX_VAE
    if shape == "klein":
        vae = VAE | WIDE | {"_class_name": "AutoencoderKLFlux2", "latent_channels": 32}
    write_model(folder / "vae", vae, "diffusion_pytorch_model", torch.float32)
    (folder / "scheduler").mkdir()
    scheduler = flow.FLOW if shape == "z-image" else flow.DYNAMIC
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {name: ["library", "class"] for name in names}
    pipeline = {"z-image": "ZImagePipeline", "flux": "FluxPipeline", "klein": "Flux2KleinPipeline"}[shape]
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **index}))
    return write_transformer(folder, TRANSFORMERS[shape] | network, kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="z-image | flux | klein | Q4_K | Q8_0 | whole | SIDE")
    words = parser.parse_args().words
    shape = next((word for word in words if word in TRANSFORMERS), "z-image")
    kind = next((word for word in words if word in ("Q4_K", "Q8_0")), "Q4_K")
    side = next((word for word in words if word.isdecimal()), "512")
    with tempfile.TemporaryDirectory() as temporary:
        file = write(Path(temporary), shape, kind, whole="whole" in words)
        weights = [path for path in Path(temporary).rglob("*") if path.suffix in (".gguf", ".safetensors")]
        disk = sum(path.stat().st_size for path in weights) / 2**30
        command = [sys.executable, "-m", "gencli", "image", "-m", str(file), "a red apple", "--size", f"{side}x{side}"]
        command += ["--steps", "1", "--stats", "--device", "cpu", "-o", os.devnull, "--format", "png", "--vae-tiling"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        print(done.stderr.strip())
        peak = re.search(r"peak ([\d.]+) ([MG])iB", done.stderr)
        assert peak is not None, "no peak in what --stats says"
        held = float(peak[1]) / (1024 if peak[2] == "M" else 1)
        of = "" if "whole" in words else " (real widths, fewer layers)"
        print(f"{shape}{of}, {kind}, {side}x{side}: {disk:.2f} GiB of weights on disk, peak {held:.2f} GiB")
        print(f"  {held - disk:+.2f} GiB beside the weights (wanted: at most +3)")


if __name__ == "__main__":
    main()

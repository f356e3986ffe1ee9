"""Small seeded image checkpoints, made with diffusers and transformers and laid out as the hub's own files are.

Today's `save_pretrained` writes other names, other config keys and other files than most repositories on the hub have;
what is written here has theirs. Every maker gives back the reference in float32, ready to be compared with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

Names = Callable[[str, Tensor], tuple[str, Tensor]]


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Give every vector (norms, biases) values of its own, so that no two of them can be mistaken for each other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def save(model: Any, folder: Path, *, variant: str | None = None, names: Names | None = None, shards: str = "5GB"):
    """`save_pretrained`, then tensors renamed by `names`; a variant is written in half precision, and read back."""
    if variant == "fp16":
        model.half()
    model.save_pretrained(folder, variant=variant, max_shard_size=shards)
    model.float()
    for file in folder.glob("*.safetensors") if names else ():
        save_file(dict(names(name, tensor) for name, tensor in load_file(file).items()), file, {"format": "pt"})
    return model


def rewrite_json(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text())), indent=2))


def keep_keys(file: Path, keys: str, **more: Any) -> None:
    """Leave only the keys that the hub's file has, and add what it has besides."""
    wanted = keys.split()
    rewrite_json(file, lambda raw: {k: v for k, v in raw.items() if k in wanted or k.startswith("_")} | more)


# --- UNet of Stable Diffusion

UNET: dict[str, dict[str, Any]] = {
    "sd15": {
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [16, 32, 64, 64],
        "center_input_sample": False,
        "cross_attention_dim": 24,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 8,
        "out_channels": 4,
        "sample_size": 16,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
}
UNET["sd21"] = UNET["sd15"] | {
    "attention_head_dim": [1, 2, 4, 4],
    "cross_attention_dim": 32,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "upcast_attention": True,
    "use_linear_projection": True,
}


def make_unet(folder: Path, kind: str = "sd15", changes: dict[str, Any] | None = None, **saving: Any):
    """A UNet2DConditionModel in `folder`, its config.json with the keys of the hub's file alone."""
    config = UNET[kind] | (changes or {})
    torch.manual_seed(10)
    model = save(randomise(UNet2DConditionModel(**config), 11), folder, **saving)
    keep_keys(folder / "config.json", " ".join(config), _diffusers_version="0.6.0")
    return model


# --- text encoder

TEXT: dict[str, dict[str, Any]] = {
    "sd15": {
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 24,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "pad_token_id": 1,
        "projection_dim": 24,
        "vocab_size": 544,
    },
}
TEXT["sd21"] = TEXT["sd15"] | {"hidden_act": "gelu", "hidden_size": 32, "projection_dim": 16, "num_hidden_layers": 4}


def hub_text_names(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Names as in the hub's text encoders: transformers before 5 had all parts under `text_model`."""
    return f"text_model.{name}", tensor


def make_text_encoder(
    folder: Path, kind: str = "sd15", changes: dict[str, Any] | None = None, *, hub_names: bool = True, **saving: Any
):
    """A CLIPTextModel in `folder`; `hub_names`: with the prefix and the positions that the hub's files have."""
    config = TEXT[kind] | (changes or {})
    torch.manual_seed(20)
    model = CLIPTextModel(CLIPTextConfig(**config))
    for parameter in model.parameters():  # CLIP's own start is so small that every text looks alike
        parameter.data *= 4 if parameter.ndim > 1 else 1
    save(randomise(model, 21), folder, names=hub_text_names if hub_names else None, **saving)
    if hub_names:
        positions = torch.arange(config["max_position_embeddings"])[None]
        file = max(folder.glob("*.safetensors"))
        save_file(load_file(file) | {"text_model.embeddings.position_ids": positions}, file, {"format": "pt"})
    architectures = ["CLIPTextModel"]
    keep_keys(folder / "config.json", "", architectures=architectures, torch_dtype="float32", **config)
    return model

"""Small ControlNets, inpainting and editing checkpoints in the hub's layouts, and the same in diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.oracles.libraries import diffusers
from tests.tiny.image import INDEX, SMALL_UNET, UNET, keep_keys, make_stable_diffusion, randomise, rewrite_json, save
from tests.tiny.sdxl import as_kind, make_sdxl

# config.json of lllyasviel/sd-controlnet-canny, small
CONTROLNET: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [16, 32, 64, 64],
    "class_embed_type": None,
    "conditioning_embedding_out_channels": [8, 8, 16, 24],
    "controlnet_conditioning_channel_order": "rgb",
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
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "default",
    "upcast_attention": False,
    "use_linear_projection": False,
}
SMALL_CONTROLNET = {key: value for key, value in SMALL_UNET["sd15"].items() if key in CONTROLNET}


# diffusers/controlnet-canny-sdxl-1.0: as SDXL's UNet has them
XL_KEYS = """addition_embed_type addition_embed_type_num_heads addition_time_embed_dim attention_head_dim
    block_out_channels cross_attention_dim down_block_types num_attention_heads projection_class_embeddings_input_dim
    layers_per_block transformer_layers_per_block use_linear_projection"""
CONTROLNET_XL: dict[str, Any] = {key: (UNET["sdxl"] | SMALL_UNET["sdxl"])[key] for key in XL_KEYS.split()}
CONTROLNET_XL |= {"conditioning_embedding_out_channels": [8, 8, 16, 24], "global_pool_conditions": False}


def make_controlnet(folder: Path, changes: dict[str, Any] | None = None, seed: int = 60, **saving: Any) -> Any:
    """A ControlNetModel in `folder`, laid out as lllyasviel's; its zero convolutions are none."""
    config = CONTROLNET | (changes or {})
    torch.manual_seed(seed)
    model = diffusers.ControlNetModel(**config)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    save(randomise(model, seed + 2), folder, **saving)
    keep_keys(folder / "config.json", " ".join(config), _diffusers_version="0.14.0.dev0")
    return model


def make_inpaint(folder: Path, kind: str = "sd15", **changes: Any) -> diffusers.DiffusionPipeline:
    """runwayml/stable-diffusion-inpainting, small: a UNet of 9 channels."""
    pipe = make_stable_diffusion(folder, kind, unet={"in_channels": 9}, **changes)
    _louder(folder, pipe)
    return _as(pipe, folder, kind, diffusers.StableDiffusionInpaintPipeline)


def make_instruct(folder: Path) -> diffusers.DiffusionPipeline:
    """timbrooks/instruct-pix2pix, small: a UNet of 8 channels."""
    pipe = make_stable_diffusion(folder, "sd15", unet={"in_channels": 8})
    _louder(folder, pipe)
    return _as(pipe, folder, "sd15", diffusers.StableDiffusionInstructPix2PixPipeline)


def make_xl(folder: Path, cls: type[diffusers.DiffusionPipeline], channels: int) -> diffusers.DiffusionPipeline:
    """SDXL, small, with a UNet that reads further channels, as a repository of that pipeline."""
    pipe = make_sdxl(folder, unet={"in_channels": channels})
    _louder(folder, pipe)
    rewrite_json(folder / "model_index.json", lambda raw: raw | {"_class_name": cls.__name__})
    return as_kind(pipe, cls)


def _louder(folder: Path, pipe: diffusers.DiffusionPipeline, times: float = 8.0) -> None:
    """Let the further channels matter, as training makes them."""
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    pipe.unet.conv_in.weight.data[:, 4:] *= times
    save_file(load_file(file) | {"conv_in.weight": pipe.unet.conv_in.weight.data.contiguous()}, file, {"format": "pt"})


def _as(
    pipe: diffusers.DiffusionPipeline, folder: Path, kind: str, cls: type[diffusers.DiffusionPipeline]
) -> diffusers.DiffusionPipeline:
    index = INDEX[kind] | {"_class_name": cls.__name__}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    made = cls(**parts, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def edges(size: tuple[int, int] = (96, 64), seed: int = 0) -> Image.Image:
    """White lines on black, as an edge finder leaves them."""
    generator = np.random.default_rng(seed)
    array = np.zeros((size[1], size[0], 3), np.uint8)
    array[generator.integers(0, size[1], 5)] = 255
    array[:, generator.integers(0, size[0], 5)] = 255
    return Image.fromarray(array)

"""Small seeded checkpoints shaped as SDXL and as the models made faster by distillation, laid out as on the hub.

Every maker gives back the reference in float32, ready to be compared with.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.oracles.libraries import diffusers, transformers
from tests.tiny.image import (
    INDEX,
    SCHEDULER,
    SMALL_UNET,
    TEXT,
    UNET,
    VAE,
    keep_keys,
    make_stable_diffusion,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    make_vae,
    old_attention_names,
    randomise,
    rewrite_json,
    save,
    write_scheduler,
)

POOLED, WAVES = 20, 8  # widths of the projected text, and of each of the six numbers

UNET["sdxl"] = UNET["sd15"] | {
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": WAVES,
    "attention_head_dim": [1, 2, 4],
    "block_out_channels": [16, 32, 64],
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": TEXT["sd15"]["hidden_size"] + TEXT["sd21"]["hidden_size"],
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "dual_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": POOLED + 6 * WAVES,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "transformer_layers_per_block": [1, 2, 3],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
# SSD-1B leaves out layers one by one, and the attention in the middle
UNET["ssd1b"] = UNET["sdxl"] | {
    "mid_block_type": "UNetMidBlock2D",
    "reverse_transformer_layers_per_block": [[1, 2, 3], [2, 1, 1], 1],
    "transformer_layers_per_block": [1, [2, 2], [1, 3]],
}
SMALL_UNET["sdxl"] = {"layers_per_block": 1, "transformer_layers_per_block": [1, 1, 2]}
SMALL_UNET["refiner"] = {"layers_per_block": 1, "transformer_layers_per_block": 1}
SMALL_UNET["ssd1b"] = {}  # its lists are of the usual depth
VAE_XL: dict[str, Any] = {"force_upcast": True, "latents_mean": None, "latents_std": None, "scaling_factor": 0.13025}

SCHEDULER["sdxl"] = SCHEDULER["sd15"] | {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
SCHEDULER["sdxl-turbo"] = SCHEDULER["sdxl"] | {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "timestep_spacing": "trailing",
}
SCHEDULER["sd-turbo"] = SCHEDULER["sdxl"] | {"timestep_spacing": "trailing", "timestep_type": "discrete"}
SCHEDULER["lcm"] = {
    "_class_name": "LCMScheduler",
    "_diffusers_version": "0.22.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
    "trained_betas": None,
}

# The refiner reads one text encoder, and five numbers: an aesthetic score in the place of the size wanted.
UNET["refiner"] = UNET["sdxl"] | {
    "attention_head_dim": [1, 2, 2],
    "cross_attention_dim": TEXT["sd21"]["hidden_size"],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "projection_class_embeddings_input_dim": POOLED + 5 * WAVES,
    "transformer_layers_per_block": 2,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}

INDEX["sdxl"] = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0.dev0",
    "add_watermarker": None,
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def make_text_encoder_2(folder: Path, changes: dict[str, Any] | None = None, *, hub_names: bool = True, **saving: Any):
    """A CLIPTextModelWithProjection in `folder`; the projection lies beside the prefix that the hub's files have."""
    config = TEXT["sd21"] | {"projection_dim": POOLED} | (changes or {})
    torch.manual_seed(22)
    model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config))
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1
    save(randomise(model, 23), folder, **saving)
    for file in folder.glob("*.safetensors"):
        tensors = {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}
        if hub_names:
            tensors = {
                name if name == "text_projection.weight" else f"text_model.{name}": tensor
                for name, tensor in tensors.items()
            }
        save_file(tensors, file, {"format": "pt"})
    architectures = ["CLIPTextModelWithProjection"]
    keep_keys(folder / "config.json", "", architectures=architectures, torch_dtype="float32", **config)
    return model


def make_sdxl(
    folder: Path,
    kind: str = "sdxl",
    *,
    variant: str | None = None,
    hub_names: bool = True,
    unet: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
) -> diffusers.DiffusionPipeline:
    """A whole SDXL repository, `kind` sdxl, sdxl-turbo or ssd1b; the same in diffusers, in float32.

    Pictures are 128×128 by default. `unet`, `vae`, `scheduler`: changes of config.
    """
    schedule = SCHEDULER["sdxl" if kind == "ssd1b" else kind] | (scheduler or {})
    shape = "ssd1b" if kind == "ssd1b" else "sdxl"
    names = old_attention_names if hub_names else None
    parts = {
        "unet": make_unet(folder / "unet", shape, SMALL_UNET[shape] | (unet or {}), variant=variant),
        "vae": make_vae(folder / "vae", VAE_XL | (vae or {}), names=names, variant=variant),
        "text_encoder": make_text_encoder(folder / "text_encoder", hub_names=hub_names, variant=variant),
        "text_encoder_2": make_text_encoder_2(folder / "text_encoder_2", hub_names=hub_names, variant=variant),
        "tokenizer": make_tokenizer(folder / "tokenizer"),
        "tokenizer_2": make_tokenizer(folder / "tokenizer_2", "sd21"),
        "scheduler": write_scheduler(folder / "scheduler", schedule),
    }
    index = INDEX["sdxl"] | {"scheduler": ["diffusers", schedule["_class_name"]]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return quiet(diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False))


def make_refiner(folder: Path, base: Path, pipe: diffusers.DiffusionPipeline) -> diffusers.DiffusionPipeline:
    """stabilityai/stable-diffusion-xl-refiner-1.0, small, with the autoencoder and text encoder of a tiny SDXL."""
    for part in ("vae", "text_encoder_2", "tokenizer_2"):
        shutil.copytree(base / part, folder / part)
    unet = make_unet(folder / "unet", "refiner", SMALL_UNET["refiner"])
    scheduler = write_scheduler(folder / "scheduler", SCHEDULER["sdxl"])
    said = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    index = INDEX["sdxl"] | said | {"text_encoder": [None, None], "tokenizer": [None, None]}
    index |= {"_class_name": "StableDiffusionXLImg2ImgPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    parts = {name: pipe.components[name] for name in ("vae", "text_encoder_2", "tokenizer_2")}
    parts |= {"text_encoder": None, "tokenizer": None, "unet": unet, "scheduler": scheduler}
    return quiet(diffusers.StableDiffusionXLImg2ImgPipeline(**parts, **said, add_watermarker=False))


def make_sd_turbo(folder: Path) -> diffusers.DiffusionPipeline:
    """stabilityai/sd-turbo, small: Stable Diffusion 2.1's shape with an Euler scheduler that begins at the end."""
    return make_stable_diffusion(folder, "sd21", scheduler=without_none(SCHEDULER["sd-turbo"]))


def make_lcm(folder: Path, *, original_inference_steps: int = 50) -> diffusers.DiffusionPipeline:
    """SimianLuo/LCM_Dreamshaper_v7, small: Stable Diffusion 1.5's shape, with its guidance told to the UNet."""
    schedule = SCHEDULER["lcm"] | {"original_inference_steps": original_inference_steps}
    pipe = make_stable_diffusion(folder, "sd15", unet={"time_cond_proj_dim": 24}, scheduler=schedule)
    rewrite_json(folder / "model_index.json", lambda raw: raw | {"_class_name": "LatentConsistencyModelPipeline"})
    return as_kind(pipe, diffusers.LatentConsistencyModelPipeline)


def without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def as_kind(
    pipe: diffusers.DiffusionPipeline, kind: type[diffusers.DiffusionPipeline], **changes: Any
) -> diffusers.DiffusionPipeline:
    """The same parts, some of them others, in another of diffusers' pipelines."""
    more = {"add_watermarker": False} if "XL" in kind.__name__ else {"requires_safety_checker": False}
    known = [name for name in pipe.components if name not in ("image_encoder", "feature_extractor", "safety_checker")]
    parts: dict[str, Any] = {name: pipe.components[name] for name in known} | changes
    if "XL" not in kind.__name__:
        parts |= {"safety_checker": None, "feature_extractor": None}
    return quiet(kind(**parts, **more))


def quiet(pipe: diffusers.DiffusionPipeline) -> diffusers.DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


__all__ = ["VAE", "make_lcm", "make_refiner", "make_sd_turbo", "make_sdxl", "make_text_encoder_2"]

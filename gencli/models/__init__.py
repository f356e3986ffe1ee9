"""One file per architecture, looked up by its name in the config.json of checkpoints.

To add one, write `gencli/models/NAME.py` with its config, module and layout, and add its row here. One that is called
like another one, and can replace it anywhere, names it: `LIKE = "UNet2DModel"`.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from types import ModuleType

from gencli.errors import GencliError

# `model_type` (transformers) or `_class_name` (diffusers) → module of this package
ARCHITECTURES: dict[str, str] = {
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "mistral",
    "ministral3": "ministral3",
    "mistral3": "ministral3",
    "mixtral": "mixtral",
    "qwen2": "qwen2",
    "qwen2_5_vl_text": "qwen2_5_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen2_5_vl_reader": "qwen2_5_vl_reader",
    "qwen2_moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "gpt_oss": "gpt_oss",
    "qwen3_5_text": "qwen3_5",
    "qwen3_5": "qwen3_5",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "qwen3_5_moe": "qwen3_5_moe",
    "smollm3": "smollm3",
    "olmo2": "olmo2",
    "olmo3": "olmo3",
    "granite": "granite",
    "glm4": "glm4",
    "gpt_neox": "gpt_neox",
    "lfm2": "lfm2",
    "starcoder2": "starcoder2",
    "cohere2": "cohere2",
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "phi": "phi",
    "phi3": "phi3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gemma3": "gemma3",
    "gemma4_text": "gemma4",
    "gemma4": "gemma4",
    "gemma4_unified_text": "gemma4_unified",
    "gemma4_unified": "gemma4_unified",
    "clip_text_model": "clip_text",
    "clip": "clip",
    "imagegpt": "imagegpt",
    "biggan-deep": "biggan",
    "janus": "janus",
    "janus_reader": "janus_reader",
    "dalle-mini": "dalle_bart",
    "dall_e": "dvae",
    "ldmbert": "ldmbert",
    "t5": "t5",
    "clip_vision_model": "clip_vision",
    "PriorTransformer": "prior",
    "UnCLIPTextProjModel": "unclip_text_proj",
    "StableUnCLIPImageNormalizer": "image_normalizer",
    "AutoencoderKL": "autoencoder_kl",
    "AutoencoderTiny": "autoencoder_tiny",
    "VQModel": "vq_model",
    "UNet2DModel": "unet_2d",
    "UNet2DConditionModel": "unet_2d_condition",
    "DiTTransformer2DModel": "dit",
    "Transformer2DModel": "dit",  # in files from before diffusers 0.28
    "UNetModel": "guided_unet",
    "EncoderUNetModel": "guided_classifier",
    "GlideTextModel": "glide_text",
    "ControlNetModel": "controlnet",
    "PixArtTransformer2DModel": "pixart",
    "ZImageTransformer2DModel": "z_image",
    "SD3Transformer2DModel": "sd3",
    "FluxTransformer2DModel": "flux",
    "Flux2Transformer2DModel": "flux2",
    "AutoencoderKLFlux2": "autoencoder_kl_flux2",
    "QwenImageTransformer2DModel": "qwen_image",
    "ChromaTransformer2DModel": "chroma",
    "AutoencoderKLQwenImage": "autoencoder_kl_qwenimage",
}


def stands_for(name: object, places: Collection[str]) -> bool:
    """Return whether an architecture is one of `places`, or like one of them."""
    if isinstance(name, str) and name not in places and name in ARCHITECTURES:
        return getattr(architecture(name), "LIKE", None) in places
    return name in places


def architecture_name(raw: Mapping[str, object], where: object, kind: type = object) -> str:
    """Return the row of `ARCHITECTURES` that a config names by `model_type` or `_class_name`. where: its file.

    Raise GencliError for others; the hint has the names of the same kind: of transformers' models or diffusers'
    classes, and of those whose `Model` is a `kind`.
    """
    name = raw.get("model_type") or raw.get("_class_name")
    if isinstance(name, str) and name in ARCHITECTURES:
        return name
    is_class = isinstance(name, str) and name[:1].isupper()
    alike = sorted(one for one in ARCHITECTURES if one[0].isupper() == is_class)
    known = [one for one in alike if kind is object or issubclass(architecture(one).Model, kind)]
    raise GencliError(f"{where}: unknown architecture {name!r:.80}", f"gencli knows {', '.join(known)}")


def architecture(name: str) -> ModuleType:
    """Import the module of an architecture, with `Config`, `Model`, `LAYOUT`. Raises KeyError for an unknown name."""
    return importlib.import_module(f"gencli.models.{ARCHITECTURES[name]}")

"""Small seeded systems of several stages, laid out as on the hub: DeepFloyd IF (Imagen's form).

Every maker gives back the reference in float32, ready to be compared with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.oracles.libraries import diffusers, transformers
from tests.tiny.image import (
    SMALL_UNET,
    UNET,
    keep_keys,
    make_text_encoder,
    make_tokenizer,
    make_vae,
    randomise,
    rewrite_json,
    save,
    write_scheduler,
)
from tests.tiny.sdxl import make_text_encoder_2
from tests.tiny.sentencepiece import trained

WIDTH = 64  # of the texts
RESNETS: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [16, 32],
    "center_input_sample": False,
    "class_embed_type": None,
    "cross_attention_dim": 32,
    "cross_attention_norm": None,
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 8,
    "only_cross_attention": False,
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 16,
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
}
IF: dict[str, dict[str, Any]] = {
    "I": RESNETS
    | {
        "act_fn": "gelu",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
        "cross_attention_norm": "group_norm",
        "encoder_hid_dim": WIDTH,
        "encoder_hid_dim_type": None,  # of files before diffusers 0.17: text_proj
        "layers_per_block": 2,
        "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False,
        "time_embedding_act_fn": None,
        "time_embedding_dim": None,
    }
}
IF["II"] = IF["I"] | {
    "class_embed_type": "timestep",
    "encoder_hid_dim_type": "text_proj",
    "in_channels": 6,
    "layers_per_block": [1, 2],
    "mid_block_scale_factor": 1.4142135623730951,
    "only_cross_attention": True,
    "resnet_out_scale_factor": 1.4142135623730951,
    "resnet_skip_time_act": True,
    "sample_size": 64,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 40,
}
T5: dict[str, Any] = {
    "d_ff": 96,
    "d_kv": 12,
    "d_model": WIDTH,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 2,
    "num_heads": 4,
    "num_layers": 3,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 512,
}
DDPM: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.17.0",
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.95,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.5,
    "thresholding": True,
    "trained_betas": None,
    "variance_type": "learned_range",
}


def louder(model: nn.Module, seed: int, times: float = 1.6) -> nn.Module:
    """A network whose prediction is far from zero, and whose every condition tells."""
    randomise(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter *= times if "conv" in name or "emb" in name or "attentions" in name else 1.0
    return model


def make_unet(folder: Path, config: dict[str, Any], seed: int = 70, *, cls: str = "UNet2DConditionModel") -> Any:
    """A UNet in `folder`, its config.json with the keys of the hub's file alone."""
    torch.manual_seed(seed)
    model = save(louder(getattr(diffusers, cls)(**config), seed + 1), folder)
    keep_keys(folder / "config.json", " ".join(config))
    # what diffusers makes of a type that older files lack, and of a small sample_size
    rewrite_json(folder / "config.json", lambda raw: raw | {"_diffusers_version": "0.17.0", **config})
    return model


def make_t5(folder: Path, changes: dict[str, Any] | None = None, **saving: Any) -> Any:
    """A T5 encoder, with its word embeddings twice, as most files have them."""
    config = T5 | (changes or {})
    torch.manual_seed(72)
    model = save(louder(transformers.T5EncoderModel(transformers.T5Config(**config)), 73, 1.0), folder, **saving)
    keep_keys(folder / "config.json", " ".join(config), architectures=["T5EncoderModel"], torch_dtype="float32")
    return model


def make_t5_tokenizer(folder: Path) -> None:
    """SentencePiece's unigrams as T5 has them: spiece.model, the end token after every text."""
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(trained("t5"))
    config = {"eos_token": "</s>", "extra_ids": 100, "model_max_length": 77, "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "T5Tokenizer"}))


def make_if(folder: Path, **saving: Any) -> tuple[Any, Any, Any]:
    """DeepFloyd IF's stages in the folders I and II, of which the second has no text encoder of its own. Returns their
    UNets and the text encoder."""
    unets = [make_unet(folder / name / "unet", IF[name], seed) for name, seed in (("I", 70), ("II", 80))]
    t5 = make_t5(folder / "I" / "text_encoder", **saving)
    make_t5_tokenizer(folder / "I" / "tokenizer")
    for name, value in (("I", 1.5), ("II", 1.0)):
        write_scheduler(folder / name / "scheduler", DDPM | {"sample_max_value": value})
    noising = {key: value for key, value in DDPM.items() if key not in ("thresholding", "variance_type")}
    write_scheduler(folder / "II" / "image_noising_scheduler", noising)
    write_if_index(folder)
    return (*unets, t5)


def write_if_index(folder: Path) -> None:
    """model_index.json of both stages."""
    parts = {
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
        "safety_checker": ["deepfloyd_if", "IFSafetyChecker"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "watermarker": ["deepfloyd_if", "IFWatermarker"],
    }
    text = {"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"]}
    noising = {"image_noising_scheduler": ["diffusers", "DDPMScheduler"]}
    for name, pipeline, more in (
        ("I", "IFPipeline", text),
        ("II", "IFSuperResolutionPipeline", {key: [None, None] for key in text} | noising),
    ):
        index = {"_class_name": pipeline, "_diffusers_version": "0.17.0", **parts, **more}
        (folder / name / "model_index.json").write_text(json.dumps(index))


CLIP_WIDTH = 32  # of Karlo's embeddings of texts and images
KARLO: dict[str, dict[str, Any]] = {
    "decoder": RESNETS | {"class_embed_type": "identity"},
    "super_res": {
        "add_attention": False,
        "block_out_channels": [16, 32],
        "down_block_types": ["ResnetDownsampleBlock2D"] * 2,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 6,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "out_channels": 3,
        "sample_size": 32,
        "up_block_types": ["ResnetUpsampleBlock2D"] * 2,
    },
    "prior": {"attention_head_dim": 12, "embedding_dim": CLIP_WIDTH, "num_attention_heads": 2, "num_layers": 2},
    "text_proj": {
        "clip_embeddings_dim": CLIP_WIDTH,
        "clip_extra_context_tokens": 4,
        "cross_attention_dim": RESNETS["cross_attention_dim"],
        "time_embed_dim": 64,
    },
    "image_encoder": {
        "hidden_act": "quick_gelu",
        "hidden_size": 32,
        "image_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "patch_size": 8,
        "projection_dim": CLIP_WIDTH,
    },
}
UNCLIP_SCHEDULERS: dict[str, dict[str, Any]] = {
    "prior_scheduler": {"clip_sample_range": 5.0, "prediction_type": "sample", "variance_type": "fixed_small_log"},
    "decoder_scheduler": {"clip_sample_range": 1.0, "prediction_type": "epsilon", "variance_type": "learned_range"},
    "super_res_scheduler": {"clip_sample_range": 1.0, "prediction_type": "epsilon", "variance_type": "fixed_small_log"},
}


def make_prior(folder: Path, config: dict[str, Any]) -> Any:
    """A prior, its statistics and embeddings not those of a new one, which are zero."""
    torch.manual_seed(90)
    prior = louder(diffusers.PriorTransformer(**config), 91)
    with torch.no_grad():
        prior.clip_std.copy_(1 + 0.2 * torch.rand(1, config["embedding_dim"]))
        for parameter in (prior.clip_mean, prior.positional_embedding, prior.prd_embedding):
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    prior = save(prior, folder)
    keep_keys(folder / "config.json", " ".join(config))
    return prior


def make_karlo(folder: Path) -> dict[str, Any]:
    """Karlo and its image variations in two folders, which share most parts; returns the parts of both by name."""
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    for name in ("text", "image"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    text, parts = folder / "text", dict[str, Any]()
    parts["decoder"] = make_unet(text / "decoder", KARLO["decoder"], 92)
    for seed, name in ((94, "super_res_first"), (96, "super_res_last")):
        parts[name] = make_unet(text / name, KARLO["super_res"], seed, cls="UNet2DModel")
    parts["prior"] = make_prior(text / "prior", KARLO["prior"])
    torch.manual_seed(98)
    parts["text_proj"] = save(louder(UnCLIPTextProjModel(**KARLO["text_proj"]), 99), text / "text_proj")
    projected = {"hidden_size": CLIP_WIDTH, "projection_dim": CLIP_WIDTH}
    parts["text_encoder"] = make_text_encoder_2(text / "text_encoder", projected)
    parts["tokenizer"] = make_tokenizer(text / "tokenizer", "sd21")  # which pads with "!", the token 0
    parts["image_encoder"] = make_image_encoder(folder / "image" / "image_encoder")
    for name, config in UNCLIP_SCHEDULERS.items():
        whole = {"_class_name": "UnCLIPScheduler", "clip_sample": True, "num_train_timesteps": 1000, **config}
        parts[name] = write_scheduler(text / name, whole)
    for part in parts:
        if part not in ("prior", "prior_scheduler", "image_encoder"):
            (folder / "image" / part).symlink_to(text / part)
    classes = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    classes |= {"text_proj": ["unclip", "UnCLIPTextProjModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    write_index(text, "UnCLIPPipeline", {name: pair for name, pair in classes.items() if name != "image_encoder"})
    varying = {name: pair for name, pair in classes.items() if not name.startswith("prior")}
    varying["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    write_index(folder / "image", "UnCLIPImageVariationPipeline", varying)
    return parts


def make_image_encoder(folder: Path) -> Any:
    torch.manual_seed(100)
    config = transformers.CLIPVisionConfig(**KARLO["image_encoder"])
    encoder = save(louder(transformers.CLIPVisionModelWithProjection(config), 101, 1.0), folder)
    more = {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model"}
    keep_keys(folder / "config.json", " ".join(KARLO["image_encoder"]), **more)
    return encoder


def write_index(folder: Path, pipeline: str, parts: dict[str, Any]) -> None:
    index = {"_class_name": pipeline, "_diffusers_version": "0.14.0", **parts}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def make_x4(folder: Path) -> Any:
    """stable-diffusion-x4-upscaler's shape; returns diffusers' pipeline."""
    config = UNET["sd21"] | SMALL_UNET["sd21"]
    config |= {
        "in_channels": 7,
        "num_class_embeds": 1000,
        "only_cross_attention": [True, False],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    }
    parts = {
        "unet": make_unet(folder / "unet", config, 110),
        "vae": make_vae(folder / "vae", X4_VAE),
        "text_encoder": make_text_encoder(folder / "text_encoder", "sd21"),
        "tokenizer": make_tokenizer(folder / "tokenizer", "sd21"),
        "scheduler": write_scheduler(folder / "scheduler", X4_SCHEDULER),
    }
    noising = X4_SCHEDULER | {"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear"}
    noising = {key: value for key, value in noising.items() if key not in ("set_alpha_to_one", "steps_offset")}
    parts["low_res_scheduler"] = write_scheduler(folder / "low_res_scheduler", noising)
    classes = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    classes |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    write_index(folder, "StableDiffusionUpscalePipeline", {**classes, "max_noise_level": 350})
    return diffusers.StableDiffusionUpscalePipeline(**parts, max_noise_level=350)


X4_VAE: dict[str, Any] = {
    "block_out_channels": [16, 16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "sample_size": 64,
    "scaling_factor": 0.08333,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
X4_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.8.0",
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0001,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "trained_betas": None,
}

"""Small seeded relatives of unCLIP, laid out as on the hub: Kandinsky 2.2 and Stable unCLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.oracles.libraries import diffusers
from tests.tiny.image import (
    SMALL_UNET,
    UNET,
    keep_keys,
    make_text_encoder,
    make_tokenizer,
    make_vae,
    save,
    write_scheduler,
)
from tests.tiny.sdxl import make_text_encoder_2
from tests.tiny.systems import (
    CLIP_WIDTH,
    DDPM,
    KARLO,
    RESNETS,
    UNCLIP_SCHEDULERS,
    X4_SCHEDULER,
    louder,
    make_image_encoder,
    make_prior,
    make_unet,
    write_index,
)


def make_stable_unclip(folder: Path) -> dict[str, Any]:
    """Stable unCLIP in two folders, of a text by Karlo's prior, and of an image; returns all parts by name."""
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    text, image, parts = folder / "text", folder / "image", dict[str, Any]()
    unet = UNET["sd21"] | SMALL_UNET["sd21"]
    unet |= {
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 2 * CLIP_WIDTH,
    }
    parts["unet"] = make_unet(image / "unet", unet, 120)
    parts["vae"] = make_vae(image / "vae")
    parts["text_encoder"] = make_text_encoder(image / "text_encoder", "sd21")
    parts["tokenizer"] = make_tokenizer(image / "tokenizer", "sd21")
    parts["scheduler"] = write_scheduler(image / "scheduler", X4_SCHEDULER | {"beta_end": 0.012, "beta_start": 0.00085})
    noising = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}
    parts["image_noising_scheduler"] = write_scheduler(image / "image_noising_scheduler", noising)
    normalizer = StableUnCLIPImageNormalizer(CLIP_WIDTH)
    torch.manual_seed(122)
    with torch.no_grad():
        normalizer.mean.copy_(0.3 * torch.randn(1, CLIP_WIDTH))
        normalizer.std.copy_(0.5 + torch.rand(1, CLIP_WIDTH))
    parts["image_normalizer"] = save(normalizer, image / "image_normalizer")
    parts["image_encoder"] = make_image_encoder(image / "image_encoder")
    text.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if part != "image_encoder":
            (text / part).symlink_to(image / part)
    parts["prior"] = make_prior(text / "prior", KARLO["prior"])
    projected = {"hidden_size": CLIP_WIDTH, "projection_dim": CLIP_WIDTH}
    parts["prior_text_encoder"] = make_text_encoder_2(text / "prior_text_encoder", projected)
    parts["prior_tokenizer"] = make_tokenizer(text / "prior_tokenizer", "sd21")
    config = {"_class_name": "UnCLIPScheduler", "clip_sample": True, **UNCLIP_SCHEDULERS["prior_scheduler"]}
    parts["prior_scheduler"] = write_scheduler(text / "prior_scheduler", config)
    classes = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    classes |= {name: ["transformers", "CLIPTokenizer"] for name in ("tokenizer", "prior_tokenizer")}
    write_index(text, "StableUnCLIPPipeline", {name: pair for name, pair in classes.items() if name != "image_encoder"})
    varying = {name: pair for name, pair in classes.items() if not name.startswith("prior")}
    varying["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    write_index(image, "StableUnCLIPImg2ImgPipeline", varying)
    return parts


KANDINSKY: dict[str, dict[str, Any]] = {
    "unet": RESNETS
    | {
        "addition_embed_type": "image",
        "encoder_hid_dim": CLIP_WIDTH,
        "encoder_hid_dim_type": "image_proj",
        "in_channels": 4,
        "out_channels": 8,
    },
    "movq": {
        "act_fn": "silu",
        "block_out_channels": [32, 32, 64, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 32,
        "norm_type": "spatial",
        "num_vq_embeddings": 64,
        "out_channels": 3,
        "sample_size": 32,
        "scaling_factor": 0.18215,  # which its pipelines do not read
        "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
        "vq_embed_dim": 4,
    },
    "scheduler": DDPM
    | {
        "beta_end": 0.012,
        "beta_schedule": "linear",
        "beta_start": 0.00085,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 2.0,
    },
    "prior_scheduler": {
        "_class_name": "UnCLIPScheduler",
        "clip_sample": True,
        "clip_sample_range": 10.0,
        "num_train_timesteps": 1000,
        "prediction_type": "sample",
        "variance_type": "fixed_small_log",
    },
}


def make_movq(folder: Path) -> Any:
    """Kandinsky's autoencoder, whose decoder's norms read the latents."""
    torch.manual_seed(130)
    movq = save(louder(diffusers.VQModel(**KANDINSKY["movq"]), 131, 1.2), folder)
    keep_keys(folder / "config.json", " ".join(KANDINSKY["movq"]))
    return movq


def make_kandinsky(folder: Path) -> dict[str, Any]:
    """Kandinsky 2.2 in two folders, prior and decoder, and in one, whole; returns the parts by their names in that."""
    prior, decoder, whole, parts = folder / "prior", folder / "decoder", folder / "whole", dict[str, Any]()
    parts["unet"] = make_unet(decoder / "unet", KANDINSKY["unet"], 132)
    parts["movq"] = make_movq(decoder / "movq")
    parts["scheduler"] = write_scheduler(decoder / "scheduler", KANDINSKY["scheduler"])
    parts["prior_prior"] = make_prior(prior / "prior", KARLO["prior"])
    parts["prior_image_encoder"] = make_image_encoder(prior / "image_encoder")
    projected = {"hidden_size": CLIP_WIDTH, "projection_dim": CLIP_WIDTH}
    parts["prior_text_encoder"] = make_text_encoder_2(prior / "text_encoder", projected)
    parts["prior_tokenizer"] = make_tokenizer(prior / "tokenizer", "sd21")
    parts["prior_scheduler"] = write_scheduler(prior / "scheduler", KANDINSKY["prior_scheduler"])
    classes = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    classes |= {"prior_tokenizer": ["transformers", "CLIPTokenizer"]}
    whole.mkdir(parents=True, exist_ok=True)
    for name in parts:
        where = prior / name.removeprefix("prior_") if name.startswith("prior_") else decoder / name
        (whole / name).symlink_to(where)
    processor = ["transformers", "CLIPImageProcessor"]
    write_index(whole, "KandinskyV22CombinedPipeline", {**classes, "prior_image_processor": processor})
    own = {name: pair for name, pair in classes.items() if not name.startswith("prior_")}
    write_index(decoder, "KandinskyV22Pipeline", own)
    of_prior = {name.removeprefix("prior_"): pair for name, pair in classes.items() if name.startswith("prior_")}
    write_index(prior, "KandinskyV22PriorPipeline", {**of_prior, "image_processor": processor})
    return parts

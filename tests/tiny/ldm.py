"""Latent diffusion from before Stable Diffusion, and the DDPM family: small seeded checkpoints in the hub's layouts.

CompVis/ldm-celebahq-256 (UNet2DModel and VQModel), CompVis/ldm-text2im-large-256 (LDMBert), google/ddpm-* and the
originals that those were made from, whose UNet is written out in `tests/oracles/ermongroup.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.oracles.libraries import diffusers, ldm_bert, transformers
from tests.tiny.image import (
    DDPM,
    INDEX,
    SCHEDULER,
    Names,
    keep_keys,
    make_unet,
    make_vae,
    old_attention_names,
    randomise,
    save,
    write_scheduler,
)

# --- VQ autoencoder

VQ: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [16, 16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "in_channels": 3,
    "latent_channels": 3,
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "num_vq_embeddings": 64,
    "out_channels": 3,
    "sample_size": 64,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}


def make_vqvae(folder: Path, changes: dict[str, Any] | None = None, *, names: Names | None = None, **saving: Any):
    """A VQModel in `folder`, shaped as CompVis/ldm-celebahq-256's is: like the hub's, it has no `scaling_factor`.

    The reference has the 1.0 of Latent Diffusion instead of the 0.18215 that diffusers takes for an absent one.
    """
    config = VQ | (changes or {})
    torch.manual_seed(50)
    model = diffusers.VQModel(**{"scaling_factor": 1.0, **config})
    torch.nn.init.normal_(model.quantize.embedding.weight)  # else all entries lie at 0, and so do all latents
    model.quant_conv.weight.data *= 4
    save(randomise(model, 51), folder, names=names, **saving)
    keep_keys(folder / "config.json", " ".join(config), _diffusers_version="0.1.2")
    return model


# --- unconditional latent diffusion

LDM_UNET: dict[str, Any] = DDPM | {
    "attention_head_dim": 8,
    "block_out_channels": [16, 24, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-05,
    "sample_size": 16,
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
LDM_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.0.4",
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "timestep_values": None,
    "trained_betas": None,
}


def make_unet_2d(folder: Path, config: dict[str, Any], *, names: Names | None = None) -> diffusers.UNet2DModel:
    torch.manual_seed(60)
    model = save(randomise(diffusers.UNet2DModel(**config), 61), folder, names=names)
    keep_keys(folder / "config.json", " ".join(config), _diffusers_version="0.1.3")
    return model


def make_ldm(
    folder: Path, *, vq: dict[str, Any] | None = None, unet: dict[str, Any] | None = None, kl: bool = False
) -> diffusers.LDMPipeline:
    """CompVis/ldm-celebahq-256, small: old attention names, 64×64 pictures from latents of 3×16×16.

    `kl`: with a KL autoencoder instead, as the paper has for churches; 128×128 from 4×16×16.
    """
    make_autoencoder, shape = make_vae if kl else make_vqvae, LDM_UNET | {"layers_per_block": 1} | (unet or {})
    pipe = diffusers.LDMPipeline(
        unet=make_unet_2d(folder / "unet", shape, names=old_attention_names),
        vqvae=make_autoencoder(folder / "vqvae", vq, names=old_attention_names),
        scheduler=write_scheduler(folder / "scheduler", LDM_SCHEDULER),
    )
    index = {
        "_class_name": "LDMPipeline",
        "_diffusers_version": "0.1.3",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
        "vqvae": ["diffusers", type(pipe.vqvae).__name__],
    }
    return _finish(pipe, folder, index)


def _finish(pipe: diffusers.DiffusionPipeline, folder: Path, index: dict[str, Any]) -> Any:
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- latent diffusion of a text

VOCAB = """[PAD] [UNK] [CLS] [SEP] [MASK] a the of in on red blue green apple dog cat star sun painting squirrel
eating burger""".split()
VOCAB += [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?'-", "##s", "##ing", "##ed", "中", "é"]
VOCAB += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
BERT: dict[str, Any] = {
    "activation_dropout": 0.0,
    "activation_function": "gelu",
    "attention_dropout": 0.0,
    "classifier_dropout": 0.0,
    "d_model": 24,
    "dropout": 0.1,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 48,
    "encoder_layerdrop": 0.0,
    "encoder_layers": 3,
    "head_dim": 4,
    "init_std": 0.02,
    "max_position_embeddings": 77,
    "model_type": "ldmbert",
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "scale_embedding": False,
    "use_cache": True,
    "vocab_size": len(VOCAB),
}
LDM_TEXT_SCHEDULER = LDM_SCHEDULER | {"beta_start": 0.00085, "beta_end": 0.012}


def make_wordpiece(folder: Path, **changes: Any) -> transformers.BertTokenizer:
    """A BERT tokenizer as the hub had them: vocab.txt and two configs, no tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("UNK", "SEP", "PAD", "CLS", "MASK")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {
        "do_basic_tokenize": True,
        "do_lower_case": True,
        "model_max_length": 512,
        "name_or_path": "bert-base-uncased",
        "never_split": None,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | special | changes))
    return transformers.BertTokenizer.from_pretrained(folder)


def make_bert(folder: Path, changes: dict[str, Any] | None = None) -> ldm_bert.LDMBertModel:
    """An LDMBertModel in `folder`, with the head that the hub's file has."""
    config = BERT | (changes or {})
    torch.manual_seed(70)
    model = ldm_bert.LDMBertModel(ldm_bert.LDMBertConfig(**config))
    for name, parameter in model.named_parameters():  # its own start is so small that every text looks alike
        parameter.data *= 40 if "embed_tokens" in name else 16 if parameter.ndim > 1 else 1
    model.model.layer_norm.weight.data *= 4
    save(randomise(model, 71), folder)
    assert "to_logits.weight" in load_file(folder / "model.safetensors")
    keep_keys(folder / "config.json", "", architectures=["LDMBertModel"], torch_dtype="float32", **config)
    return model


def make_ldm_text(folder: Path) -> diffusers.LDMTextToImagePipeline:
    """CompVis/ldm-text2im-large-256, small: 128×128 pictures from latents of 4×16×16."""
    pipe = diffusers.LDMTextToImagePipeline(
        vqvae=make_vae(folder / "vqvae", names=old_attention_names),
        bert=make_bert(folder / "bert"),
        tokenizer=make_wordpiece(folder / "tokenizer"),
        unet=make_unet(folder / "unet"),
        scheduler=write_scheduler(folder / "scheduler", LDM_TEXT_SCHEDULER),
    )
    index = {
        "_class_name": "LDMTextToImagePipeline",
        "_diffusers_version": "0.1.3",
        "bert": ["latent_diffusion", "LDMBertModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "tokenizer": ["transformers", "BertTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vqvae": ["diffusers", "AutoencoderKL"],
    }
    return _finish(pipe, folder, index)


# --- google/ddpm-*

DDPM_256: dict[str, Any] = DDPM | {
    "block_out_channels": [8, 8, 16, 16, 32, 32],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}
SMALL_VARIANCE = SCHEDULER["ddpm"] | {"timestep_values": None, "variance_type": "fixed_small"}


def make_ddpm_256(folder: Path, *, root: bool = True) -> diffusers.DDPMPipeline:
    """google/ddpm-celebahq-256, -bedroom-256, -church-256 and -cat-256, small: 64×64 pictures, six levels.

    `root`: as on the hub, with old names of attention; else in folders with the names of today.
    """
    unet, scheduler = (folder, folder) if root else (folder / "unet", folder / "scheduler")
    folder.mkdir(parents=True, exist_ok=True)
    pipe = diffusers.DDPMPipeline(
        unet=make_unet_2d(unet, DDPM_256 | {"layers_per_block": 1}, names=old_attention_names if root else None),
        scheduler=write_scheduler(scheduler, SMALL_VARIANCE),
    )
    return _finish(pipe, folder, INDEX["ddpm"])


def make_grey(folder: Path) -> diffusers.DDPMPipeline:
    """A model of one level for 8×8 pictures in grey, whose thousand steps take a second."""
    config = DDPM | {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "layers_per_block": 1}
    config |= {"in_channels": 1, "out_channels": 1, "sample_size": 8, "up_block_types": ["UpBlock2D"]}
    config |= {"mid_block_type": None}
    folder.mkdir(parents=True, exist_ok=True)
    pipe = diffusers.DDPMPipeline(unet=make_unet_2d(folder, config), scheduler=write_scheduler(folder, SMALL_VARIANCE))
    return _finish(pipe, folder, INDEX["ddpm"])


def to_pickles(folder: Path) -> None:
    """Every safetensors file of a checkpoint as the pickle that most of these have on the hub."""
    for file in folder.rglob("*.safetensors"):
        name = file.with_suffix(".bin").name
        torch.save(load_file(file), file.with_name("pytorch_model.bin" if name == "model.bin" else name))
        file.unlink()


def with_scheduler(pipe: diffusers.DiffusionPipeline, name: str, **changes: Any) -> Any:
    """The pipeline with another of diffusers' schedulers, on the checkpoint's own betas."""
    scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **changes)
    made = type(pipe)(**{**pipe.components, "scheduler": scheduler})
    made.set_progress_bar_config(disable=True)
    return made

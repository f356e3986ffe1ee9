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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.oracles.libraries import diffusers, transformers

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


# changes of it for whole pipelines, as parity/test_unet_2d_condition.py has the usual depth
SMALL_UNET: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "layers_per_block": 1,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
}
SMALL_UNET["sd21"] = SMALL_UNET["sd15"] | {"attention_head_dim": [1, 2]}


def make_unet(folder: Path, kind: str = "sd15", changes: dict[str, Any] | None = None, **saving: Any):
    """A UNet2DConditionModel in `folder`, its config.json with the keys of the hub's file alone."""
    config = UNET[kind] | (changes or {})
    torch.manual_seed(10)
    model = save(randomise(diffusers.UNet2DConditionModel(**config), 11), folder, **saving)
    # an older version makes diffusers take a sample_size below 64 for a mistake, and set 64
    keep_keys(folder / "config.json", " ".join(config), _diffusers_version="0.15.0")
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
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
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


# --- autoencoder

VAE: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [16, 16, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 128,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SMALL_VAE = {"layers_per_block": 1}  # parity/test_autoencoder_kl.py has two
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_attention_names(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Names of attention blocks as files had them before diffusers 0.15, most on the hub among them."""
    for new, old in OLD_NAMES.items() if ".attentions." in name else ():
        name = name.replace(f".{new}.", f".{old}.")
    return name, tensor


def make_vae(folder: Path, changes: dict[str, Any] | None = None, *, names: Names | None = None, **saving: Any):
    """An AutoencoderKL in `folder`; `names` renames its tensors, with `old_attention_names` for one."""
    config = VAE | SMALL_VAE | (changes or {})
    torch.manual_seed(30)
    model = save(randomise(diffusers.AutoencoderKL(**config), 31), folder, names=names, **saving)
    keep_keys(folder / "config.json", " ".join(config))
    return model


def make_tiny_vae(folder: Path, **changes: Any) -> Any:
    """An AutoencoderTiny in `folder`, with the config that the hub's taesd has."""
    torch.manual_seed(34)
    model = save(randomise(diffusers.AutoencoderTiny(**{"num_decoder_blocks": [1, 1, 1, 1], **changes}), 35), folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= 1.3 if name.endswith("weight") else 1.0
    return save(model, folder)


# --- tokenizer

MERGES = ["a p", "ap p", "app l", "appl e</w>", "r e", "re d</w>", "c a", "ca t</w>", "d o", "do g</w>", "a</w> x"]
MERGES += ["s t", "st a", "sta r</w>", "b l", "bl u", "blu e</w>", "g r", "gr e", "gre e", "gree n</w>", "o n</w>"]
MERGES += ["t h", "th e</w>", "s u", "su n</w>", "a n", "an d</w>", "o f</w>", "i n</w>"]


def characters() -> list[str]:
    """One printable character for each byte, in the order of CLIP's and GPT-2's vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(rest))]


def make_tokenizer(folder: Path, kind: str = "sd15") -> transformers.CLIPTokenizer:
    """A CLIP tokenizer of 544 tokens as the hub has it: vocab.json, merges.txt and two configs, no tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    bytes_ = characters()
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokens = [*bytes_, *(c + "</w>" for c in bytes_), *(merge.replace(" ", "") for merge in MERGES), start, end]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    pad = "!" if kind == "sd21" else end
    added = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {"bos_token": added | {"content": start}, "eos_token": added | {"content": end}}
    special |= {"pad_token": pad, "unk_token": added | {"content": end}}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    typed = {k: v if isinstance(v, str) else {"__type": "AddedToken"} | v for k, v in special.items()}
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | typed, indent=2))
    return transformers.CLIPTokenizer.from_pretrained(folder)


# --- whole pipelines

SCHEDULER: dict[str, dict[str, Any]] = {
    "sd15": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "ddpm": {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.1.1",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "variance_type": "fixed_large",
    },
}
SCHEDULER["sd21"] = SCHEDULER["sd15"] | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}

INDEX: dict[str, dict[str, Any]] = {
    "sd15": {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "ddpm": {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": "0.1.1",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    },
}
INDEX["sd21"] = INDEX["sd15"] | {
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
}


def make_stable_diffusion(
    folder: Path,
    kind: str = "sd15",
    *,
    variant: str | None = None,
    hub_names: bool = True,
    unet: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
) -> diffusers.DiffusionPipeline:
    """A whole Stable Diffusion repository, `kind` sd15 or sd21 (v-prediction); the same in diffusers, in float32.

    Pictures are 128×128 by default, latents 16×16, texts 77 tokens. `hub_names`: old attention names in the VAE, prefix
    in the text encoder. `variant` fp16 writes `*.fp16.safetensors` alone. `unet`, `scheduler`: changes of config.
    sd15 has a safety checker, of which there is only the config here; reading its weights would fail.
    """
    schedule = SCHEDULER[kind] | (scheduler or {})
    parts = {
        "unet": make_unet(folder / "unet", kind, SMALL_UNET[kind] | (unet or {}), variant=variant),
        "vae": make_vae(folder / "vae", names=old_attention_names if hub_names else None, variant=variant),
        "text_encoder": make_text_encoder(folder / "text_encoder", kind, hub_names=hub_names, variant=variant),
        "tokenizer": make_tokenizer(folder / "tokenizer", kind),
        "scheduler": write_scheduler(folder / "scheduler", schedule),
    }
    index = INDEX[kind] | {"scheduler": ["diffusers", schedule["_class_name"]]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    if kind == "sd15":
        for part, name in (("safety_checker", "config.json"), ("feature_extractor", "preprocessor_config.json")):
            (folder / part).mkdir(exist_ok=True)
            (folder / part / name).write_text("{}")
    pipe = diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_scheduler(folder: Path, config: dict[str, Any]) -> Any:
    """scheduler_config.json in `folder`, and the diffusers scheduler that it names."""
    import diffusers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scheduler_config.json").write_text(json.dumps(config, indent=2))
    return getattr(diffusers, config["_class_name"]).from_pretrained(folder)


DDPM: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [16, 32, 32, 32],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}


SMALL_DDPM: dict[str, Any] = {  # changes of it for whole pipelines, as parity/test_unet_2d.py has the usual depth
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "layers_per_block": 1,
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


def make_unet_2d(folder: Path, changes: dict[str, Any] | None = None, *, names: Names | None = None, **saving: Any):
    """A UNet2DModel in `folder`, shaped as google/ddpm-cifar10-32 is."""
    config = DDPM | (changes or {})
    torch.manual_seed(40)
    model = save(randomise(diffusers.UNet2DModel(**config), 41), folder, names=names, **saving)
    keep_keys(folder / "config.json", " ".join(config), _diffusers_version="0.0.4")
    return model


def make_ddpm(
    folder: Path,
    *,
    old_names: bool = True,
    unet: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
) -> diffusers.DiffusionPipeline:
    """google/ddpm-cifar10-32, small: its parts lie at the root, attention has its old names. 32×32 pictures.
    `unet`, `scheduler`: changes of config."""
    folder.mkdir(parents=True, exist_ok=True)
    names = old_attention_names if old_names else None
    made = make_unet_2d(folder, SMALL_DDPM | (unet or {}), names=names)
    (folder / "model_index.json").write_text(json.dumps(INDEX["ddpm"], indent=2))
    pipe = diffusers.DDPMPipeline(unet=made, scheduler=write_scheduler(folder, SCHEDULER["ddpm"] | (scheduler or {})))
    pipe.set_progress_bar_config(disable=True)
    return pipe

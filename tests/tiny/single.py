"""Small Stable Diffusions in one file, in the original layout, beside the folders in diffusers' that they equal.

The names are written here once more, the other way round and without gencli's tables: from a folder's to the file's.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gencli.checkpoints.find import Source
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles.libraries import diffusers
from tests.tiny.image import (
    SCHEDULER,
    UNET,
    keep_keys,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    make_vae,
    old_attention_names,
    write_scheduler,
)
from tests.tiny.image import VAE as TINY_VAE

# Widths are multiples of 32 (groups of a norm) and 64 (heads of SD 2, XL and all text encoders): no shape tells those.
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 64, "norm_num_groups": 32},
    "sd2": {
        "attention_head_dim": [1, 1, 2, 1],
        "block_out_channels": [64, 64, 128, 64],
        "cross_attention_dim": 64,
        "norm_num_groups": 32,
        "use_linear_projection": True,
    },
    "sdxl": {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "attention_head_dim": [1, 1, 2],
        "block_out_channels": [64, 64, 128],
        "cross_attention_dim": 192,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "norm_num_groups": 32,
        "projection_class_embeddings_input_dim": 256,
        "transformer_layers_per_block": [1, 1, 2],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
    "refiner": {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "attention_head_dim": [1, 2, 2],
        "block_out_channels": [64, 128, 128],
        "cross_attention_dim": 128,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "norm_num_groups": 32,
        "projection_class_embeddings_input_dim": 224,
        "transformer_layers_per_block": [1, 2, 2],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
}
TEXTS: dict[str, dict[str, Any]] = {
    "sd1": {"hidden_size": 64, "num_attention_heads": 1, "projection_dim": 64},
    "sd2": {
        "hidden_act": "gelu",
        "hidden_size": 64,
        "num_attention_heads": 1,
        "num_hidden_layers": 23,
        "projection_dim": 512,
    },
    "sdxl": {"hidden_size": 64, "num_attention_heads": 1, "projection_dim": 64},
}
SECOND = {"hidden_act": "gelu", "hidden_size": 128, "num_attention_heads": 2, "projection_dim": 64}
VAE = {"block_out_channels": [32, 32, 32, 64], "layers_per_block": 2, "norm_num_groups": 32}
SCALING = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025, "refiner": 0.13025}
# What shapes do not tell, and what they do of the real ones.
UNET_BASE = UNET["sd15"] | {"block_out_channels": [320, 640, 1280, 1280], "norm_num_groups": 32}
VAE_BASE = TINY_VAE | {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}
SIZES = {"sd1": 64, "sd2": 96, "sdxl": 128, "refiner": 128}  # in latents
PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
TEXT_PREFIXES = {
    ("sd1", "text_encoder"): "cond_stage_model.transformer.",
    ("sd2", "text_encoder"): "cond_stage_model.model.",
    ("sdxl", "text_encoder"): "conditioner.embedders.0.transformer.",
    ("sdxl", "text_encoder_2"): "conditioner.embedders.1.model.",
    ("refiner", "text_encoder_2"): "conditioner.embedders.0.model.",
}
XL_SCHEDULER = SCHEDULER["sd15"] | {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
}
SCHEDULERS = {"sd1": SCHEDULER["sd15"], "sd2": SCHEDULER["sd21"], "sdxl": XL_SCHEDULER, "refiner": XL_SCHEDULER}
CLASSES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "refiner": "StableDiffusionXLImg2ImgPipeline",
}


def make_folder(folder: Path, kind: str, unet: dict[str, Any] | None = None) -> Path:
    """A checkpoint of `kind` sd1, sd2 (v-prediction), sdxl or refiner in diffusers' layout. `unet`: changes of its
    config."""
    base = "sd21" if kind == "sd2" else "sd15"
    make_unet(folder / "unet", "sd15", UNETS[kind] | {"sample_size": SIZES[kind]} | (unet or {}))
    sizes = {"sample_size": 8 * SIZES[kind], "scaling_factor": SCALING[kind]}
    make_vae(folder / "vae", VAE | sizes, names=old_attention_names)
    write_scheduler(folder / "scheduler", SCHEDULERS[kind])
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    if kind != "refiner":
        make_text_encoder(folder / "text_encoder", "sd15", TEXTS[kind])
        make_tokenizer(folder / "tokenizer", base)
        parts |= {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
    if kind in ("sdxl", "refiner"):
        make_second_text_encoder(folder / "text_encoder_2")
        make_tokenizer(folder / "tokenizer_2", "sd21")
        parts |= {"text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer"}
    parts |= {"scheduler": SCHEDULERS[kind]["_class_name"]}
    pairs = {name: ["transformers" if cls.startswith("CLIP") else "diffusers", cls] for name, cls in parts.items()}
    index = {"_class_name": CLASSES[kind], **pairs}
    if kind == "refiner":
        index |= {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def make_second_text_encoder(folder: Path) -> None:
    """SDXL's: a CLIPTextModelWithProjection, its config as the hub's."""
    make_text_encoder(folder, "sd15", SECOND)
    file = folder / "model.safetensors"
    weight = torch.randn(SECOND["projection_dim"], SECOND["hidden_size"], generator=torch.Generator().manual_seed(50))
    save_file(load_file(file) | {"text_projection.weight": weight / 8}, file, {"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    keep_keys(folder / "config.json", " ".join(raw), **raw | {"architectures": ["CLIPTextModelWithProjection"]})


# --- names: a folder's → the original file's

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def original_unet(name: str, *, layers: int, crossed_up: list[bool]) -> str:
    """A tensor's name in an original file. crossed_up: whether a level on the way up has attentions."""
    words = name.split(".")
    for new, old in UNET_ENDS.items():
        if name.startswith(f"{new}."):
            return old + name[len(new) :]
    if words[0] == "mid_block":
        place = {"resnets": 2 * int(words[2]), "attentions": 1}[words[1]]
        block, rest = f"middle_block.{place}", words[3:]
    else:
        level, kind, number, rest = int(words[1]), words[2], int(words[3]), words[4:]
        if words[0] == "down_blocks" and kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (level + 1)}.0.op.{rest[-1]}"
        if words[0] == "down_blocks":
            block = f"input_blocks.{(layers + 1) * level + number + 1}.{int(kind == 'attentions')}"
        elif kind == "upsamplers":
            return f"output_blocks.{(layers + 1) * level + layers}.{1 + crossed_up[level]}.conv.{rest[-1]}"
        else:
            block = f"output_blocks.{(layers + 1) * level + number}.{int(kind == 'attentions')}"
    return ".".join([block, RESNET.get(rest[0], rest[0]), *rest[1:]])


def original_vae(name: str, tensor: Tensor, *, levels: int) -> tuple[str, Tensor]:
    """A tensor's name and form in an original file, from a folder's with old or new names of attentions."""
    words = name.split(".")
    if words[1:2] == ["mid_block"]:
        half, _, kind, number, *rest = words
        if kind == "resnets":
            words = [half, "mid", f"block_{int(number) + 1}", *rest]
        else:
            inner = ".".join(rest[:-1])
            old = {"to_q": "q", "query": "q", "to_k": "k", "key": "k", "to_v": "v", "value": "v"}
            old |= {"to_out.0": "proj_out", "proj_attn": "proj_out", "group_norm": "norm"}
            words = [half, "mid", "attn_1", old[inner], rest[-1]]
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
    elif words[1:2] in (["down_blocks"], ["up_blocks"]):
        half, blocks, level, kind, number, *rest = words
        up = blocks == "up_blocks"
        level = str(levels - 1 - int(level)) if up else level
        inner = ["block", number] if kind == "resnets" else ["upsample" if up else "downsample"]
        words = [half, "up" if up else "down", level, *inner, *rest]
    renamed = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
    return ".".join(renamed.get(word, word) for word in words), tensor.contiguous()


OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def original_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's tensors of a text encoder in transformers' names."""
    made = {
        "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
    }
    if "text_projection.weight" in tensors:
        made["text_projection"] = tensors["text_projection.weight"].T.contiguous()
    for kind in ("weight", "bias"):
        made[f"ln_final.{kind}"] = tensors[f"text_model.final_layer_norm.{kind}"]
        layer = 0
        while (start := f"text_model.encoder.layers.{layer}.") + "mlp.fc1.bias" in tensors:
            block = f"transformer.resblocks.{layer}."
            parts = [tensors[f"{start}self_attn.{x}_proj.{kind}"] for x in "qkv"]
            made[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
            for new, old in OPEN_CLIP.items():
                made[f"{block}{old}.{kind}"] = tensors[f"{start}{new}.{kind}"]
            layer += 1
    return made


def original_parts(
    config: Mapping[str, Any], unet: Mapping[str, Tensor], vae: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """UNet and autoencoder in an original file's names. config: the UNet's."""
    up = [kind.startswith("CrossAttn") for kind in config["up_block_types"]]
    names = {name: original_unet(name, layers=config["layers_per_block"], crossed_up=up) for name in unet}
    levels = len({name.split(".")[2] for name in vae if name.startswith("encoder.down_blocks.")})
    made = {PREFIXES["unet"] + names[name]: tensor for name, tensor in unet.items()}
    other = dict(original_vae(name, tensor, levels=levels) for name, tensor in vae.items())
    return made | {PREFIXES["vae"] + name: tensor for name, tensor in other.items()}


def original(folder: Path, kind: str) -> dict[str, Tensor]:
    """All tensors of a folder as a single file has them, with those that are no weights."""
    weights = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in ("unet", "vae")}
    config = json.loads((folder / "unet" / "config.json").read_text())
    made = original_parts(config, weights["unet"], weights["vae"])
    for (of, part), prefix in TEXT_PREFIXES.items():
        if of != kind:
            continue
        tensors = load_file(folder / part / "model.safetensors")
        if prefix.endswith("model."):
            tensors = original_open_clip(tensors)
            if kind == "sd2":  # a last layer that is not run, and what only a comparison with pictures wants
                last = {name: t + 1 for name, t in tensors.items() if ".resblocks.22." in name}
                tensors |= {name.replace(".22.", ".23."): tensor for name, tensor in last.items()}
                tensors["text_projection"] = torch.ones(64, 64)
            tensors["logit_scale"] = torch.tensor(4.6)
        made |= {prefix + name: tensor for name, tensor in tensors.items()}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    made |= {"betas": betas, "alphas_cumprod": (1 - betas).cumprod(0), "model_ema.decay": torch.tensor(0.9999)}
    made["model_ema.num_updates"] = torch.tensor(10)
    made |= {f"model_ema.diffusion_model{i}": torch.ones(3) for i in range(3)}
    return made


def write_original(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, file, {"format": "pt", **(metadata or {})})
    return file


@dataclasses.dataclass(frozen=True)
class Measured:
    """Largest differences from diffusers, which opens the same file: of any weight, and of a picture (of 255)."""

    component: float
    picture: int


def measure(folder: Path, file: Path, kind: str, prediction: str | None = None) -> Measured:
    """Open a file here and with diffusers' own converter, and draw a picture of 96×64 in three steps with each.

    folder: the same checkpoint in diffusers' layout, of which diffusers takes the configs.
    """
    pipe = getattr(diffusers, CLASSES[kind]).from_single_file(str(file), config=str(folder), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    call = {"negative_prompt": "blue dog", "num_inference_steps": 3, "guidance_scale": 5.0, "width": 96, "height": 64}
    theirs = pipe("a red apple on the sun", generator=torch.Generator().manual_seed(3), **call).images[0]
    checkpoint = open_image_checkpoint(Source(file.name, file, "file"), prediction=prediction)
    largest = 0.0
    for part in checkpoint.opened.models:
        _, tensors = checkpoint.open(part)
        for name, tensor in getattr(pipe, part).state_dict().items():
            ours = tensors.get(name if name in tensors else f"text_model.{name}")
            largest = max(largest, (ours - tensor).abs().max().item())
    request = ImageRequest(
        prompt="a red apple on the sun", negative="blue dog", seed=3, steps=3, guidance=5.0, width=96, height=64
    )
    events = generate(load(checkpoint, device="cpu"), resolve(request, checkpoint))
    ours = next(event.image for event in events if isinstance(event, Picture))
    apart = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int))
    return Measured(largest, int(apart.max()))


def write_header(
    file: Path, shapes: Mapping[str, Iterable[int]], dtype: str = "F16", metadata: dict[str, str] | None = None
) -> Path:
    """A safetensors file of these tensors, all zeros, that takes no room on disk."""
    width = {"F16": 2, "F32": 4}[dtype]
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        count = width
        for side in shape:
            count *= side
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + count]}
        end += count
    raw = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw)
        stream.truncate(8 + len(raw) + end)
    return file

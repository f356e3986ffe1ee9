"""The names of tensors in LoRA files of image models → part, module and side.

diffusers names a module by its path (`unet.mid_block.….to_q.lora_A.weight`), and did so differently in older files
(`….attn1.processor.to_q_lora.down.weight`, `….q_proj.lora_linear_layer.up.weight`). kohya's trainer writes the path
with underscores (`lora_unet_mid_block_…_to_q.lora_down.weight`), in diffusers' UNet or, for SDXL, in the original one
(`lora_unet_middle_block_1_…`). A path with underscores cannot be split again, so names are looked up the other way:
every module of the model is listed under all of its names. Transformers of flow matching have names of their authors'
code too (`diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight`), of which one may stand for several modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from gencli.checkpoints.deltas import MAGNITUDE
from gencli.checkpoints.formats.flow_rows import ROWS
from gencli.checkpoints.formats.renaming import THIRDS
from gencli.checkpoints.formats.stable_diffusion_unet import INSIDE, Level, original_places
from gencli.checkpoints.lora import PEFT_PREFIX
from gencli.errors import GencliError
from gencli.models.base import Rename

UNET, TRANSFORMER, TEXT, TEXT_2 = "unet", "transformer", "text_encoder", "text_encoder_2"
# A tensor's name becomes MODULE:SIDE, and MODULE becomes PART:MODULE. The first row that matches counts.
NAMED = r"(?:\.[\w-]+)?"  # the adapter's name in peft: default, default_0, …
SIDES = (
    Rename(rf"(.+?)\.lora_A{NAMED}\.weight", r"\1:down"),
    Rename(rf"(.+?)\.lora_B{NAMED}\.weight", r"\1:up"),
    Rename(r"(.+?)(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)(down|up|mid)\.weight", r"\1:\2"),
    Rename(rf"(.+?)\.(hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)){NAMED}", r"\1:\2"),
    Rename(rf"(.+?)\.lora_magnitude_vector{NAMED}(?:\.weight)?", rf"\1:{MAGNITUDE}"),
    Rename(r"(.+?)\.(alpha|dora_scale)", r"\1:\2"),
)
PARTS = (
    Rename(r"(?:lora_te1?_|text_encoder\.|text_encoders\.clip_l\.(?:transformer\.)?)(.+)", rf"{TEXT}:\1"),
    Rename(r"(?:lora_te2_|text_encoder_2\.|text_encoders\.clip_g\.(?:transformer\.)?)(.+)", rf"{TEXT_2}:\1"),
    Rename(r"lycoris_(text_model_.+)", rf"{TEXT}:\1"),
    Rename(r"(?:transformer\.|lora_transformer_)(.+)", rf"{TRANSFORMER}:\1"),
    Rename(r"(?:lora_unet_|lycoris_unet_|lycoris_|unet\.|diffusion_model\.)(.+)", rf"{UNET}:\1"),
    Rename(r"((?:double_blocks|single_blocks|layers|(?:single_)?transformer_blocks)\b.*)", rf"{TRANSFORMER}:\1"),
    # The first files of diffusers, and PEFT folders, have no prefix.
    Rename(r"((?:down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\b.*)", rf"{UNET}:\1"),
    Rename(r"((?:text_model\.)?encoder\b.*)", rf"{TEXT}:\1"),
)
# Other parameter-efficient methods, by a pattern in their tensor names.
OTHERS = (
    (r"[._]b?oft_|\.oft_diag|\.boft", "OFT"),
    (r"\.on_input", "(IA)³"),
    (r"lora_(B|up)(\.default)?\.bias|\.lora\.up\.bias", "a LoRA with biases"),
    (r"\.diff(_b)?$|\.[wb]_norm$", "a file with changes of whole weights"),
    (r"\.[ab][12]\.weight$", "GLoRA"),
    (r"bundle_emb", "a LoRA with embeddings in its file"),
)


class Key(NamedTuple):
    """A parsed tensor name. side: down (r, in), up (out, r), alpha, or another of `deltas`."""

    part: str
    module: str
    side: str


def read_key(name: str) -> Key | None:
    """Parse a tensor name; None for an unknown form. Raise GencliError for a method that is not supported."""
    for pattern, what in OTHERS:
        if re.search(pattern, name):
            raise GencliError(f"{what} is not supported ({name!r:.120})", "gencli knows LoRA, LoHa, LoKr and DoRA")
    module, _, side = (_first(SIDES, name) or "").rpartition(":")
    renamed = _first(PARTS, module.replace(PEFT_PREFIX, "", 1).replace(".processor.", "."))
    if renamed is None:
        return None
    part, _, module = renamed.partition(":")
    return Key(part, module, side)


def _first(rows: Iterable[Rename], name: str) -> str | None:
    return next((new for row in rows if (new := row.new_name(name)) is not None), None)


class Target(NamedTuple):
    """A module that a file's name stands for. cut: what makes its Δ of the file's, where that is not the whole."""

    path: str
    cut: Callable[[Tensor], Tensor] | None = None


# Names of transformers in their authors' code and with q, k and v in one, dotted or with underscores.
FUSED = tuple(
    Rename(pattern.replace(r"\.", "[._]"), replacement, transform)
    for pattern, replacement, transform in (
        *((row.pattern, row.replacement, row.transform) for rows in ROWS.values() for row in rows),
        *((r"(.+)\.to_qkv\.weight", rf"\1.to_{x}.weight", THIRDS[x]) for x in "qkv"),
        *((r"(.+)\.to_added_qkv\.weight", rf"\1.add_{x}_proj.weight", THIRDS[x]) for x in "qkv"),
    )
)


def targets_of(module: str, names: Mapping[str, str]) -> list[Target]:
    """Return the modules that a name in a file stands for; none for an unknown name. names: those of single ones."""
    if module in names:
        return [Target(names[module])]
    found = [(new, row.transform) for row in FUSED if (new := row.new_name(f"{module}.weight")) is not None]
    paths = {names.get(new.removesuffix(".weight").replace(".", "_")): transform for new, transform in found}
    return [Target(path, transform) for path, transform in paths.items() if path is not None]


def names_of_modules(part: str, model: nn.Module) -> dict[str, str]:
    """Return all names that files use for the linear and convolutional modules of a model: name → path."""
    names: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            names[path] = path
            for name in _text_names(path) if part not in (UNET, TRANSFORMER) else ():
                names[name] = path
            if path.endswith(".to_out.0"):
                names[path.removesuffix(".0")] = path
    if part == UNET:
        inside = {new: old for old, new in INSIDE.items()}
        blocks = getattr(model, "down_blocks", ())
        levels = [Level(0, len(block.resnets), int(block.attentions is not None)) for block in blocks]
        for place, target in original_places(levels):
            for path in [path for path in names if path == target or path.startswith(f"{target}.")]:
                rest = path[len(target) + 1 :]
                rest = inside.get(rest, rest) if "downsamplers" in target or "resnets" in target else rest
                names[f"{place}.{rest}" if rest else place] = names[path]
    return {**{name.replace(".", "_"): path for name, path in names.items()}, **names}


def _text_names(path: str) -> Iterator[str]:
    """Yield the names of a text encoder's module: before version 5, transformers had all under `text_model`."""
    for name in (path, f"text_model.{path}"):
        yield name
        stem, _, last = name.rpartition(".")
        if last in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{stem}.to_{last.removesuffix('_proj')}"

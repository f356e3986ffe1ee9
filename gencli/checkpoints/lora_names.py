"""How LoRA files of picture models name what they change: which part, which module, and which of its two matrices.

diffusers writes a module's path (`unet.mid_block.….to_q.lora_A.weight`), in older files otherwise
(`….attn1.processor.to_q_lora.down.weight`, `….q_proj.lora_linear_layer.up.weight`); kohya's trainer writes the path
with underscores (`lora_unet_mid_block_…_to_q.lora_down.weight`), of diffusers' UNet or, for SDXL, of the original one
(`lora_unet_middle_block_1_…`). Since a path with underscores cannot be taken apart, names go the other way: every
module of the model is listed under all that it is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from gencli.checkpoints.formats.stable_diffusion_unet import ENDS, INSIDE
from gencli.errors import GencliError

UNET, TEXT, TEXT_2 = "unet", "text_encoder", "text_encoder_2"
KEY = re.compile(
    r"(?P<module>.+?)(?:"
    r"(?:\.lora_(?P<peft>A|B)(?:\.default)?|\.lora_(?P<kohya>down|up)|(?:[._]lora|\.lora_linear_layer)\.(?P<older>down|up))"
    r"\.weight|\.(?P<alpha>alpha))"
)
SIDES = {"A": "down", "B": "up"}
# What a name begins with → the part of the checkpoint it is about.
PREFIXES = (
    ("lora_unet_", UNET),
    ("lora_te1_", TEXT),
    ("lora_te2_", TEXT_2),
    ("lora_te_", TEXT),
    ("unet.", UNET),
    ("text_encoder_2.", TEXT_2),
    ("text_encoder.", TEXT),
)
PEFT = "base_model.model."
# The first files of diffusers, and folders of peft, have the UNet's paths bare.
BARE = re.compile(
    r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding|(text_model\.)?encoder)\b"
)
# Other ways to change a model in few numbers, by what their names have in them.
OTHERS = (
    (r"\.hada_", "LoHa"),
    (r"\.lokr_", "LoKr"),
    (r"\.dora_scale|lora_magnitude_vector", "DoRA"),
    (r"[._]b?oft_|\.oft_diag|\.boft", "OFT"),
    (r"\.on_input", "(IA)³"),
    (r"\.lora_mid\.", "a LoRA with a third matrix (Tucker's)"),
    (r"lora_(B|up)(\.default)?\.bias|\.lora\.up\.bias", "a LoRA with biases"),
    (r"\.diff(_b)?$|\.[wb]_norm$", "a file with changes of whole weights"),
    (r"\.[ab][12]\.weight$", "GLoRA"),
    (r"bundle_emb", "a LoRA with embeddings in its file"),
)


class Key(NamedTuple):
    """What a tensor's name says; side: down (r, in), up (out, r), or alpha."""

    part: str
    module: str
    side: str


def read_key(name: str) -> Key | None:
    """None for a name of no known form. Raises GencliError, by its name, for a kind of file that is not supported."""
    for pattern, what in OTHERS:
        if re.search(pattern, name):
            raise GencliError(f"{what} is not supported ({name!r:.120})", "gencli knows plain LoRA")
    match = KEY.fullmatch(name)
    if match is None:
        return None
    peft, kohya, older, alpha = match["peft"], match["kohya"], match["older"], match["alpha"]
    side = SIDES[peft] if peft else kohya or older or alpha
    module = match["module"].removeprefix(PEFT).replace(".processor.", ".")
    for prefix, part in PREFIXES:
        if module.startswith(prefix):
            return Key(part, module.removeprefix(prefix), side)
    if bare := BARE.match(module):
        return Key(TEXT if bare[1].endswith("encoder") else UNET, module, side)
    return None


def known_names(part: str, model: nn.Module) -> dict[str, str]:
    """All that files call the linear and convolutional modules of a model: name → path."""
    names: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            names[path] = path
            for name in _text_names(path) if part != UNET else ():
                names[name] = path
            if path.endswith(".to_out.0"):
                names[path.removesuffix(".0")] = path
    if part == UNET:
        for place, target in _original_places(model):
            inside = {new: old for old, new in INSIDE.items()}
            for path in [path for path in names if path == target or path.startswith(f"{target}.")]:
                rest = path[len(target) + 1 :]
                rest = inside.get(rest, rest) if "downsamplers" in target or "resnets" in target else rest
                names[f"{place}.{rest}" if rest else place] = names[path]
    return {**{name.replace(".", "_"): path for name, path in names.items()}, **names}


def _text_names(path: str) -> Iterator[str]:
    """A text encoder's module, as files have it: transformers before 5 had all under `text_model`."""
    for name in (path, f"text_model.{path}"):
        yield name
        stem, _, last = name.rpartition(".")
        if last in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{stem}.to_{last.removesuffix('_proj')}"


def _original_places(model: Any) -> Iterator[tuple[str, str]]:
    """Places in the original UNet, whose blocks are counted in one row, and the modules they became."""
    yield from ENDS.items()
    count = 1
    for level, block in enumerate(getattr(model, "down_blocks", ())):
        for layer in range(len(block.resnets)):
            yield f"input_blocks.{count}.0", f"down_blocks.{level}.resnets.{layer}"
            yield f"input_blocks.{count}.1", f"down_blocks.{level}.attentions.{layer}"
            count += 1
        yield f"input_blocks.{count}.0", f"down_blocks.{level}.downsamplers.0"
        count += 1
    count = 0
    for level, block in enumerate(getattr(model, "up_blocks", ())):
        for layer in range(len(block.resnets)):
            yield f"output_blocks.{count}.0", f"up_blocks.{level}.resnets.{layer}"
            yield f"output_blocks.{count}.1", f"up_blocks.{level}.attentions.{layer}"
            count += 1
        enlarges = 1 if block.attentions is None else 2
        yield f"output_blocks.{count - 1}.{enlarges}", f"up_blocks.{level}.upsamplers.0"

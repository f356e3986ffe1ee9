"""Autoencoders in a file: alone, under original names or diffusers', or in a whole Stable Diffusion's. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import cast

from gencli.checkpoints.checkpoint import NO_CONFIG, Checkpoint, Contents, Hints, Part, Shapes
from gencli.checkpoints.formats.renaming import Renamed, numbered, open_prefixed, rename, sizes
from gencli.checkpoints.layout import some
from gencli.checkpoints.tensors import Piece, RenamedTensors
from gencli.errors import GencliError
from gencli.models.base import Rename, squeeze_conv

PREFIX = "first_stage_model."
DIFFUSERS, ORIGINAL = "encoder.down_blocks.0.resnets.0.conv1.weight", "encoder.down.0.block.0.conv1.weight"
TINY = {"encoder.layers.0.weight", "decoder.layers.0.weight"}
HALVES, HALF_NAME = ("encoder", "decoder"), re.compile(r"\d{1,5}\.(conv\.\d\.)?(weight|bias)")
TRAINING = ("loss.", "model_ema.")  # what was needed to train one
SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "norm_num_groups", "sample_size")
KIND = r"(weight|bias)"
HALF = r"(encoder|decoder)"
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
ROWS = (
    Rename(rf"(quant_conv|post_quant_conv)\.{KIND}", r"\1.\2"),
    Rename(rf"{HALF}\.(conv_in|conv_out)\.{KIND}", r"\1.\2.\3"),
    Rename(rf"{HALF}\.norm_out\.{KIND}", r"\1.conv_norm_out.\2"),
    Rename(rf"{HALF}\.mid\.block_1\.(norm1|conv1|norm2|conv2)\.{KIND}", r"\1.mid_block.resnets.0.\2.\3"),
    Rename(rf"{HALF}\.mid\.block_2\.(norm1|conv1|norm2|conv2)\.{KIND}", r"\1.mid_block.resnets.1.\2.\3"),
    Rename(rf"{HALF}\.mid\.attn_1\.norm\.{KIND}", r"\1.mid_block.attentions.0.group_norm.\2"),
    Rename(rf"{HALF}\.mid\.attn_1\.(q|k|v)\.weight", r"\1.mid_block.attentions.0.to_\2.weight", squeeze_conv),
    Rename(rf"{HALF}\.mid\.attn_1\.(q|k|v)\.bias", r"\1.mid_block.attentions.0.to_\2.bias"),
    Rename(rf"{HALF}\.mid\.attn_1\.proj_out\.weight", r"\1.mid_block.attentions.0.to_out.0.weight", squeeze_conv),
    Rename(rf"{HALF}\.mid\.attn_1\.proj_out\.bias", r"\1.mid_block.attentions.0.to_out.0.bias"),
)


def level_rows(levels: int, *, from_latents: bool = False, attention: bool = False) -> Iterator[Rename]:
    """Yield the rows of each level. In diffusers the decoder's count from the latents, in the file from the image
    unless `from_latents`. attention: levels may have it."""
    decoder = range(levels) if from_latents else reversed(range(levels))
    for here, there, half, turn, new in (
        *((i, i, "encoder.down", "downsample", "encoder.down_blocks") for i in range(levels)),
        *((i, there, "decoder.up", "upsample", "decoder.up_blocks") for i, there in enumerate(decoder)),
    ):
        old = rf"{half}\.{here}".replace("r.", r"r\.")
        yield Rename(rf"{old}\.block\.(\d+)\.(norm1|conv1|norm2|conv2)\.{KIND}", rf"{new}.{there}.resnets.\1.\2.\3")
        yield Rename(rf"{old}\.block\.(\d+)\.nin_shortcut\.{KIND}", rf"{new}.{there}.resnets.\1.conv_shortcut.\2")
        yield Rename(rf"{old}\.{turn}\.conv\.{KIND}", rf"{new}.{there}.{turn}rs.0.conv.\1")
        for one, other in ATTENTION.items() if attention else ():
            change = None if one == "norm" else squeeze_conv
            yield Rename(rf"{old}\.attn\.(\d+)\.{one}\.{KIND}", rf"{new}.{there}.attentions.\1.{other}.\2", change)


def read_vae(shapes: Shapes, *, size: int, scaling_factor: float) -> tuple[Renamed, list[str]]:
    """Return config and tensors of the autoencoder in `shapes`, and the names that do not belong to one.

    size: width of the images it was made for, in pixels. Raise GencliError for tensors that are missing or misshapen.
    """
    config = _config(shapes, "down", "block") | {
        "act_fn": "silu",
        "sample_size": size,
        "scaling_factor": scaling_factor,
    }
    pieces, unknown = rename(shapes, (*ROWS, *level_rows(len(cast("list[int]", config["block_out_channels"])))))
    return Renamed(config, pieces), unknown


def _config(shapes: Shapes, down: str, blocks: str) -> dict[str, object]:
    """Return the config that the shapes imply. down, blocks: names of the levels and of what they hold. Raise
    GencliError for tensors that are missing or misshapen."""
    levels = [f"encoder.{down}.{level}.{blocks}" for level in range(numbered(shapes, f"encoder.{down}"))]
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [sizes(shapes, f"{level}.0.conv2.weight", 4)[0] for level in levels],
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "in_channels": sizes(shapes, "encoder.conv_in.weight", 4)[1],
        "latent_channels": sizes(shapes, "decoder.conv_in.weight", 4)[1],
        # where levels differ, the weights will not fit
        "layers_per_block": max((numbered(shapes, level) for level in levels), default=0),
        "norm_num_groups": 32,
        "out_channels": sizes(shapes, "decoder.conv_out.weight", 4)[0],
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
    }


def _tiny_config(shapes: Shapes) -> dict[str, object]:
    """Return the config of an AutoencoderTiny. A level is a convolution and the blocks after it; the last has none."""
    config: dict[str, object] = {"_class_name": "AutoencoderTiny"}
    for half in ("encoder", "decoder"):
        blocks: list[int] = []
        for number in sorted({_place(name) for name in shapes if name.startswith(f"{half}.layers.")}):
            if f"{half}.layers.{number}.conv.0.weight" in shapes:
                blocks[-1:] = [blocks[-1] + 1] if blocks else [1]
            else:
                blocks.append(0)
        width = sizes(shapes, f"{half}.layers.0.weight", 4)[0]
        config |= {f"num_{half}_blocks": blocks[:-1], f"{half}_block_out_channels": [width] * (len(blocks) - 1)}
    biases = [name for name in shapes if name.startswith("decoder.layers.") and name.endswith(".bias")]
    last = max(biases, key=_place, default="decoder.layers.0.bias")
    return config | {
        "in_channels": sizes(shapes, "encoder.layers.0.weight", 4)[1],
        "latent_channels": sizes(shapes, "decoder.layers.0.weight", 4)[1],
        "out_channels": sizes(shapes, last, 1)[0],
    }


def _tiny_pair(contents: Contents) -> Part | None:
    """Return the tiny autoencoder of which a file is one half, as its author publishes them (`taesd_encoder.pth`); None
    for other files. The decoder's layers count from 1 there. Raise GencliError if the other half is not beside it."""
    shapes = contents.tensor_file.shapes
    if not shapes or not all(HALF_NAME.fullmatch(name) for name in shapes):
        return None
    half = HALVES["0.weight" not in shapes]
    name = {half: contents.path.name}
    for other in set(HALVES) - {half}:
        before, found, after = name[half].rpartition(half)
        name[other] = before + other + after
        if not found or not contents.has(name[other]):
            wanted = f"{name[other]} must lie beside it" if found else f"its name must say that it is an {half}"
            raise GencliError(f"it is the {half} of a tiny autoencoder alone: {wanted}")
    tensors = open_prefixed(contents, {f"{half}:": file for half, file in name.items()})
    pieces: dict[str, Piece] = {}
    for stored in tensors:
        half, _, rest = stored.partition(":")
        number, _, rest = rest.partition(".")
        place = int(number) - HALVES.index(half) if number.isdecimal() else -1
        pieces[f"{half}.layers.{place}.{rest}"] = Piece(stored)
    config = _tiny_config({new: tensors.shape(piece.source) for new, piece in pieces.items()})
    return Part("vae", "model", contents.path, lambda: config, lambda: RenamedTensors(tensors, pieces))


def _place(name: str) -> int:
    number = name.split(".")[2]
    return int(number) if number.isdecimal() and len(number) < 6 else -1


def is_autoencoder(contents: Contents) -> bool:
    """Return whether a file holds an autoencoder, whole and alone."""
    try:
        return bool(contents.shapes) and bool(read_alone(contents))
    except GencliError:
        return False


def read_autoencoder(contents: Contents, hints: Hints) -> Checkpoint:
    """Read an autoencoder alone."""
    parts = {"vae": read_alone(contents)}
    return Checkpoint(contents, "part", str(parts["vae"].config["_class_name"]), parts, title="autoencoder")


def read_alone(contents: Contents, known: Mapping[str, object] = NO_CONFIG) -> Part:
    """Return the autoencoder in a file, of whatever format. known: the config of the one whose place it takes, which
    says what a file cannot: how latents are scaled, and how many groups its norms have.

    Raise GencliError, in one line, for a broken file and for one that holds no autoencoder, or another thing too.
    """
    try:
        if (pair := _tiny_pair(contents)) is not None:
            return pair
    except GencliError as error:
        raise GencliError(f"{contents.path}: {error.message}", error.hint) from None
    shapes = contents.tensor_file.shapes
    prefix = PREFIX if f"{PREFIX}{ORIGINAL}" in shapes else ""
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    own = {name: shape for name, shape in own.items() if not name.startswith(TRAINING)}
    unknown: list[str] = []
    try:
        if own.keys() >= TINY:
            known, found = NO_CONFIG, Renamed(_tiny_config(own), {name: Piece(name) for name in own})
        elif DIFFUSERS in own:
            quant = {f"use_{name}": f"{name}.weight" in own for name in ("quant_conv", "post_quant_conv")}
            config = _config(own, "down_blocks", "resnets") | {"scaling_factor": 0.18215, **quant}
            found = Renamed(config, {name: Piece(name) for name in own})
        elif ORIGINAL in own:
            found, unknown = read_vae(own, size=512, scaling_factor=0.18215)
        else:
            raise GencliError("it holds no autoencoder that gencli knows")
        if unknown:
            raise GencliError(f"it has tensors that an autoencoder has not: {some(sorted(unknown))}")
    except GencliError as error:
        raise GencliError(f"{contents.path}: {error.message}", error.hint) from None
    found.config |= {key: known[key] for key in SCALING if known.get(key) is not None}
    return found.part(contents, "vae", prefix)

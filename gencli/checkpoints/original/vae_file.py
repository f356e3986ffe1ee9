"""An autoencoder alone in a .safetensors file, under original names or diffusers', or in a whole Stable Diffusion's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gencli.checkpoints.class_file import ClassFile, open_named
from gencli.checkpoints.layout import some
from gencli.checkpoints.original.rows import Part, Shapes, numbered, sizes
from gencli.checkpoints.original.vae import PREFIX, read_vae
from gencli.checkpoints.tensors import Piece
from gencli.errors import GencliError

DIFFUSERS, ORIGINAL = "encoder.down_blocks.0.resnets.0.conv1.weight", "encoder.down.0.block.0.conv1.weight"
TRAINING = ("loss.", "model_ema.")  # what was needed to train one


def open_vae_file(path: Path, known: Mapping[str, Any], *, allow_pickle: bool = False) -> ClassFile:
    """What a file holds as a part "vae". known: the config of the autoencoder that it stands in for, which says what
    a file cannot: how latents are scaled, and how many groups its norms have.

    Raises GencliError, in one line, for a broken file and for one that holds no autoencoder, or another thing too.
    """
    file = open_named(path, allow_pickle=allow_pickle)
    shapes = file.shapes
    prefix = PREFIX if f"{PREFIX}{ORIGINAL}" in shapes else ""
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    own = {name: shape for name, shape in own.items() if not name.startswith(TRAINING)}
    unknown: list[str] = []
    try:
        if DIFFUSERS in own:
            part = Part(_config(own), {name: Piece(name) for name in own})
        elif ORIGINAL in own:
            part, unknown = read_vae(own, size=512, scaling_factor=0.18215)
        else:
            raise GencliError("it holds no autoencoder that gencli knows")
        if unknown:
            raise GencliError(f"it has tensors that an autoencoder has not: {some(sorted(unknown))}")
    except GencliError as error:
        raise GencliError(f"{path}: {error.message}", error.hint) from None
    scaling = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "norm_num_groups", "sample_size")
    config = {**part.config, **{key: known[key] for key in scaling if known.get(key) is not None}}
    pieces = {name: Piece(prefix + piece.source, piece.transform) for name, piece in part.pieces.items()}
    return ClassFile(file, "autoencoder", "", {"vae": Part(config, pieces)}, {})


def _config(shapes: Shapes) -> dict[str, Any]:
    """The config.json that goes with diffusers' names. Raises GencliError for tensors that are missing or misshapen."""
    levels = numbered(shapes, "encoder.down_blocks")
    layers = {numbered(shapes, f"encoder.down_blocks.{level}.resnets") for level in range(levels)}
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [
            sizes(shapes, f"encoder.down_blocks.{level}.resnets.0.conv2.weight", 4)[0] for level in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": sizes(shapes, "encoder.conv_in.weight", 4)[1],
        "latent_channels": sizes(shapes, "decoder.conv_in.weight", 4)[1],
        "layers_per_block": max(layers, default=0),  # where levels differ, the weights will not fit
        "norm_num_groups": 32,
        "out_channels": sizes(shapes, "decoder.conv_out.weight", 4)[0],
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
    }

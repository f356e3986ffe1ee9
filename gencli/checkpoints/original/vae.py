"""The autoencoder of an original file, `first_stage_model.*` → diffusers' AutoencoderKL."""

from __future__ import annotations

from collections.abc import Iterator

from gencli.checkpoints.original.rows import Part, Shapes, linear, numbered, rename, sizes
from gencli.models.base import Rename

PREFIX = "first_stage_model."
KIND = r"(weight|bias)"
HALF = r"(encoder|decoder)"
ROWS = (
    Rename(rf"(quant_conv|post_quant_conv)\.{KIND}", r"\1.\2"),
    Rename(rf"{HALF}\.(conv_in|conv_out)\.{KIND}", r"\1.\2.\3"),
    Rename(rf"{HALF}\.norm_out\.{KIND}", r"\1.conv_norm_out.\2"),
    Rename(rf"{HALF}\.mid\.block_1\.(norm1|conv1|norm2|conv2)\.{KIND}", r"\1.mid_block.resnets.0.\2.\3"),
    Rename(rf"{HALF}\.mid\.block_2\.(norm1|conv1|norm2|conv2)\.{KIND}", r"\1.mid_block.resnets.1.\2.\3"),
    Rename(rf"{HALF}\.mid\.attn_1\.norm\.{KIND}", r"\1.mid_block.attentions.0.group_norm.\2"),
    Rename(rf"{HALF}\.mid\.attn_1\.(q|k|v)\.weight", r"\1.mid_block.attentions.0.to_\2.weight", linear),
    Rename(rf"{HALF}\.mid\.attn_1\.(q|k|v)\.bias", r"\1.mid_block.attentions.0.to_\2.bias"),
    Rename(rf"{HALF}\.mid\.attn_1\.proj_out\.weight", r"\1.mid_block.attentions.0.to_out.0.weight", linear),
    Rename(rf"{HALF}\.mid\.attn_1\.proj_out\.bias", r"\1.mid_block.attentions.0.to_out.0.bias"),
)


def _level_rows(levels: int) -> Iterator[Rename]:
    """Rows of each level; the decoder's are counted from the picture in the file, from the latents in diffusers."""
    for here, there, half, turn, new in (
        *((i, i, "encoder.down", "downsample", "encoder.down_blocks") for i in range(levels)),
        *((i, levels - 1 - i, "decoder.up", "upsample", "decoder.up_blocks") for i in range(levels)),
    ):
        old = rf"{half}\.{here}".replace("r.", r"r\.")
        yield Rename(rf"{old}\.block\.(\d+)\.(norm1|conv1|norm2|conv2)\.{KIND}", rf"{new}.{there}.resnets.\1.\2.\3")
        yield Rename(rf"{old}\.block\.(\d+)\.nin_shortcut\.{KIND}", rf"{new}.{there}.resnets.\1.conv_shortcut.\2")
        yield Rename(rf"{old}\.{turn}\.conv\.{KIND}", rf"{new}.{there}.{turn}rs.0.conv.\1")


def read_vae(shapes: Shapes, *, size: int, scaling_factor: float) -> tuple[Part, list[str]]:
    """Config and tensors of the autoencoder in `shapes`, and the names that are none of an autoencoder.

    size: of the pictures it was made for, in pixels. Raises GencliError for tensors that are missing or misshapen.
    """
    levels = numbered(shapes, "encoder.down")
    layers = {numbered(shapes, f"encoder.down.{level}.block") for level in range(levels)}
    widths = [sizes(shapes, f"encoder.down.{level}.block.0.conv2.weight", 4)[0] for level in range(levels)]
    config = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": sizes(shapes, "encoder.conv_in.weight", 4)[1],
        "latent_channels": sizes(shapes, "decoder.conv_in.weight", 4)[1],
        "layers_per_block": max(layers, default=0),  # where levels differ, the weights will not fit
        "norm_num_groups": 32,
        "out_channels": sizes(shapes, "decoder.conv_out.weight", 4)[0],
        "sample_size": size,
        "scaling_factor": scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    pieces, unknown = rename(shapes, (*ROWS, *_level_rows(levels)))
    return Part(config, pieces), unknown

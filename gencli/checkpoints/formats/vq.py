"""VQ autoencoders under the names of taming-transformers (Esser et al. 2021) → diffusers' VQModel. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Shapes
from gencli.checkpoints.formats.autoencoder import ROWS, TRAINING, level_rows
from gencli.checkpoints.formats.renaming import Renamed, numbered, rename, sizes
from gencli.checkpoints.layout import some
from gencli.errors import GencliError
from gencli.models.base import Rename

if TYPE_CHECKING:
    from torch import Tensor

CODEBOOK = "quantize.embedding.weight"
VQ_PART = "vqmodel"  # what such a part is called, wherever it lies


def unit_rows(weight: Tensor) -> Tensor:
    """Return a codebook whose entries have length 1. The nearest of such is the same whatever a latent's length."""
    from torch.nn.functional import normalize

    return normalize(weight, dim=-1)


def read_vq(shapes: Shapes, *, from_latents: bool = False, unit_codebook: bool = False) -> tuple[Renamed, list[str]]:
    """Return config and tensors of the autoencoder in `shapes`, and the names that do not belong to one.

    from_latents: levels of the decoder count from the latents. unit_codebook: entries are looked up at length 1. There
    need not be an encoder. Raise GencliError for tensors that are missing or misshapen.
    """
    levels = [f"decoder.up.{level}" for level in range(numbered(shapes, "decoder.up"))]
    levels = levels[::-1] if from_latents else levels
    widths = [sizes(shapes, f"{level}.block.0.conv2.weight", 4)[0] for level in levels]
    attended = [f"{level}.attn.0.norm.weight" in shapes for level in levels]
    entries, width = sizes(shapes, CODEBOOK, 2)
    pixels, encodes = sizes(shapes, "decoder.conv_out.weight", 4)[0], "encoder.conv_in.weight" in shapes
    config = {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": ["AttnDownEncoderBlock2D" if one else "DownEncoderBlock2D" for one in attended],
        "encodes": encodes,
        "in_channels": sizes(shapes, "encoder.conv_in.weight", 4)[1] if encodes else pixels,
        "latent_channels": sizes(shapes, "decoder.conv_in.weight", 4)[1],
        "layers_per_block": max((numbered(shapes, f"{level}.block") for level in levels), default=2) - 1,
        "norm_num_groups": 32,
        "num_vq_embeddings": entries,
        "out_channels": pixels,
        "up_block_types": ["AttnUpDecoderBlock2D" if one else "UpDecoderBlock2D" for one in reversed(attended)],
        "vq_embed_dim": width,
    }
    codebook = Rename(CODEBOOK.replace(".", r"\."), CODEBOOK, unit_rows if unit_codebook else None)
    pieces, unknown = rename(
        shapes, (codebook, *ROWS, *level_rows(len(levels), from_latents=from_latents, attention=True))
    )
    return Renamed(config, pieces), unknown


def is_vqgan(contents: Contents) -> bool:
    """Return whether a file holds such an autoencoder, with what trained it or without."""
    names = contents.shapes.keys()
    return "decoder.up.0.block.0.conv1.weight" in names and any(name.startswith("quantize.") for name in names)


def read_vqgan(contents: Contents, hints: Hints) -> Checkpoint:
    """Read last.ckpt of taming-transformers. Its model.yaml says nothing that the shapes do not.

    Raise GencliError for another quantiser, and for tensors that are missing, misshapen or unknown.
    """
    shapes = {name: shape for name, shape in contents.shapes.items() if not name.startswith(TRAINING)}
    if other := [name for name in shapes if name.startswith("quantize.") and name != CODEBOOK]:
        raise GencliError(f"its quantiser is not supported: {some(sorted(other))}", "one with a codebook alone is")
    found, unknown = read_vq(shapes)
    if unknown:
        raise GencliError(f"it has tensors that a VQ autoencoder has not: {some(sorted(unknown))}")
    parts = {VQ_PART: found.part(contents, VQ_PART)}
    return Checkpoint(contents, "part", "VQModel", parts, title="VQ autoencoder")

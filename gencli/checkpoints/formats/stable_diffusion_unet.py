"""The UNet of an original file, `model.diffusion_model.*` → diffusers' UNet2DConditionModel.

The file counts all its blocks in one row; diffusers counts levels, and layers within them. What the blocks hold tells
where a level begins: a resnet, an attention after it, or only a change of size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gencli.checkpoints.checkpoint import Shapes
from gencli.checkpoints.formats.renaming import Renamed, numbered, sizes
from gencli.checkpoints.tensors import Piece
from gencli.errors import GencliError

PREFIX = "model.diffusion_model."
# A module's place in the file, and what is inside it.
NAME = re.compile(
    r"((?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.\d+|time_embed\.\d+|label_emb\.0\.\d+|out\.\d+)\.(.+)"
)
ENDS = {  # places that are the same in every UNet
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
# What differs inside a place; the names inside an attention are the same.
INSIDE = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "op": "conv",  # of a downsampler
}


@dataclass(frozen=True)
class Level:
    """One size of the image on the way down: width, number of resnets, and transformer blocks after each (0: none)."""

    width: int
    layers: int
    depth: int


def read_unet(shapes: Shapes, config: dict[str, object], *, head: int | None) -> tuple[Renamed, list[str]]:
    """Return config and tensors of the UNet in `shapes`, and the names that do not belong to one.

    config: what no shape tells about the family. head: width of an attention head; None for 8 heads at every width.
    Raise GencliError for tensors that are missing or misshapen, and for levels that no config describes.
    """
    levels = _levels(shapes)
    layers = levels[0].layers
    if wrong := [level.layers for level in levels if level.layers != layers]:
        raise GencliError(f"its UNet has {layers} resnets in one level and {wrong[0]} in another")
    count, wanted = numbered(shapes, "output_blocks"), sum(level.layers + 1 for level in levels)
    if count != wanted:
        raise GencliError(f"its UNet has {count} blocks up for {wanted} wanted")
    places = dict(original_places(levels))
    part, unknown = Renamed(_config(shapes, levels, config, head)), []
    for name in shapes:
        match = NAME.fullmatch(name)
        if match is None or match[1] not in places:
            unknown.append(name)
            continue
        inner, _, kind = match[2].rpartition(".")
        inside = ".".join(one for one in (INSIDE.get(inner, inner), kind) if one)
        part.take(f"{places[match[1]]}.{inside}", Piece(name))
    return part, unknown


def _levels(shapes: Shapes) -> list[Level]:
    found: list[list[tuple[int, int]]] = [[]]  # level → (width, depth) of each of its resnets
    for block in range(1, numbered(shapes, "input_blocks")):
        place = f"input_blocks.{block}"
        if f"{place}.0.op.weight" in shapes:
            found.append([])
        else:
            width = sizes(shapes, f"{place}.0.out_layers.3.weight", 4)[0]
            found[-1].append((width, numbered(shapes, f"{place}.1.transformer_blocks")))
    for number, level in enumerate(found):
        if not level or len(set(level)) > 1:
            raise GencliError(f"level {number} of its UNet is not of one width and one kind of block")
    return [Level(level[0][0], len(level), level[0][1]) for level in found]


def original_places(levels: Sequence[Level]) -> Iterator[tuple[str, str]]:
    """Yield (place in the original UNet, module in diffusers'), of which a UNet need not have all.

    Up, each level has a resnet more; what enlarges the image follows the last one, and its attention if there is one.
    """
    yield from ENDS.items()
    block = 1
    for number, level in enumerate(levels):
        for layer in range(level.layers):
            yield f"input_blocks.{block}.0", f"down_blocks.{number}.resnets.{layer}"
            yield f"input_blocks.{block}.1", f"down_blocks.{number}.attentions.{layer}"
            block += 1
        yield f"input_blocks.{block}.0", f"down_blocks.{number}.downsamplers.0"
        block += 1
    block = 0
    for number, level in enumerate(reversed(levels)):
        for layer in range(level.layers + 1):
            yield f"output_blocks.{block}.0", f"up_blocks.{number}.resnets.{layer}"
            if level.depth:
                yield f"output_blocks.{block}.1", f"up_blocks.{number}.attentions.{layer}"
            block += 1
        yield f"output_blocks.{block - 1}.{2 if level.depth else 1}", f"up_blocks.{number}.upsamplers.0"


def _config(shapes: Shapes, levels: list[Level], family: dict[str, object], head: int | None) -> dict[str, object]:
    widths = [level.width for level in levels]
    if head and (odd := [width for width in widths if width % head or not width]):
        raise GencliError(f"its UNet is {odd[0]} wide at a level, no multiple of its heads of {head}")
    down = ["CrossAttnDownBlock2D" if level.depth else "DownBlock2D" for level in levels]
    up = ["CrossAttnUpBlock2D" if level.depth else "UpBlock2D" for level in reversed(levels)]
    middle = numbered(shapes, "middle_block.1.transformer_blocks")
    depths = [level.depth or 1 for level in levels[:-1]] + [levels[-1].depth or middle]
    if depths[-1] != middle:
        raise GencliError(f"its UNet has {middle} transformer blocks in the middle, and {depths[-1]} in the last level")
    config = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": [width // head for width in widths] if head else 8,
        "block_out_channels": widths,
        "center_input_sample": False,
        "cross_attention_dim": sizes(shapes, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": sizes(shapes, "input_blocks.0.0.weight", 4)[1],
        "layers_per_block": levels[0].layers,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": sizes(shapes, "out.2.weight", 4)[0],
        "up_block_types": up,
        "use_linear_projection": len(shapes.get("middle_block.1.proj_in.weight", ())) == 2,
    }
    if set(depths) != {1}:
        config["transformer_layers_per_block"] = depths
    return config | family

"""Qwen 2.5 VL with its vision tower: states of texts about images, as image models read them (Qwen-Image-Edit).

B: batch, T: tokens, C: hidden_size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.models import qwen2_5_vl
from gencli.models.base import Rename
from gencli.models.flow_blocks import grid
from gencli.models.qwen2_5_vl import SECTIONS, Qwen25VL, Qwen25VLConfig
from gencli.models.qwen2_5_vl_vision import VisionConfig, VisionTower, of_one_image, vision_config
from gencli.models.rope import CosSin


@dataclass(frozen=True, kw_only=True)
class Qwen25VLReaderConfig(Qwen25VLConfig):
    """config.json with the vision tower's. sections: pairs of a head that time, row and column turn."""

    vision_config: VisionConfig
    image_token_id: int = 151655
    sections: tuple[int, ...] = (16, 24, 24)

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        text = raw.get("text_config")
        inner = {**raw, **text} if isinstance(text, Mapping) else raw
        rope = inner.get("rope_scaling") or inner.get("rope_parameters")
        found = rope.get(SECTIONS) if isinstance(rope, Mapping) else None
        told: dict[str, object] = {"sections": tuple(found)} if isinstance(found, list) else {}
        told |= {"image_token_id": raw["image_token_id"]} if "image_token_id" in raw else {}
        return {**super().prepare(raw), **told, "vision_config": vision_config(raw)}

    def check(self) -> None:
        super().check()
        if len(self.sections) != 3 or sum(self.sections) != self.head_size // 2:
            raise GencliError(f"config.json: {SECTIONS} = {self.sections!r:.80} does not fit heads of {self.head_size}")
        if self.vision_config.out_hidden_size != self.hidden_size:
            width = self.vision_config.out_hidden_size
            raise GencliError(f"config.json: out_hidden_size = {width} is not hidden_size = {self.hidden_size}")


class Qwen25VLReader(Qwen25VL):
    config: Qwen25VLReaderConfig

    def __init__(self, config: Qwen25VLReaderConfig):
        super().__init__(config)
        self.visual = VisionTower(config.vision_config)

    def look(self, pixels: Tensor) -> Tensor:
        """Return the states (N, C) that stand for an image (3, H, W)."""
        return self.visual(pixels.to(self.device, self.compute_dtype))

    def read(self, ids: Tensor, images: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Return the states after the last norm (1, T, C) of ids (1, T), in which as many `image_token_id` follow each
        other as each of `images` (N, C) has states, of rows and columns `shapes`."""
        x = self.embed(ids)
        if images:
            at = (ids == self.config.image_token_id)[..., None]
            x = x.masked_scatter(at, torch.cat(list(images)).to(x.dtype))
        turns = self._turns(self._places(ids[0].tolist(), shapes), x)
        for layer in self.model.layers:
            x = layer(x, turns, None)
        return self.model.norm(x)

    def _places(self, ids: Sequence[int], shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Time, row and column (3, T) of tokens: one and the same of words, which go on behind the longer side of an
        image."""
        parts, at, place, left = [], 0, 0, list(shapes)
        while at < len(ids):
            if ids[at] == self.config.image_token_id:
                rows, columns = left.pop(0)
                parts.append(torch.nn.functional.pad(grid(rows, columns, torch.device("cpu")), (1, 0)).T + place)
                at, place = at + rows * columns, place + max(rows, columns)
            else:
                parts.append(torch.full((3, 1), place))
                at, place = at + 1, place + 1
        return torch.cat(parts, dim=1)

    def _turns(self, places: Tensor, like: Tensor) -> CosSin:
        """cos and signed sin (T, 1, D), where each axis turns pairs of its own."""
        config = self.config
        half = config.head_size // 2
        frequencies = config.rope_parameters.rope_theta ** -(torch.arange(half, dtype=torch.float32) / half)
        axis = torch.repeat_interleave(torch.arange(3), torch.tensor(config.sections))
        angles = places[axis].T.float() * frequencies  # (T, D / 2)
        cos, sin = torch.cat((angles.cos(),) * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1)
        return cast(CosSin, tuple(one[:, None].to(like.device, like.dtype) for one in (cos, sin)))


OWN = (
    Rename(r"(?:model\.)?visual\.patch_embed\.proj\.weight", "visual.patch_embed.proj.weight", of_one_image),
    Rename(r"(?:model\.)?visual\.(.*)", r"visual.\1"),
)
LAYOUT = replace(qwen2_5_vl.LAYOUT, renames=(*OWN, *qwen2_5_vl.LAYOUT.renames), drops=qwen2_5_vl.LAYOUT.drops[:-1])
Config, Model = Qwen25VLReaderConfig, Qwen25VLReader

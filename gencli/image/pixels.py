"""The recipe of pictures that are drawn pixel by pixel: load → read the rows that are kept → pick colours, row by row.

A picture is a text whose tokens are colours: the decoder's cache, the loop and the samplers are those of text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gencli.checkpoints import build
from gencli.devices import pick_device, pick_dtype
from gencli.image.files.pictures import to_picture
from gencli.image.generate import Denoised, Picture
from gencli.image.palette import Palette
from gencli.image.request import ImageRequest
from gencli.models.module import describe
from gencli.text.batch import Batch
from gencli.text.request import TextRequest


@dataclass(frozen=True)
class PixelModel:
    """A palette and the decoder that picks from it, ready to draw."""

    palette: Palette
    module: Any

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def dtype(self) -> torch.dtype:
        return self.module.compute_dtype

    def describe(self) -> str:
        """The model in one line: its size, precision, device and threads."""
        return describe(self.palette.name, [self.module])

    def decode(self, x0: Tensor, *, tiled: bool = False) -> Image.Image:
        """The picture of one (1, 3, h, w), as far as it is drawn."""
        return to_picture(x0[0])

    def sketch(self, x0: Tensor) -> Image.Image:
        """The same: there is nothing to decode."""
        return to_picture(x0[0])


def load(palette: Palette, *, device: str = "auto", dtype: str = "auto") -> PixelModel:
    """Load the weights; device and dtype are names as `gencli.devices` knows them.

    Raises GencliError for weights that are broken or do not fit.
    """
    place = pick_device(device)
    config, tensors = palette.part.config, palette.part.tensors()
    precision = pick_dtype(dtype, place, {tensors.dtype(name) for name in tensors})
    module = build.load(palette.folder, device=place, dtype=precision, config=config, tensors=tensors)
    return PixelModel(palette, module)


def generate(
    model: PixelModel, request: ImageRequest, *, init: Image.Image | None = None
) -> Iterator[Denoised | Picture]:
    """Draw `request.count` pictures, `request.batch` at a time. A step is a row; `x0` is grey where nothing is yet.

    `request` is a resolved one. Picture i picks with `torch.Generator("cpu")` seeded with `request.seed + i`, one
    number a pixel. With `init` its first `request.keep_rows` rows stay, in the palette's colours.
    Raises GencliError for NaN from the model.
    """
    width, _ = model.palette.size
    kept = [] if init is None else model.palette.encode(init)[: (request.keep_rows or 0) * width]
    for first in range(0, request.count, request.batch):
        numbers = range(first, min(first + request.batch, request.count))
        yield from _together(model, request, kept, numbers)


def _together(
    model: PixelModel, request: ImageRequest, kept: list[int], numbers: range
) -> Iterator[Denoised | Picture]:
    """Pictures that go through the model as one batch."""
    width, height = model.palette.size
    generators = [torch.Generator("cpu").manual_seed((request.seed or 0) + number) for number in numbers]
    asked = TextRequest.of(temperature=request.temperature, top_k=request.top_k, top_p=request.top_p)
    left = width * height - len(kept)
    batch = Batch(model, asked.resolve({}), [model.module.begin, *kept], generators, left)
    rows = left // width
    for row in range(rows):
        for column in range(width):
            if row or column:
                batch.advance()
            batch.pick()
        yield Denoised(row, rows, numbers[0], _so_far(model.palette, batch.ids[:, 1:].cpu().numpy()))
    for number, ids in zip(numbers, batch.ids[:, 1:].tolist(), strict=True):
        made = request.item(number, dtype=str(model.dtype).removeprefix("torch."))
        yield Picture(number, model.palette.decode(ids), made)


def _so_far(palette: Palette, ids: np.ndarray) -> Tensor:
    """Colours (B, N) of the first N pixels → (B, 3, h, w) in -1..1."""
    width, height = palette.size
    pixels = np.zeros((len(ids), height * width, 3), np.float32)
    pixels[:, : ids.shape[1]] = palette.colours[ids]
    return torch.from_numpy(pixels).view(-1, height, width, 3).permute(0, 3, 1, 2)

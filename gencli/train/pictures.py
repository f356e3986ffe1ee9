"""Images as the image recipe reads them, from a zip or folder; `captions` finds their captions."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from gencli.errors import GencliError


@dataclass(frozen=True)
class Caption:
    """An image's label, words that also fit it, its group, and other names for it."""

    label: str
    tags: tuple[str, ...]
    group: str
    names: tuple[str, ...] = ()


def read_pictures(source: Path, names: list[str], size: int) -> Tensor:
    """Return the named images of a zip or folder, on white, uint8 (N, 3, size, size), cropped to squares.

    Raise GencliError for one that is missing or not an image.
    """
    pictures = torch.empty(len(names), 3, size, size, dtype=torch.uint8)
    for index, (name, data) in enumerate(zip(names, _files(source, names), strict=True)):
        try:
            with Image.open(io.BytesIO(data)) as opened:
                picture = opened.convert("RGBA")
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:  # Pillow's, for what is broken
            raise GencliError(f"{source}: {name} is no picture: {error}") from None
        ground = Image.new("RGBA", picture.size, "white")
        ground.alpha_composite(picture)
        square = ground.convert("RGB")
        if square.size != (size, size):
            square = ImageOps.fit(square, (size, size), Image.Resampling.LANCZOS)
        pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
        pictures[index] = pixels.view(size, size, 3).permute(2, 0, 1)
    return pictures


def to_signal(pictures: Tensor) -> Tensor:
    """Map uint8 0..255 to float32 -1..1, which the autoencoder reads."""
    return pictures.float() / 127.5 - 1


def _files(source: Path, names: list[str]) -> Iterator[bytes]:
    if source.is_dir():
        for name in names:
            try:
                yield (source / name).read_bytes()
            except FileNotFoundError:
                raise GencliError(f"{source} has no {name}") from None
        return
    with zipfile.ZipFile(source) as archive:
        for name in names:
            try:
                yield archive.read(name)
            except KeyError:
                raise GencliError(f"{source} has no {name}") from None

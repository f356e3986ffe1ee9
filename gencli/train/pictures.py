"""Captioned pictures as the image recipe reads them: a zip or folder of pictures, and captions in JSON lines."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gencli.errors import GencliError


@dataclass(frozen=True)
class Caption:
    """What is known of one picture: its label, and single words that also fit it."""

    label: str
    tags: tuple[str, ...]
    group: str


def read_captions(path: Path) -> list[tuple[str, Caption]]:
    """(file name, caption) of each line `{"file", "label", "tags", "group"}`; only file and label must be there."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append((row["file"], Caption(row["label"], tuple(row.get("tags", ())), row.get("group", ""))))
        except (ValueError, KeyError, TypeError):
            raise GencliError(f"{path}, line {number}: no JSON object with keys 'file' and 'label'") from None
    return rows


def read_pictures(source: Path, names: list[str], size: int) -> Tensor:
    """The named pictures from a zip or folder, on white, as uint8 (N, 3, size, size)."""
    pictures = torch.empty(len(names), 3, size, size, dtype=torch.uint8)
    for index, data in enumerate(_files(source, names)):
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        ground.alpha_composite(picture)
        square = ground.convert("RGB")
        if square.size != (size, size):
            square = square.resize((size, size), Image.Resampling.LANCZOS)
        pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
        pictures[index] = pixels.view(size, size, 3).permute(2, 0, 1)
    return pictures


def to_signal(pictures: Tensor) -> Tensor:
    """uint8 (…) 0..255 → float32 (…) -1..1, what the autoencoder reads."""
    return pictures.float() / 127.5 - 1


def _files(source: Path, names: list[str]) -> Iterator[bytes]:
    if source.is_dir():
        yield from ((source / name).read_bytes() for name in names)
        return
    with zipfile.ZipFile(source) as archive:
        yield from (archive.read(name) for name in names)

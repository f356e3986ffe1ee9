"""A few drawings with captions, for a picture recipe that takes seconds."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = ("red", "green", "blue", "black", "gray", "orange")


def make_pictures(folder: Path) -> Path:
    """A zip of six circles with their metadata, one of another size; all around them is transparent."""
    rows = []
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for number, color in enumerate(COLORS):
            size = 32 if number == 0 else 64
            picture = Image.new("RGBA", (size, size), (0, 0, 0, 0))
            ImageDraw.Draw(picture).ellipse((size // 8, size // 8, size - 9, size - 9), fill=color)
            picture.save(folder / "one.png")
            archive.write(folder / "one.png", f"{color}.png")
            rows.append({"file_name": f"{color}.png", "text": f"{color} circle", "tags": ["round", color]})
        archive.writestr("metadata.jsonl", "\n".join(map(json.dumps, rows)))
    return folder / "pictures.zip"

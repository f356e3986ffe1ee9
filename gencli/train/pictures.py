"""Images as the image recipe reads them, from a zip or folder; `captions` finds their captions."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from gencli.errors import GencliError
from gencli.json_files import SIZE_LIMIT, check_head, check_no_pointer
from gencli.stderr import without_stderr


@dataclass(frozen=True)
class Caption:
    """An image's label, words that also fit it, its group, and other names for it."""

    label: str
    tags: tuple[str, ...]
    group: str
    names: tuple[str, ...] = ()


class ImageFiles:
    """The files of a zip or folder: `names`, sorted, and what they hold."""

    def __init__(self, path: Path):
        """Raise GencliError for a file that is no zip."""
        self.path, self._archive = path, None
        if path.is_dir():
            self.names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
            return
        try:
            check_head(path)
            self._archive = zipfile.ZipFile(path)
            self.names = sorted(info.filename for info in self._archive.infolist() if not info.is_dir())
        except OSError as error:
            raise GencliError(f"cannot read {path}: {error.strerror}") from None
        except GencliError:
            raise
        except Exception:  # the library raises many kinds for what is broken
            raise GencliError(f"{path} is not a folder and no zip", "images are taken from either") from None

    def read(self, name: str) -> bytes:
        """Return the bytes of a file. Raise GencliError for one that is missing, broken, encrypted or too large."""
        where = f"{self.path}: {name}"
        try:
            size = (self.path / name).stat().st_size if self._archive is None else self._archive.getinfo(name).file_size
            if size > SIZE_LIMIT:
                raise GencliError(f"{where} has {size} bytes, more than any image or caption")
            data = (self.path / name).read_bytes() if self._archive is None else self._archive.read(name)
            check_no_pointer(data, where)
            return data
        except (FileNotFoundError, KeyError):
            raise GencliError(f"{self.path} has no {name}") from None
        except GencliError:
            raise
        except Exception as error:  # the library raises many kinds for what is broken
            raise GencliError(f"{where} cannot be read: {' '.join(str(error).split())[:120]}") from None


def read_pictures(source: Path, names: list[str], size: int) -> Tensor:
    """Return the named images of a zip or folder, on white, uint8 (N, 3, size, size), cropped to squares.

    Raise GencliError for one that is missing or not an image.
    """
    pictures = torch.empty(len(names), 3, size, size, dtype=torch.uint8)
    files = ImageFiles(source)
    for index, name in enumerate(names):
        data = files.read(name)
        try:
            with without_stderr(), Image.open(io.BytesIO(data)) as opened:
                picture = opened.convert("RGBA")
        except UnidentifiedImageError:  # whose own words are of the bytes in memory
            raise GencliError(f"{source}: {name} is not an image", "its format is unknown, or it is broken") from None
        except Exception as error:  # Pillow raises many kinds for what is broken
            raise GencliError(f"{source}: {name} is not an image: {' '.join(str(error).split())[:120]}") from None
        ground = Image.new("RGBA", picture.size, "white")
        ground.alpha_composite(picture)
        square = ground.convert("RGB")
        if square.size != (size, size):
            square = ImageOps.fit(square, (size, size), Image.Resampling.LANCZOS)
        pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
        pictures[index] = pixels.view(size, size, 3).permute(2, 0, 1)
    return pictures


def to_tensor(image: np.ndarray) -> Tensor:
    """Return an image (H, W, 3) uint8 as (1, 3, H, W)."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None]


def to_signal(pictures: Tensor) -> Tensor:
    """Map uint8 0..255 to float32 -1..1, which the autoencoder reads."""
    return pictures.float() / 127.5 - 1

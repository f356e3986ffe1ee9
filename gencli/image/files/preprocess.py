"""preprocessor_config.json: how an image becomes what a model looks at, by Pillow as in transformers. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

import numpy as np
from PIL import Image

from gencli.errors import GencliError
from gencli.json_files import read_json
from gencli.options import make

FILE = "preprocessor_config.json"
NEW_FILE = "processor_config.json"  # transformers 5 writes it, with the other's content under IMAGE
IMAGE = "image_processor"
FILE_LIMIT = 2**22  # bytes; a palette of 512 colours takes 32,000
SIDE_LIMIT = 4096  # pixels a side of what a model looks at
PIXEL_LIMIT = 2**26  # of an image on the way there
# Says nothing about the pixels, or what gencli does in any case.
INERT = frozenset(
    """image_processor_type feature_extractor_type processor_class clusters do_color_quantize do_convert_rgb data_format
    input_data_format device return_tensors disable_grouping default_to_square image_seq_length""".split()
)
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
VALUES = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")

# What transformers' CLIPImageProcessor does where the file says nothing.
CLIP: dict[str, object] = {
    "do_resize": True,
    "size": 224,
    "resample": Image.Resampling.BICUBIC,
    "do_center_crop": True,
    "crop_size": 224,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


@dataclass(frozen=True)
class Square:
    """All of an image in the middle of a square, as for Janus. least: pixels of its shorter side, whatever its shape.
    ground: the colour around it."""

    side: int
    least: int
    ground: tuple[int, int, int]

    def __call__(self, picture: Image.Image, resample: int) -> Image.Image:
        """Return (side, side) pixels of an image in RGB."""
        factor = self.side / max(picture.size)
        width, height = (min(max(round(one * factor), self.least), self.side) for one in picture.size)
        whole = Image.new("RGB", (self.side, self.side), self.ground)
        whole.paste(picture.resize((width, height), resample), ((self.side - width) // 2, (self.side - height) // 2))
        return whole


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image, in this order; what is None is left out.

    shortest: its shorter side becomes this long, its shape stays; or else size: (height, width) whatever its shape.
    crop: the middle (height, width), with black around it where there is less. square: all of it within a square.
    scale: of the values 0..255. mean, std: of each channel.
    """

    shortest: int | None = None
    size: tuple[int, int] | None = None
    resample: int = Image.Resampling.BICUBIC
    crop: tuple[int, int] | None = None
    square: Square | None = None
    scale: float | None = 1 / 255
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """An image → float32 (3, H, W). Raises GencliError for one so narrow that it would become endless."""
        picture = picture.convert("RGB")
        height, width = self._resized(picture)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), self.resample)
        if self.crop is not None:
            picture = _crop(picture, *self.crop)
        if self.square is not None:
            picture = self.square(picture, self.resample)
        pixels = np.asarray(picture)
        if self.scale is not None:
            pixels = (pixels.astype(np.float64) * self.scale).astype(np.float32)
        pixels = pixels.astype(np.float32)
        if self.mean is not None:
            pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _resized(self, picture: Image.Image) -> tuple[int, int]:
        """Height and width after the first step."""
        if self.size is not None:
            return self.size
        if self.shortest is None:
            return picture.height, picture.width
        short, long = sorted(picture.size)
        other = int(self.shortest * long / short)
        if self.shortest * other > PIXEL_LIMIT:
            raise GencliError(f"an image of {picture.width}x{picture.height} pixels is too narrow to be looked at")
        return (other, self.shortest) if picture.height > picture.width else (self.shortest, other)


def _crop(picture: Image.Image, height: int, width: int) -> Image.Image:
    """The middle. An image that is smaller gets black around it."""
    top, left = (picture.height - height) / 2, (picture.width - width) / 2
    # Rounded as transformers rounds: a cut down, a border up.
    top, left = math.floor(top), math.floor(left)
    return picture.crop((left, top, left + width, top + height))


def read_settings(folder: Path) -> dict[str, object]:
    """The settings for images in a checkpoint's folder. Raises GencliError when there are none."""
    new = not (folder / FILE).is_file() and (folder / NEW_FILE).is_file()
    file = folder / (NEW_FILE if new else FILE)
    if file.is_file() and file.stat().st_size > FILE_LIMIT:
        raise GencliError(f"{file}: {file.stat().st_size} bytes is too large for settings")
    if not file.exists():
        hint = "it says how images are scaled and cut: fetch it from where the model came"
        raise GencliError(f"{folder} has no {FILE}", hint)
    raw = read_json(file)
    settings = raw.get(IMAGE) if new else raw
    if not isinstance(settings, dict):
        raise GencliError(f"{file} has no settings for images ({IMAGE})")
    return settings


def from_settings(
    raw: Mapping[str, object], defaults: Mapping[str, object], where: str = FILE, *, square: bool = False
) -> Preprocessing:
    """Settings as a processor's class has them, with its `defaults` for what they leave out.

    square: a `size` that is one number, as in old files, is that of both sides, and not that of the shorter one.

    Raises GencliError for a key that is not known, and for a value that makes no sense.
    """
    for key, value in raw.items():
        if key not in (*STEPS, *VALUES) and key not in INERT and not key.startswith("_") and value not in (None, False):
            raise GencliError(
                f"{where}: {key} = {value!r:.60} is not supported",
                "it may change the numbers, so gencli does not guess",
            )
    values = {**defaults, **{key: value for key, value in raw.items() if value is not None}}
    for key in STEPS:
        if not isinstance(values.get(key, False), bool):
            raise GencliError(f"{where}: {key} = {values[key]!r:.60} is neither true nor false")
    found: dict[str, object] = {"resample": values["resample"], "scale": None}
    if not isinstance(found["resample"], int) or found["resample"] not in list(Image.Resampling):
        raise GencliError(f"{where}: resample = {found['resample']!r:.60} is none of Pillow's filters, 0 to 5")
    if values.get("do_resize"):
        found |= _size(values["size"], where, square=square)
    if values.get("do_center_crop"):
        found["crop"] = _rectangle(values["crop_size"], "crop_size", where)
    if values.get("do_rescale"):
        found["scale"] = _numbers([values["rescale_factor"]], "rescale_factor", where)[0]
    if values.get("do_normalize"):
        found["mean"] = _numbers(values["image_mean"], "image_mean", where)
        found["std"] = std = _numbers(values["image_std"], "image_std", where)
        if not all(std):
            raise GencliError(f"{where}: image_std = {values['image_std']!r:.60} would divide by zero")
    return make(Preprocessing, found)


def janus_settings(folder: Path) -> Preprocessing:
    """Return the settings in a Janus's folder, of transformers' layout or DeepSeek's. Raise GencliError as
    `from_settings`, and when there are none."""
    raw = read_settings(folder)
    own = ("size", "image_size", "min_size", "background_color", "do_resize", "do_pad")
    rest = {key: value for key, value in raw.items() if key not in own}
    found = from_settings(rest, {**CLIP, "do_resize": False, "do_center_crop": False}, str(folder / FILE))
    side = _rectangle(raw.get("image_size") or raw.get("size") or 384, "size", FILE)[0]
    least, mean = raw.get("min_size", 14), (found.mean or (0.5,)) * 3
    ground = raw.get("background_color") or [int(255 * one) for one in mean[:3]]
    values = [least, *ground] if isinstance(ground, list) and len(ground) == 3 else [-1]
    bytes_ = [one for one in values if type(one) is int and 0 <= one <= 255]
    if len(bytes_) < len(values) or not all(raw.get(key, True) is True for key in ("do_resize", "do_pad")):
        raise GencliError(f"{folder / FILE}: min_size, background_color, do_resize or do_pad is not supported")
    return replace(found, square=Square(side, bytes_[0], (bytes_[1], bytes_[2], bytes_[3])))


def _size(value: object, where: str, *, square: bool) -> dict[str, object]:
    """`size`: a number in old files, a table in new ones."""
    if isinstance(value, dict) and set(value) == {"shortest_edge"} and _is_side(value["shortest_edge"]):
        return {"shortest": value["shortest_edge"]}
    if _is_side(value) and not square:
        return {"shortest": value}
    return {"size": _rectangle(value, "size", where)}


def _rectangle(value: object, name: str, where: str) -> tuple[int, int]:
    """(height, width). Raises GencliError."""
    if _is_side(value):
        return value, value
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        height, width = value["height"], value["width"]
        if _is_side(height) and _is_side(width):
            return height, width
    raise GencliError(f"{where}: {name} = {value!r:.80} is not an image size (1 to {SIDE_LIMIT} a side)")


def _is_side(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= SIDE_LIMIT


def _numbers(value: object, name: str, where: str) -> tuple[float, ...]:
    """One number, or three. Raises GencliError."""
    items = value if isinstance(value, list | tuple) else [value]
    numbers = [float(item) for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
    if len(items) not in (1, 3) or len(numbers) != len(items) or not all(map(math.isfinite, numbers)):
        raise GencliError(f"{where}: {name} = {value!r:.80} is not one number or three")
    return tuple(numbers)

"""More captioned images made from the data's, whose captions stay true: rotated a little, recoloured, in pairs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from PIL import Image

from gencli.train.pictures import Caption

CaptionedImage = tuple[Caption, np.ndarray]
"""A caption and its image (H, W, 3), uint8."""

# name → hue in degrees, factor on saturation, exponent and factor on brightness
COLORS: dict[str, tuple[float, float, float, float]] = {
    "red": (2, 1.0, 1.0, 1.0),
    "orange": (28, 1.0, 0.7, 1.0),
    "yellow": (48, 1.0, 0.4, 1.0),
    "green": (115, 0.85, 1.0, 0.9),
    "blue": (212, 1.0, 1.0, 1.0),
    "purple": (280, 0.8, 1.0, 0.85),
    "pink": (338, 0.55, 0.5, 1.0),
    "brown": (20, 0.8, 1.0, 0.6),
    "black": (0, 0.1, 1.5, 0.3),
    "gray": (0, 0.05, 1.0, 0.7),
}
FIXED = ("people", "smileys")  # groups whose colours mean something: nobody's face is repainted
BAND = 40.0  # degrees around its commonest hue that count as a picture's own colour
SATURATED = 0.25
VIVID = 0.7  # mean saturation to which a dull picture is lifted before it is repainted
PAIR_WORDS = 2  # words of a name that may stand in a pair
OWN_SHARE = 0.6  # of what is drawn, for a picture to be "a red one"


ANGLE, SCALE, SHIFT = 6.0, 0.07, 0.02  # at most: degrees, share of the size, share of the side
HUE, GAMMA = 8.0, 0.35  # at most: degrees, octaves of the exponent on brightness


def varied(picture: np.ndarray, rng: random.Random) -> np.ndarray:
    """Return an image (H, W, 3) uint8 rotated, scaled and shifted a little on white, its hues and lightness changed.

    So little that a clock's time, an arrow's direction and the name of a colour stay true. Nothing is mirrored.
    """
    height, width = picture.shape[:2]
    angle, scale = math.radians(rng.uniform(-ANGLE, ANGLE)), 1 + rng.uniform(-SCALE, SCALE)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    x, y = width / 2, height / 2
    to_x, to_y = x + rng.uniform(-SHIFT, SHIFT) * width, y + rng.uniform(-SHIFT, SHIFT) * height
    matrix = (cos, sin, x - cos * to_x - sin * to_y, -sin, cos, y + sin * to_x - cos * to_y)
    moved = Image.fromarray(picture).transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor="white"
    )
    hsv = np.asarray(moved.convert("HSV"), dtype=np.float32)
    hue = (hsv[..., 0] + rng.uniform(-HUE, HUE) * 256 / 360) % 256
    value = 255 * (hsv[..., 2] / 255) ** 2 ** rng.uniform(-GAMMA, GAMMA)
    painted = np.stack([hue, hsv[..., 1], value], -1).astype(np.uint8)
    return np.asarray(Image.fromarray(painted, "HSV").convert("RGB"))


def recolored(caption: Caption, picture: np.ndarray, rng: random.Random, count: int) -> Iterator[CaptionedImage]:
    """Yield up to `count` copies of an image (H, W, 3) uint8 in other colours; none if no single colour prevails.

    The new colour replaces the one in the caption, or precedes the caption.
    """
    if caption.group.startswith(FIXED):
        return
    hsv = np.asarray(Image.fromarray(picture).convert("HSV"), dtype=np.float32) / 255
    hue, saturation, brightness = hsv[..., 0] * 360, hsv[..., 1], hsv[..., 2]
    vivid = saturation > SATURATED
    drawn = vivid | (brightness < 0.9)
    if vivid.sum() < 100:
        return
    counts, edges = np.histogram(hue[vivid], bins=36, range=(0, 360))
    around = counts + np.roll(counts, 1) + np.roll(counts, -1)
    own = float(edges[int(around.argmax())]) + 5
    away = (hue - own + 180) % 360 - 180  # degrees from the picture's own hue, −180..180
    band = vivid & (np.abs(away) < BAND)
    if band.sum() < OWN_SHARE * drawn.sum():
        return
    there = set(caption.label.split()) & set(COLORS)
    names = [name for name, (at, *_) in COLORS.items() if name not in there and not _is(name, at, own, there)]
    lift = max(1.0, VIVID / float(saturation[band].mean()))
    for name in rng.sample(names, min(count, len(names))):
        to, more, exponent, factor = COLORS[name]
        deep = np.clip(saturation * lift, 0, 1) * more
        painted = np.stack([(to + away / 3) % 360 / 360, deep, factor * brightness**exponent], -1)
        image = Image.fromarray((np.where(band[..., None], painted, hsv) * 255).round().astype(np.uint8), "HSV")
        yield _named(caption, name), np.asarray(image.convert("RGB"))


def _is(name: str, hue: float, own: float, there: set[str]) -> bool:
    """Return whether an image without a colour in its name has this colour already."""
    apart = abs((hue - own + 180) % 360 - 180)
    return not there and apart < 20 and name not in ("black", "gray", "brown")


def _named(caption: Caption, color: str) -> Caption:
    words = [color if word in COLORS else word for word in caption.label.split()]
    label = " ".join(words) if color in words else f"{color} {caption.label}"
    names = tuple(f"{color} {name}" for name in caption.names if not {*name.split()} & {*COLORS})
    return replace(caption, label=label, tags=(), names=names)


def pair(first: CaptionedImage, second: CaptionedImage) -> CaptionedImage:
    """Return two images (H, W, 3) side by side on white at half their size, named "A and B"."""
    height, width = first[1].shape[:2]
    sheet = Image.new("RGB", (width, height), "white")
    for index, (_, picture) in enumerate((first, second)):
        half = Image.fromarray(picture).resize((width // 2, height // 2), Image.Resampling.LANCZOS)
        sheet.paste(half, (index * width // 2, height // 4))
    a, b = first[0].label, second[0].label
    c, d = (min((caption.label, *caption.names), key=len) for caption, _ in (first, second))
    names = (f"a {a} and a {b}", f"{c} and {d}", f"a {c} and a {d}")
    return Caption(f"{a} and {b}", (), first[0].group, names), np.asarray(sheet)


def augment(known: list[CaptionedImage], *, copies: int, pairs: int, seed: int) -> list[CaptionedImage]:
    """Return up to `copies` recoloured ones of each, and `pairs` pairs of things with short names, some recoloured."""
    rng = random.Random(f"{seed}/augment")
    painted = [made for caption, picture in known for made in recolored(caption, picture, rng, copies)]
    short = [each for each in known if len(each[0].label.split()) <= PAIR_WORDS]
    short_painted = [each for each in painted if len(each[0].label.split()) <= PAIR_WORDS + 1]

    def pick() -> CaptionedImage:
        return rng.choice(short_painted if short_painted and rng.random() < 0.25 else short)

    return [*painted, *(pair(pick(), pick()) for _ in range(pairs if short else 0))]

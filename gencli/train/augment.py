"""More captioned images made from the data's, whose captions stay true: varied a little, recoloured, two in one."""

from __future__ import annotations

import math
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

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

ANGLE, SCALE, SHIFT = 4.0, 0.05, 0.012  # at most: degrees, share of the size, share of the side
HUE, SATURATION, GAMMA = 10.0, 0.4, 0.5  # at most: degrees, octaves of the saturation and of brightness's exponent
TINTED, TINT = 0.5, 0.15  # share of images that lie on tinted paper, and the paper's saturation at most
CHUNK = 2048  # images that are varied at once
SIDED = ("symbols", "flags")  # groups whose images are never mirrored
SIDED_WORDS = frozenset(
    "left leftwards right rightwards east west clock clocks clockwise time watch letter letters number numbers digit "
    "digits alphabet text word words write writing handwriting sign signs symbol calendar date keycap button arrow map "
    "flag flags note notes newspaper page document currency money dollar euro yen ticket label question exclamation "
    "mark speech logo poster quarter waxing waning crescent".split()
)  # what is drawn under such a word may be false in a mirror
MIRRORED = 0.5  # share of the copies that may be mirrored, and are

SIDE = ("{a} and {b}", "{a} and {b}", "{a} and {b}", "{a} with {b}", "{a} next to {b}", "{a} beside {b}", "{a}, {b}")
STACK = ("{a} over {b}", "{a} above {b}", "{a} on top of {b}", "{b} under {a}", "{b} below {a}")
STACKED, TWINS = 0.2, 0.05  # shares of what is made: one above the other; the same thing twice
PAINTED = 0.25  # share of things in a pair that are repainted


def vary(images: Tensor, generator: torch.Generator, device: torch.device | None = None) -> Tensor:
    """Return images (N, 3, H, W) uint8 rotated, scaled and shifted a little on white, and their colours changed.

    The changes are small: a clock's time, an arrow's direction and the name of a color stay true. Nothing is mirrored.
    generator: on the CPU, so that every device gives the same within rounding. device: where to compute.
    """
    parts = [_vary(part.to(device or part.device), generator) for part in images.split(CHUNK) if len(part)]
    return torch.cat([images[:0], *(part.to(images.device) for part in parts)])


def _vary(images: Tensor, generator: torch.Generator) -> Tensor:
    changes = (2 * torch.rand(7, len(images), generator=generator) - 1).to(images.device)
    angle, scale = math.radians(ANGLE) * changes[0], 1 + SCALE * changes[1]
    x, y = 2 * SHIFT * changes[2], 2 * SHIFT * changes[3]  # a side is 2 long for affine_grid
    cos, sin = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], dim=1).view(-1, 2, 3)
    ink = 1 - images.float() / 255  # 0 is white, which is also what lies outside
    grid = F.affine_grid(matrix, list(ink.shape), align_corners=False)
    moved = 1 - F.grid_sample(ink, grid, mode="bicubic", align_corners=False).clamp(0, 1)
    hue, saturation, value = _to_hsv(moved)
    hue = hue + HUE / 360 * changes[4].view(-1, 1, 1)
    value = value ** (2 ** (GAMMA * changes[5])).view(-1, 1, 1)
    saturation = (saturation * (2 ** (SATURATION * changes[6])).view(-1, 1, 1)).clamp(max=1)
    return (255 * _to_rgb(hue, saturation, value)).round().to(torch.uint8)


def may_be_mirrored(caption: Caption) -> bool:
    """Return whether no word of a caption says that its image has a side, a text, a number or a time."""
    said = " ".join((caption.label, *caption.tags, *caption.names)).casefold()
    words = set(re.findall(r"[^\W_]+", said))
    return not (caption.group in SIDED or words & SIDED_WORDS or any(map(str.isdigit, caption.label)))


def mirror(images: Tensor, captions: Sequence[Caption], generator: torch.Generator) -> Tensor:
    """Return images (N, 3, H, W), about half of those that `may_be_mirrored` seen in a mirror."""
    chosen = torch.rand(len(images), generator=generator) < MIRRORED
    chosen &= torch.tensor([may_be_mirrored(caption) for caption in captions], dtype=torch.bool)
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(3), images)


def tint(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (N, 3, H, W) uint8, about half of them as printed on paper of a pale colour in place of white."""
    hue, depth, chance = torch.rand(3, len(images), 1, 1, generator=generator)
    paper = _to_rgb(hue, TINT * depth * (chance < TINTED), torch.ones_like(hue))
    parts = [
        (part.float() * ground).round().to(torch.uint8)
        for part, ground in zip(images.split(CHUNK), paper.split(CHUNK), strict=True)
    ]
    return torch.cat([images[:0], *parts])


def _to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue (1 is the full circle), saturation and value (N, H, W) of RGB images (N, 3, H, W), all in 0..1."""
    red, green, blue = images.unbind(1)
    value, lowest = images.amax(1), images.amin(1)
    chroma = value - lowest
    safe = chroma.clamp(min=1e-6)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return sextant / 6 % 1, chroma / value.clamp(min=1e-6), value


def _to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return RGB images (N, 3, H, W); the inverse of `_to_hsv`."""
    channels = []
    for offset in (5, 3, 1):
        k = (offset + 6 * hue) % 6
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


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


def recolor(known: Sequence[CaptionedImage], copies: int, seed: int) -> list[CaptionedImage]:
    """Return up to `copies` recoloured copies of each image."""
    rng = random.Random(f"{seed}/augment")
    return [made for caption, picture in known for made in recolored(caption, picture, rng, copies)]


def is_kept(first: str, second: str) -> bool:
    """Return whether images of "first and second" are kept for scoring: `pair_up` never makes them."""
    return zlib.crc32(f"{first}|{second}".encode()) % 16 == 0


def with_article(name: str) -> str:
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"


def is_short(caption: Caption) -> bool:
    """Return whether a label has few enough words to stand in a pair."""
    return len(caption.label.split()) <= PAIR_WORDS


def pair_up(
    captions: Sequence[Caption], images: Tensor, originals: int, count: int, seed: int
) -> tuple[list[Caption], Tensor]:
    """Return captions and images (count, 3, H, W) of two things each, at half their size, on white.

    captions, images: what there is, uint8 (N, 3, H, W); the first `originals` are not repainted. Most images show the
    two side by side, some one above the other ("sun over sea") or a thing twice ("two cats"). Only things with short
    labels are taken. No couple that `is_kept` is made side by side.
    """
    rng = random.Random(f"{seed}/pairs")
    plain = [i for i in range(originals) if is_short(captions[i])]
    painted = [i for i in range(originals, len(captions)) if len(captions[i].label.split()) <= PAIR_WORDS + 1]
    if not plain or not count:
        return [], images[:0]
    size = images.shape[-1]
    halves = F.interpolate(images.float(), size=(size // 2, size // 2), mode="area").round().to(torch.uint8)
    sheets = torch.full((count, 3, size, size), 255, dtype=torch.uint8)
    made: list[Caption] = []
    while len(made) < count:
        first, second = (rng.choice(painted if painted and rng.random() < PAINTED else plain) for _ in range(2))
        stacked, twins = rng.random() < STACKED, rng.random() < TWINS
        if twins:
            second = first
        elif not stacked and is_kept(captions[first].label, captions[second].label):
            continue
        sheet = sheets[len(made)]
        for at, index in enumerate((first, second)):
            row, column = (at * (size // 2), size // 4) if stacked and not twins else (size // 4, at * (size // 2))
            sheet[:, row : row + size // 2, column : column + size // 2] = halves[index]
        made.append(_both(captions[first], captions[second], rng, stacked=stacked, twins=twins))
    return made, sheets


def _shortest(caption: Caption) -> str:
    """Return the shortest of an image's names that is made of words."""
    return min((caption.label, *(name for name in caption.names if name.replace(" ", "").isalpha())), key=len)


def _both(first: Caption, second: Caption, rng: random.Random, *, stacked: bool, twins: bool) -> Caption:
    """Return the caption of an image of two things."""
    if twins:
        label, short = first.label, _shortest(first)
        return Caption(f"two {label}s", (), "", (f"two {short}s", f"{label} and {label}", f"a pair of {label}s"))
    form = rng.choice(STACK if stacked else SIDE)
    a, b = first.label, second.label
    c, d = (_shortest(caption) for caption in (first, second))
    a_b = [(a, b), (with_article(a), with_article(b)), (c, d), (with_article(c), with_article(d))]
    label, *names = rng.sample([form.format(a=one, b=other) for one, other in a_b], 4)
    return Caption(label, (), "", tuple(names))

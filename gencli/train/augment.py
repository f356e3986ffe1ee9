"""More captioned images made from the data's, whose captions stay true: recoloured, and two in one."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gencli.train.pictures import Caption
from gencli.train.variants import mirrored

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

SIDE = ("{a} and {b}", "{a} and {b}", "{a} and {b}", "{a} with {b}", "{a} next to {b}", "{a} beside {b}", "{a}, {b}")
STACK = ("{a} over {b}", "{a} above {b}", "{a} on top of {b}", "{b} under {a}", "{b} below {a}")
STACKED, TWINS = 0.2, 0.05  # shares of what is made: one above the other; the same thing twice
PAINTED = 0.25  # share of things in a pair that are repainted


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


def recolor(known: Sequence[CaptionedImage], copies: int, seed: int) -> tuple[list[CaptionedImage], list[int]]:
    """Return up to `copies` recoloured copies of each image, and for each copy the number of the image."""
    rng = random.Random(f"{seed}/augment")
    made = [(one, i) for i, (caption, image) in enumerate(known) for one in recolored(caption, image, rng, copies)]
    return [one for one, _ in made], [i for _, i in made]


def is_kept(first: str, second: str) -> bool:
    """Return whether images of "first and second" are kept for scoring: `pair_up` never makes them."""
    return zlib.crc32(f"{first}|{second}".encode()) % 16 == 0


def with_article(name: str) -> str:
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"


def is_short(caption: Caption) -> bool:
    """Return whether a label has few enough words to stand in a pair."""
    return len(caption.label.split()) <= PAIR_WORDS


def pair_up(
    captions: Sequence[Caption], images: Tensor, side: Tensor, originals: int, factors: Tensor, seed: int
) -> tuple[list[Caption], Tensor]:
    """Return captions and images (M, 3, H, W) of two things each, at half their size, on white.

    captions, images: what there is, uint8 (N, 3, H, W); the first `originals` are not repainted. side (N,), factors
    (M, F): each thing is seen as those say (see `variants.mirrored`). Most images show the two side by side, some one
    above the other ("sun over sea") or a thing twice ("two cats"). Only things with short labels are taken. No couple
    that `is_kept` is made side by side.
    """
    rng = random.Random(f"{seed}/pairs")
    plain = [i for i in range(originals) if is_short(captions[i])]
    painted = [i for i in range(originals, len(captions)) if len(captions[i].label.split()) <= PAIR_WORDS + 1]
    count = len(factors)
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
        two, told = [first, second], factors[[len(made)] * 2]
        for at, half in enumerate(mirrored(halves[two], side[two], told)):
            row, column = (at * (size // 2), size // 4) if stacked and not twins else (size // 4, at * (size // 2))
            sheet[:, row : row + size // 2, column : column + size // 2] = half
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

"""Varied copies of images, whose captions stay true: moved, of another size and colour, on pale paper, mirrored.

How a copy differs is told by its factors (N, F), standard normal numbers, so that noise can tell them too: see
`coupling`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.train.pictures import Caption

FACTORS = ("x", "y", "scale", "angle", "hue", "saturation", "gamma", "paper", "paper too", "side")
SIDE = FACTORS.index("side")
ANGLE, SCALE, SHIFT = 4.0, 0.06, 0.02  # at most: degrees, share of the size, share of the side
HUE, SATURATION, GAMMA = 10.0, 0.4, 0.5  # at most: degrees, octaves of the saturation and of brightness's exponent
TINT = 0.07  # the paper's saturation at most
CHUNK = 2048  # images that are varied at once
SIDED = ("symbols", "flags")  # groups whose images are never mirrored
SIDED_WORDS = frozenset(
    "left leftwards right rightwards east west clock clocks clockwise time watch letter letters number numbers digit "
    "digits alphabet text word words write writing handwriting sign signs symbol calendar date keycap button arrow map "
    "flag flags note notes newspaper page document currency money dollar euro yen ticket label question exclamation "
    "mark speech logo poster quarter waxing waning crescent".split()
)  # what is drawn under such a word may be false in a mirror


def vary(images: Tensor, factors: Tensor, device: torch.device | None = None) -> Tensor:
    """Return images (N, 3, H, W) uint8 changed as their factors (N, F) say, all but the side. 0 changes nothing.

    They are rotated, scaled and shifted a little on white, their colours changed, and the result is printed on paper of
    a pale colour. The changes are small: a clock's time, an arrow's direction and the name of a color stay true.
    device: where to compute.
    """
    parts = zip(images.split(CHUNK), factors.split(CHUNK), strict=True)
    made = (_vary(part.to(device or part.device), some.to(device or part.device)) for part, some in parts)
    return torch.cat([images[:0], *(part.to(images.device) for part in made)])


def _vary(images: Tensor, factors: Tensor) -> Tensor:
    if not len(images):
        return images
    changes = 2 * torch.special.ndtr(factors.T) - 1  # uniform in −1..1
    x, y = 2 * SHIFT * changes[0], 2 * SHIFT * changes[1]  # a side is 2 long for affine_grid
    scale, angle = 1 + SCALE * changes[2], math.radians(ANGLE) * changes[3]
    cos, sin = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], dim=1).view(-1, 2, 3)
    ink = 1 - images.float() / 255  # 0 is white, which is also what lies outside
    grid = F.affine_grid(matrix, list(ink.shape), align_corners=False)
    moved = 1 - F.grid_sample(ink, grid, mode="bicubic", align_corners=False).clamp(0, 1)
    hue, saturation, value = to_hsv(moved)
    hue = hue + HUE / 360 * changes[4].view(-1, 1, 1)
    saturation = (saturation * (2 ** (SATURATION * changes[5])).view(-1, 1, 1)).clamp(max=1)
    value = value ** (2 ** (GAMMA * changes[6])).view(-1, 1, 1)
    return (255 * to_rgb(hue, saturation, value) * _paper(factors[:, 7], factors[:, 8])).round().to(torch.uint8)


def _paper(a: Tensor, b: Tensor) -> Tensor:
    """Return pale colours (N, 3, 1, 1) around white, whose hue is the direction of (a, b) and whose saturation is
    uniform in 0..TINT for normal a and b."""
    hue = torch.atan2(b, a) / (2 * math.pi) % 1
    depth = TINT * (1 - torch.exp(-(a.square() + b.square()) / 2))
    return to_rgb(hue.view(-1, 1, 1), depth.view(-1, 1, 1), torch.ones_like(hue).view(-1, 1, 1))


def may_be_mirrored(caption: Caption) -> bool:
    """Return whether no word of a caption says that its image has a side, a text, a number or a time."""
    said = " ".join((caption.label, *caption.tags, *caption.names)).casefold()
    words = set(re.findall(r"[^\W_]+", said))
    return not (caption.group in SIDED or words & SIDED_WORDS or any(map(str.isdigit, caption.label)))


def sides(images: Tensor, captions: Sequence[Caption]) -> Tensor:
    """Return the side (N,) of images (N, 3, H, W) uint8: 1 or −1, which a mirror swaps; 0 where none may be mirrored.

    1: on the diagonal from top left to bottom right lies more that is dark than on the other one.
    """
    place = torch.linspace(-1, 1, images.shape[-1]), torch.linspace(-1, 1, images.shape[-2])
    moments = [(255 - part.float()).mean(1) @ place[0] @ place[1] for part in images.split(CHUNK)]
    chosen = torch.tensor([may_be_mirrored(caption) for caption in captions], dtype=torch.bool)
    return torch.where(torch.cat([torch.zeros(0), *moments]) < 0, -1.0, 1.0) * chosen


def mirrored(images: Tensor, side: Tensor, factors: Tensor) -> Tensor:
    """Return images (N, 3, H, W) on the side that the factors (N, F) say. side: what they show, of `sides`."""
    return torch.where((side * factors[:, SIDE] < 0).view(-1, 1, 1, 1), images.flip(3), images)


def as_they_are(side: Tensor, generator: torch.Generator) -> Tensor:
    """Return the factors (N, F) of images that are not varied. side: see `mirrored`."""
    factors = torch.zeros(len(side), len(FACTORS))
    drawn = torch.randn(len(side), generator=generator)
    factors[:, SIDE] = torch.where(side == 0, drawn, side * drawn.abs())
    return factors


def to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return RGB images (N, 3, H, W); the inverse of `to_hsv`."""
    channels = []
    for offset in (5, 3, 1):
        k = (offset + 6 * hue) % 6
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)

"""What a picture run learns from: the data's captioned images, and more made of them as the recipe says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gencli import devices
from gencli.errors import UsageError, counted
from gencli.train.augment import pair_up, recolor
from gencli.train.captions import find_captions
from gencli.train.pictures import Caption, read_pictures, to_tensor
from gencli.train.recipe import ImageRecipe
from gencli.train.variants import FACTORS, as_they_are, mirrored, sides, vary

PAINTED_VARIANTS = 0.25  # variants of a repainted image, to one of an image as it is


@dataclass(frozen=True)
class ImageCollection:
    """Captions and images (N, 3, size, size), uint8, in groups that follow each other, and last those for validation.

    factors: (N, F), how each was varied (see `variants`). groups: how many images there are in each, and its share of
    what is seen. The first group begins with the data's own images, of which there are `originals`.
    """

    captions: list[Caption]
    images: Tensor
    factors: Tensor
    originals: int
    groups: tuple[tuple[int, float], ...]

    @property
    def trained(self) -> Tensor:
        """The images that are not for validation."""
        return self.images[: sum(count for count, _ in self.groups)]

    @property
    def validation(self) -> int:
        """The number of images for validation."""
        return len(self.images) - len(self.trained)


@dataclass(frozen=True)
class _Group:
    captions: list[Caption]
    images: Tensor
    factors: Tensor

    def __add__(self, other: _Group) -> _Group:
        images, factors = torch.cat([self.images, other.images]), torch.cat([self.factors, other.factors])
        return _Group([*self.captions, *other.captions], images, factors)


def collect_images(
    pictures: Path,
    captions: Sequence[Path],
    size: int,
    recipe: ImageRecipe,
    note: Callable[[str], None] = lambda text: None,
) -> ImageCollection:
    """Read all captions and images, and make more of them as the recipe says.

    note: gets what is worth knowing, in words. Raises UsageError if all images are held out.
    """
    named, images, count = _read(pictures, captions, size, recipe, note)
    generator, where = torch.Generator().manual_seed(recipe.seed), devices.pick_device(recipe.device)
    side = sides(images, named) if recipe.random_flip else torch.zeros(len(images))
    told = as_they_are(side, generator)
    known, held = (_Group(named[part], images[part], told[part]) for part in (slice(count), slice(count, None)))
    pixels = (image.permute(1, 2, 0).numpy() for image in known.images)
    painted, parents = recolor(list(zip(known.captions, pixels, strict=True)), recipe.copies, recipe.seed)
    repainted = torch.cat([images[:0], *(to_tensor(image) for _, image in painted)])
    facing = side[parents]
    paintings = _Group([caption for caption, _ in painted], repainted, as_they_are(facing, generator))

    things = torch.cat([known.images, repainted])
    names, shown = [*known.captions, *paintings.captions], torch.cat([side[:count], facing])
    factors = torch.randn(recipe.pairs, len(FACTORS), generator=generator) * bool(recipe.variants)
    both, sheets = pair_up(names, things, shown, count, factors, recipe.seed)
    pairs = _Group(both, sheets, factors[: len(sheets)])
    if recipe.variants:
        known += _copies(known, side[:count], recipe.variants, generator, where)
        paintings = _copies(paintings, facing, max(1, round(recipe.variants * PAINTED_VARIANTS)), generator, where)
        pairs = _Group(both, vary(sheets, pairs.factors, where), pairs.factors)
    shares = [recipe.recolor_share if painted else 0.0, recipe.pair_share if both else 0.0]
    counts = [len(group.captions) for group in (known, paintings, pairs)]
    every = known + paintings + pairs + held
    groups = tuple(zip(counts, [1 - sum(shares), *shares], strict=True))
    return ImageCollection(every.captions, every.images, every.factors, count, groups)


def _read(
    pictures: Path, captions: Sequence[Path], size: int, recipe: ImageRecipe, note: Callable[[str], None]
) -> tuple[list[Caption], Tensor, int]:
    """Return captions and images, those for validation last, and how many are not for validation."""
    rows = find_captions(pictures, captions, note)
    validation = round(len(rows) * recipe.hold_out)
    if validation == len(rows):
        raise UsageError(
            f"--hold-out {recipe.hold_out:g}: of {counted(len(rows), 'image')} none is left to train on",
            "hold out less",
        )
    images = read_pictures(pictures, [name for name, _ in rows], size)
    named = [caption for _, caption in rows]
    if validation:  # evenly from all over the file, whatever its order
        chosen = {(2 * i + 1) * len(rows) // (2 * validation) for i in range(validation)}
        order = sorted(range(len(rows)), key=lambda index: index in chosen)
        named, images = [named[i] for i in order], images[order]
    return named, images, len(rows) - validation


def _copies(group: _Group, side: Tensor, times: int, generator: torch.Generator, device: torch.device) -> _Group:
    """Return `times` varied copies of each image of a group. side: what the images show (see `variants.sides`)."""
    factors = torch.randn(times * len(side), len(FACTORS), generator=generator)
    images = mirrored(group.images.repeat(times, 1, 1, 1), side.repeat(times), factors)
    return _Group(group.captions * times, vary(images, factors, device), factors)

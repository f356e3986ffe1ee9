"""Widths and heights: of what is drawn, and of images that a network looks at. No torch."""

from __future__ import annotations

from gencli.errors import UsageError
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.families.base import References, of_area
from gencli.image.request import ImageRequest

MEGAPIXEL = 1024 * 1024


def size_of(request: ImageRequest, checkpoint: ImageCheckpoint, given: tuple[int, int] | None) -> tuple[int, int]:
    """Return width and height: as asked for, a side alone with the shape of a given image; else near that image's
    size, or what the model makes of it where it looks at it, else the model's own. Raise UsageError."""
    multiple, own = checkpoint.multiple, checkpoint.size
    if checkpoint.family.reads_init == "varies":
        given = None
    rule, edits = checkpoint.family.references, checkpoint.family.reads_init == "edits"
    if rule is not None and given is not None and (edits or request.init is None):
        given = seen_size(given, rule, multiple)
    if checkpoint.main.scale > 1 and given is not None:
        larger = checkpoint.main.scale * given[0], checkpoint.main.scale * given[1]
        if (request.width or larger[0], request.height or larger[1]) != larger:
            raise UsageError(f"{checkpoint.name} makes {larger[0]}x{larger[1]} pixels of this image and no other size")
        return larger
    width, height = request.width, request.height
    if given is not None and width is None and height is None:
        return _near(given, own, multiple)
    if given is not None and (width is None or height is None):
        scale = width / given[0] if width is not None else (height or 1) / given[1]
        other = [max(round(side * scale / multiple), 1) * multiple for side in given]
        width, height = width or other[0], height or other[1]
    if width is None or height is None:
        if own is None:
            raise UsageError(f"{checkpoint.name} does not say its size", "give one with --size WIDTHxHEIGHT")
        width, height = width or own[0], height or own[1]
    for name, side in (("--width", width), ("--height", height)):
        if side % multiple:
            below = side // multiple * multiple
            near = f"{below} or {below + multiple}" if below else str(multiple)
            raise UsageError(f"{name} {side}: must be a multiple of {multiple} for {checkpoint.name}", f"try {near}")
        if checkpoint.most is not None and side > checkpoint.most:
            raise UsageError(f"{name} {side}: {checkpoint.name} draws at most {checkpoint.most} pixels a side")
    return width, height


def _near(given: tuple[int, int], own: tuple[int, int] | None, multiple: int) -> tuple[int, int]:
    """Return a given image's size, or if it is over twice the model's, one of its shape and the model's area."""
    width, height = given
    scale = 1.0
    if own is not None and max(width / own[0], height / own[1]) > 2:
        scale = (own[0] * own[1] / (width * height)) ** 0.5
    width, height = (max(int(side * scale) // multiple, 1) * multiple for side in given)
    return width, height


def seen_size(size: tuple[int, int], rule: References, multiple: int) -> tuple[int, int]:
    """Return width and height at which a network looks at an image of this size: whole multiples of `multiple`."""
    width, height = size
    if rule.area:
        return of_area(size, rule.area)
    if rule.sizes:
        width, height = min(rule.sizes, key=lambda one: (abs(width / height - one[0] / one[1]), one))
    else:
        width, height = within_megapixel(size)
    return max(width // multiple, 1) * multiple, max(height // multiple, 1) * multiple


def within_megapixel(size: tuple[int, int]) -> tuple[int, int]:
    """Return a size of the same shape and at most a megapixel."""
    scale = min((MEGAPIXEL / (size[0] * size[1])) ** 0.5, 1.0)
    return max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)

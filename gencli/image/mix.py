"""What is mixed to one image: texts and images, each with its weight. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Protocol

from gencli.errors import UsageError
from gencli.options import Option

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}  # how files of images end


@dataclasses.dataclass(frozen=True)
class Ingredient:
    """name: a text, or the path of an image. weight: its share of the whole."""

    name: str
    weight: float = 1.0
    is_image: bool = False


class Asked(Protocol):
    """What an `ImageRequest` says of it."""

    @property
    def prompt(self) -> str: ...
    @property
    def mix(self) -> tuple[str, ...]: ...


def parse_mix(texts: Sequence[str]) -> list[Ingredient]:
    """Parse TEXT[:WEIGHT] or FILE[:WEIGHT], each; a file is what ends as an image's does. Raise UsageError."""
    found = []
    for text in texts:
        name, weight = text, 1.0
        if ":" in text:
            try:
                name, weight = text.rpartition(":")[0], float(text.rpartition(":")[2])
            except ValueError:
                name, weight = text, 1.0
        if not name.strip() or not 0 < abs(weight) <= 1000:
            hint = "as in 'a red cat:0.7'; a weight is from -1000 to 1000 and not 0, and 1 where none is given"
            raise UsageError(f"--mix {text!r:.80}: expected a text or an image, and its weight", hint)
        found.append(Ingredient(name, weight, PurePath(name).suffix.lower() in IMAGES))
    total = math.fsum(one.weight for one in found)
    if found and round(total, 9) <= 0:
        total = sum(one.weight for one in found)
        raise UsageError(f"--mix: the sum of the weights is {total:g}, and must be more than 0")
    return found


def check_mix(name: str, values: Sequence[str]) -> None:
    """Raise UsageError for a value of --mix that cannot be parsed."""
    Option(str, several=True).check(name, values)
    parse_mix(values)


def mixture(request: Asked) -> list[Ingredient]:
    """What a request mixes, its shares 1 in all; its prompt alone where it mixes nothing."""
    found = parse_mix(request.mix)
    total = math.fsum(one.weight for one in found)
    mixed = [dataclasses.replace(one, weight=one.weight / total) for one in found]
    return mixed or [Ingredient(request.prompt)]


def texts_of(request: Asked) -> list[Ingredient]:
    """The texts among them, at least one: an empty one of no share stands for none."""
    return [one for one in mixture(request) if not one.is_image] or [Ingredient("", 0.0)]

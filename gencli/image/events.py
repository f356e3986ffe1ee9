"""The events of drawing: each step, and each image once it is finished. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gencli.image.request import ImageRequest

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True)
class StageInfo:
    """A stage's name, and its number (from 1) among all of a model. shows: whether its x0 can be decoded."""

    name: str = "base"
    number: int = 1
    count: int = 1
    shows: bool = True

    def __str__(self) -> str:
        return f"{self.name} (stage {self.number} of {self.count})"


class Decoder(Protocol):
    """Makes an image of one x0 (1, C, h, w): whole, or small in little time."""

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Image.Image: ...
    def sketch(self, latents: Tensor) -> Image.Image: ...


@dataclass(frozen=True)
class Denoised:
    """One step of a stage is done for images `first` … `first + count - 1`; x0 (B, C, h, w) is what they are so far.
    codec makes images of it such as the finished one, and fast others in less time, if there is one that does. Where
    another process draws, there are neither x0 nor codec."""

    index: int
    total: int
    first: int
    count: int
    x0: Tensor | None
    codec: Decoder | None
    stage: StageInfo = StageInfo()
    fast: Decoder | None = None

    @property
    def view(self) -> Decoder:
        """What makes images of it on the way."""
        assert self.codec is not None
        return self.fast or self.codec

    def images(self, *, whole: bool, tiled: bool = False) -> Iterator[Image.Image]:
        """Make the images as they are so far: such as the finished ones, or by what is fast if there is that."""
        assert self.codec is not None and self.x0 is not None
        decoder = self.codec if whole else self.view
        for x0 in self.x0:
            yield decoder.decode(x0[None], tiled=tiled)

    def sketches(self) -> list[Image.Image]:
        """Make small images of all in little time."""
        assert self.x0 is not None
        return [self.view.sketch(x0[None]) for x0 in self.x0]

    @property
    def ends_stage(self) -> bool:
        return self.index == self.total - 1


@dataclass(frozen=True)
class Picture:
    """A finished image, the `index`-th from 0, and the request that makes it again alone."""

    index: int
    image: Image.Image
    request: ImageRequest

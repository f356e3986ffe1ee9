"""What models that do not denoise have in common: how a request is completed for one, and how prompts become batches.

No torch before the weights are loaded.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from gencli.checkpoints.checkpoint import Checkpoint, Part
from gencli.errors import GencliError, UsageError
from gencli.image.prompts.classes import Classes
from gencli.image.request import ImageRequest
from gencli.options import check_values, make
from gencli.options import row as option_of

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from gencli.image.events import Denoised, Picture
    from gencli.models.module import BaseModel

# Fields of a request that every such model can follow.
ALWAYS = frozenset("prompt seed width height count grid batch best clip dtype model hashes".split())


@dataclass(frozen=True)
class Loaded(ABC):
    """Such a model with its weights, ready to draw. module: what draws. others: further modules."""

    drawer: Drawer
    module: BaseModel
    others: tuple[BaseModel, ...] = ()

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def dtype(self) -> torch.dtype:
        return self.module.compute_dtype

    def describe(self) -> str:
        """Return the model in one line: its size, precision, device and threads."""
        from gencli.models.module import describe

        return describe(self.drawer.name, [self.module, *self.others])

    def check_prompt(self, request: ImageRequest) -> None:
        """Raise GencliError for a prompt that it cannot follow."""
        self.drawer.check_asked(request)

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Image.Image:
        """Return the image of one x0 (1, 3, h, w), as far as it is drawn."""
        from gencli.image.files.pictures import to_picture

        return to_picture(latents[0])

    def sketch(self, latents: Tensor) -> Image.Image:
        """Return the same: there is nothing to decode."""
        return self.decode(latents)

    @abstractmethod
    def generate(
        self,
        request: ImageRequest,
        prompts: Iterable[str | None] | None = None,
        *,
        init: Image.Image | None = None,
        walk: bool = False,
    ) -> Generator[Denoised | Picture, None, None]:
        """Make `request.count` images of every prompt, `request.batch` at a time, as `image.generate.generate` does.

        `request` is a resolved one. init: the image of `request.init`. walk: also what lies between each image and the
        next, of models that can show it. Raises GencliError for NaN from the model.
        """


@dataclass(frozen=True, kw_only=True)
class Drawer(ABC):
    """What the files of such a model say, before any weight is read.

    size: width and height of every image. defaults: values for `ImageRequest`. classes: those that it draws, if any.
    FOLLOWED: the fields of a request that it can follow; others are refused. BUILT_IN: values where neither the request
    nor the checkpoint says any. DRAWS: how it draws, in words. walks: whether it can show what lies between images.
    """

    opened: Checkpoint
    size: tuple[int, int]
    defaults: Mapping[str, object] = field(default_factory=dict)
    classes: Classes | None = None
    prompt: ClassVar[Literal["none", "class", "text"]] = "none"
    FOLLOWED: ClassVar[frozenset[str]] = ALWAYS
    BUILT_IN: ClassVar[Mapping[str, object]] = {}
    DRAWS: ClassVar[str]
    walks: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def read(cls, checkpoint: Checkpoint) -> Drawer:
        """Read the small files of a checkpoint. Raise GencliError for what is broken or at odds."""

    @property
    def name(self) -> str:
        """What the user called it."""
        return self.opened.name

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.opened.path

    @property
    def settings(self) -> dict[str, object]:
        """The values that hold if a request gives none, for people to read."""
        width, height = self.size
        return {**self.BUILT_IN, **self.defaults, "width": width, "height": height}

    def resolve(self, request: ImageRequest) -> ImageRequest:
        """Fill in what `request` leaves open; only the seed and the precision stay as they are.

        Raise UsageError for what such a model cannot follow, GencliError for settings of its own that make no sense.
        """
        given = [one for one in dataclasses.fields(request) if one.name not in self.FOLLOWED]
        given = [one for one in given if getattr(request, one.name) not in (None, one.default, {}, ())]
        names = [option.name(one.name) for one in given if (option := option_of(one)) is not None]
        if request.prompt and self.prompt == "none":
            raise UsageError(f"{self.name} draws without a prompt: yours would have no effect")
        if names:
            raise UsageError(f"{self.name} {self.DRAWS} and does not denoise: {', '.join(names)} would have no effect")
        width, height = self.size
        for name, side, own in (("--width", request.width, width), ("--height", request.height, height)):
            if side not in (None, own):
                raise UsageError(f"{name} {side}: {self.name} draws {width}x{height} pixels and no other size")
        if self.classes is not None and request.prompt.strip():
            self.classes.find(request.prompt)
        try:
            check_values(ImageRequest, self.defaults)
        except UsageError as error:
            where = self.folder / "generation_config.json"
            raise GencliError(f"{where}: {error.message.removeprefix('--')}", error.hint) from None
        values = {**self.BUILT_IN, **self.defaults, "width": width, "height": height}
        return request.replace(**{name: value for name, value in values.items() if getattr(request, name) is None})

    def check_asked(self, request: ImageRequest) -> None:
        """Raise UsageError if no class is named, and the model needs one."""
        if self.classes is not None:
            self.classes.find(request.prompt)

    def load(self, **how: object) -> Loaded:
        """Load the weights; `how` are the fields of `PartLoader`.

        Raises GencliError for weights that are broken or do not fit.
        """
        return self.assemble(make(PartLoader, how))

    @abstractmethod
    def assemble(self, load: PartLoader) -> Loaded:
        """Load the parts. Raises GencliError as `load`."""


@dataclass(frozen=True)
class PartLoader:
    """Loads parts of a model. device, dtype: names as `gencli.devices` knows them. quantize: a mix of types (`mixes`)
    that large weights are packed in, in a copy that is kept. packing: called while it is made, see `write_gguf`."""

    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    packing: Callable[[str, int, int], None] = lambda name, done, total: None

    def __call__(self, part: Part, dtype: str | None = None, *, stays: bool = False) -> BaseModel:
        """Load a part. stays: on a CPU its large weights stay as they are stored, unless a precision is asked for.

        Raises GencliError for weights that are broken or do not fit.
        """
        from gencli.checkpoints import build
        from gencli.checkpoints.packed_cache import open_packed
        from gencli.devices import pick_device, pick_dtype

        place, dtype = pick_device(self.device), dtype or self.dtype
        config, tensors = part.config, part.tensors()
        if stays and self.quantize is not None:
            tensors = open_packed(part, config, self.quantize, self.packing, device=place.type)
        precision = pick_dtype(dtype, place, {tensors.dtype(name) for name in tensors})
        casting = stays and place.type == "cpu" and dtype == "auto"
        return build.load(
            part.path, device=place, dtype=precision, config=config, tensors=tensors, layerwise_casting=casting
        )


def batches(request: ImageRequest, prompts: Iterable[str | None] | None) -> Iterator[tuple[str, range]]:
    """Yield each prompt with the numbers of images of it that go through the model together. A prompt that is None is
    passed over, and its numbers with it."""
    for n, prompt in enumerate([request.prompt] if prompts is None else prompts):
        if prompt is not None:
            check_values(ImageRequest, {"prompt": prompt})
            end = (n + 1) * request.count
            for first in range(n * request.count, end, request.batch):
                yield prompt, range(first, min(first + request.batch, end))


def made(request: ImageRequest, number: int, prompt: str, dtype: torch.dtype) -> ImageRequest:
    """Return the request that makes an image again, alone."""
    return request.item(number, prompt=prompt, dtype=str(dtype).removeprefix("torch."))

"""BigGAN-deep (Brock et al. 2018): an image of a class in one pass. No torch before the weights are loaded.

The truncation (section 3.1) is how far noise may lie from its middle: a small one makes images alike, and better.
Between two images lies a way: along the sphere between their noises, straight between their classes (figure 8).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from gencli.checkpoints.checkpoint import Checkpoint
from gencli.errors import GencliError
from gencli.image.drawers.base import ALWAYS, Drawer, Loaded, PartLoader, batches, made
from gencli.image.prompts.classes import Classes, classes_of, read_names
from gencli.image.request import ImageRequest

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from gencli.image.events import Denoised, Picture
    from gencli.models.biggan import BigGAN

BOUND = 2.0  # the standard normal noise lies within it, before the truncation
FRAMES = 16  # from an image to the next, where --steps says nothing


@dataclass(frozen=True, kw_only=True)
class GAN(Drawer):
    """A generator of classes."""

    classes: Classes
    prompt: ClassVar[Literal["class"]] = "class"
    FOLLOWED = ALWAYS | {"truncation", "steps"}
    BUILT_IN: ClassVar = {"truncation": 0.4}  # of its model card
    DRAWS = "draws in one pass"
    walks = True

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> GAN:
        raw = checkpoint.parts[""].config
        try:
            classes = classes_of(raw, read_names(checkpoint.labels))
        except GencliError as error:
            raise GencliError(f"{checkpoint.labels_file}: {error.message}") from None
        side = raw.get("output_dim")
        if classes is None or type(side) is not int or not 4 <= side <= 4096:
            raise GencliError(f"{checkpoint.labels_file}: output_dim = {side!r:.40} is not an image size")
        return cls(opened=checkpoint, size=(side, side), classes=classes)

    def assemble(self, load: PartLoader) -> LoadedGAN:
        from gencli.models.biggan import BigGAN

        module = load(self.opened.parts[""])
        assert isinstance(module, BigGAN)
        return LoadedGAN(self, module)


class LoadedGAN(Loaded):
    """A generator, ready to draw. Image i draws its noise from `torch.Generator("cpu")` seeded with `seed + i`."""

    drawer: GAN
    module: BigGAN

    def generate(
        self,
        request: ImageRequest,
        prompts: Iterable[str | None] | None = None,
        *,
        init: Image.Image | None = None,
        walk: bool = False,
    ) -> Generator[Denoised | Picture, None, None]:
        import torch

        from gencli.image.diffusion.guidance import check_finite
        from gencli.image.events import Denoised, Picture

        before: Tensor | None = None
        for prompt, numbers in batches(request, prompts):
            inputs = torch.cat([self._input(request, number, prompt) for number in numbers])
            for number, one in zip(numbers, inputs.split(1), strict=True):
                yield from self._way(request, before, one, number) if walk else ()
                before = one
            images = self._draw(inputs, request)
            check_finite(images, 0, "half precision may have overflowed: try --dtype float32")
            if not walk:
                yield Denoised(0, 1, numbers[0], len(numbers), images, self)
            for number, image in zip(numbers, images.split(1), strict=True):
                yield Picture(number, self.decode(image), made(request, number, prompt, self.dtype))

    def _input(self, request: ImageRequest, number: int, prompt: str) -> Tensor:
        """Return noise and class of an image, (1, Z + N). Truncated normal numbers are even ones through the inverse of
        their distribution."""
        import torch

        config = self.module.config
        generator = torch.Generator("cpu").manual_seed((request.seed or 0) + number)
        even = torch.rand((1, config.z_dim), generator=generator, dtype=torch.float64)
        noise = torch.erfinv((2 * even - 1) * math.erf(BOUND / math.sqrt(2))) * math.sqrt(2)
        classes = torch.zeros(1, config.num_classes)
        classes[0, self.drawer.classes.find(prompt)] = 1
        return torch.cat([noise.float() * (request.truncation or 0), classes], 1)

    def _draw(self, inputs: Tensor, request: ImageRequest) -> Tensor:
        """Return images (B, 3, H, W) in -1..1 of noises and classes (B, Z + N)."""
        import torch

        with torch.inference_mode():
            z, classes = inputs.to(self.device, self.dtype).split(
                [self.module.config.z_dim, self.module.config.num_classes], 1
            )
            return self.module(z, classes, request.truncation).float().cpu()

    def _way(self, request: ImageRequest, start: Tensor | None, end: Tensor, number: int) -> Iterator[Denoised]:
        """Yield what lies between two images, without them: `request.steps` steps from one to the other."""
        from gencli.image.events import Denoised

        steps, count = request.steps or FRAMES, self.module.config.z_dim
        for step in range(1, steps if start is not None else 0):
            assert start is not None
            point = start.lerp(end, step / steps)
            point[:, :count] = slerp(start[:, :count], end[:, :count], step / steps)
            yield Denoised(step - 1, steps - 1, number, 1, self._draw(point, request), self)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return a point between two vectors (1, Z) along the sphere (Shoemake 1985), straight where they are parallel."""
    import torch

    angle = torch.acos((torch.nn.functional.cosine_similarity(a, b)).clamp(-1, 1))
    if angle.sin() < 1e-4:
        return a.lerp(b, share)
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


DRAWER = GAN

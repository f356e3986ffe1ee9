"""What generation begins from besides noise: an image to change (all of it or by a mask), or to edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gencli.image.codec import Codec, LatentDistribution
from gencli.image.conditioning import Conditioning
from gencli.image.diffusion.guidance import Model, Predict
from gencli.image.diffusion.schedule import Point, Step
from gencli.image.files import pictures
from gencli.image.pipeline import LoadedStage, Pipeline
from gencli.image.request import ImageRequest
from gencli.image.sizes import seen_size, within_megapixel
from gencli.models.flow_blocks import centred, grid, look_at


class DrawNoise(Protocol):
    """Draws (B, *shape) of normal noise, in the shape of x unless another is told."""

    def __call__(self, shape: tuple[int, ...] | None = None) -> Tensor: ...


@dataclass(frozen=True)
class InitLatents:
    """What one batch begins with: noise, the latents of the image to change (None: noise alone), what the network reads
    beside x, and x itself where the stage before gives it, all (B or 1, …, h, w). inputs: further conditioning."""

    eps: Tensor
    x0: Tensor | None = None
    concat: Tensor | None = None
    x: Tensor | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StageOutput:
    """What a stage hands to the next one: x (B, C, h, w) at a noise level, what it began with itself, and what makes an
    image of x."""

    x: Tensor
    point: Point
    init: InitLatents
    codec: Codec | None = None

    def pixels(self, *, tiled: bool = False) -> Tensor:
        """The images (B, 3, H, W) in −1..1."""
        assert self.codec is not None
        return self.codec.pixels(self.x, tiled=tiled).clamp(-1, 1)


@dataclass(frozen=True)
class Start:
    """What all batches of a stage begin from. shape: (C, h, w) of x. image: to be changed. mask (1, 1, h, w): 1 where
    it is painted anew, None for everywhere. masked: the image without what the mask covers, and edited (1, C, h, w):
    the image to edit, for networks that read those beside x. kept: the image to put back in the end, and where (255 is
    all of what was painted). pixels (1, f², h, w): the mask of each pixel of a latent, for networks that read it so,
    behind the masked image. inputs: what the network reads of images that it looks at."""

    shape: tuple[int, ...]
    image: LatentDistribution | None = None
    mask: Tensor | None = None
    masked: LatentDistribution | None = None
    edited: Tensor | None = None
    kept: tuple[Image.Image, Image.Image] | None = None
    pixels: Tensor | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def draw(self, draw_noise: DrawNoise, batch: int, before: StageOutput | None) -> InitLatents:
        """Draw for a batch, in diffusers' order. before: the output of the stage before."""
        x0 = None if self.image is None else self.image.sample(draw_noise, batch)
        eps = draw_noise()
        if self.mask is None:
            return InitLatents(eps, x0, self.edited, inputs=self.inputs)
        if self.masked is not None:
            masked = self.masked.sample(draw_noise, batch)
            read = [self.mask, masked] if self.pixels is None else [masked, self.pixels]
            return InitLatents(eps, x0, torch.cat([one.expand(batch, -1, -1, -1) for one in read], dim=1))
        if self.image is not None and self.image.std is not None:
            draw_noise()  # diffusers samples the masked image's latents too, for UNets that read them
        return InitLatents(eps, x0, inputs=self.inputs)

    def add_conditioning(
        self, init: InitLatents, cond: Conditioning, uncond: Conditioning | None
    ) -> tuple[Conditioning, Conditioning | None, Conditioning | None]:
        """cond, uncond and image_uncond of a `Denoiser`, with what the network reads beside x."""
        cond = cond.with_inputs(**init.inputs)
        uncond = None if uncond is None else uncond.with_inputs(**init.inputs)
        if init.concat is None:
            return cond, uncond, None
        cond = replace(cond, concat=init.concat)
        if uncond is None:
            return cond, None, None
        image_uncond = replace(uncond, concat=init.concat)
        if self.edited is None:
            return cond, image_uncond, None
        return cond, replace(uncond, concat=torch.zeros_like(init.concat)), image_uncond

    def over(self, model: Model) -> Model:
        """The model as this stage asks it."""
        return model

    def over_predictions(self, predict: Predict) -> Predict:
        """What this stage makes of the predictions."""
        return predict

    def apply_mask(self, x: Tensor, init: InitLatents, steps: Sequence[Step], index: int) -> None:
        """After a step, put the image back into x outside the mask, at its next noise level. In place: the sampler
        continues from it. Networks that read the mask do without."""
        if self.mask is None or self.masked is not None or init.x0 is None:
            return
        last = index == len(steps) - 1 and steps[index].next.t < 0
        original = init.x0 if last else steps[index].next.mix(init.x0, init.eps)
        x.copy_(torch.where(self.mask > 0.5, x, original))

    def finish(self, image: Image.Image) -> Image.Image:
        """The finished image with what is kept of the first one, pixel by pixel."""
        if self.kept is None:
            return image
        old, where = self.kept
        return Image.composite(image, old.convert(image.mode), where)


class Continued(Start):
    """A stage that continues to denoise the latents of the stage before."""

    def draw(self, draw_noise: DrawNoise, batch: int, before: StageOutput | None) -> InitLatents:
        assert before is not None
        return replace(before.init, x=before.x, concat=None)


@dataclass(frozen=True)
class StartInputs:
    """What a stage can begin from. request: as it holds for this stage. before: the start of the stage before.
    named: images to mix and to look at, by what the request calls them."""

    request: ImageRequest
    stage: LoadedStage
    init: Image.Image | None = None
    mask: Image.Image | None = None
    before: Start | None = None
    named: Mapping[str, Image.Image] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the finished image, of its own checkpoint."""
        return self.request.width or 0, self.request.height or 0


def prepare_latents(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Begin from noise or from the images of the request, encoded."""
    init, size, codec = inputs.init, inputs.size, inputs.stage.codec
    shape, seen = codec.latent_shape(*size), _look_at(pipeline, inputs)
    if init is None or pipeline.checkpoint.family.reads_init == "edits":
        return Start(shape, inputs=seen)
    image = init if init.size == size else init.resize(size, Image.Resampling.LANCZOS)
    if pipeline.checkpoint.also_reads == "picture":
        return Start(shape, edited=codec.unscale(codec.encode(image).mean))
    if inputs.mask is None:
        return Start(shape, codec.encode(image), inputs=seen)
    white = pictures.from_mask(inputs.mask, *size)
    kept = None
    if inputs.request.paste:
        # All latents that the mask touches; then the image's own pixels, with an edge half a latent wide.
        latent_mask = F.adaptive_max_pool2d(white, shape[1:])
        kept = image, pictures.soft_mask(inputs.mask, *size, edge=pipeline.checkpoint.factor // 2)
    else:
        latent_mask = F.interpolate(white, size=shape[1:])
    start = Start(shape, mask=latent_mask.to(pipeline.device), kept=kept, inputs=seen)
    if pipeline.checkpoint.also_reads != "mask":
        return replace(start, image=codec.encode(image))
    masked = codec.encode(image, hidden=white)
    if pipeline.checkpoint.reads_pixels:
        pixels = F.pixel_unshuffle(white, codec.factor).to(pipeline.device)
        return replace(start, image=codec.encode(image), masked=masked, pixels=pixels)
    from_noise = inputs.request.strength == 1  # then the image itself is not looked at
    return replace(start, image=None if from_noise else codec.encode(image), masked=masked)


def _look_at(pipeline: Pipeline, inputs: StartInputs) -> dict[str, Tensor]:
    """What a transformer reads of the images of a request that it looks at: the one to edit first."""
    rule, codec = pipeline.checkpoint.family.references, inputs.stage.codec
    found = looked_at(pipeline, inputs)
    if rule is None or not found:
        return {}
    multiple, latents = pipeline.checkpoint.multiple, []
    for image in found:
        size = seen_size(image.size, rule, multiple)
        if not rule.sizes and not rule.area:  # what is over whole tokens is cut away
            image = _cut(image.resize(within_megapixel(image.size), Image.Resampling.LANCZOS), size)
        latents.append(codec.encode(image.resize(size, Image.Resampling.LANCZOS)).mean)
    side = multiple // codec.factor  # latents of a token
    place = centred if rule.centred else grid
    return look_at([F.pixel_unshuffle(one, side) for one in latents], rule.plane, place)


def looked_at(pipeline: Pipeline, inputs: StartInputs) -> list[Image.Image]:
    """The images that a network looks at beside the one that it draws, the one to edit first."""
    family = pipeline.checkpoint.family
    if family.references is None:
        return []
    first = [inputs.init] if family.reads_init == "edits" and inputs.init is not None else []
    return [*first, *(inputs.named[name] for name in inputs.request.reference)]


def _cut(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of an image."""
    left, top = ((old - new) // 2 for old, new in zip(image.size, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))


def continue_latents(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Continue with the latents of the stage before; what its mask covers stays covered, unless its network did it."""
    before = inputs.before
    assert before is not None
    return Continued(before.shape, mask=before.mask if before.masked is None else None, kept=before.kept)

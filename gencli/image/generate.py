"""The picture recipe: load → encode the prompt → denoise → decode. Yields every step, then the pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gencli.image import pictures, samplers
from gencli.image.families.base import Conditioning
from gencli.image.guidance import Denoiser, check_finite
from gencli.image.pipeline import Pipeline
from gencli.image.request import ImageRequest
from gencli.image.schedule import Step, from_strength
from gencli.image.settings import sampler_options


@dataclass(frozen=True)
class Denoised:
    """One step is done for pictures `first` … `first + B - 1`; x0 (B, C, h, w) is what they look like so far."""

    index: int
    total: int
    first: int
    x0: Tensor


@dataclass(frozen=True)
class Picture:
    """A finished picture, the `index`-th from 0, and the request that makes it again alone."""

    index: int
    image: Image.Image
    request: ImageRequest


class Noise:
    """Normal noise for a batch of pictures, each from a generator of its own: the same on every device and for every
    batch. Each call draws (1, C, h, w) in float32 for every picture."""

    def __init__(self, seeds: Iterable[int], shape: tuple[int, int, int], device: torch.device):
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        drawn = [torch.randn((1, *self.shape), generator=generator) for generator in self.generators]
        return torch.cat(drawn).to(self.device)


@dataclass(frozen=True)
class Start:
    """What a picture is made from instead of noise alone. mean, deviation: of its latents, (1, C, h, w); deviation is
    None for a model in pixels. mask (1, 1, h, w): 1 where it is painted anew, None for everywhere."""

    mean: Tensor
    deviation: Tensor | None = None
    mask: Tensor | None = None

    def draw(self, noise: Noise) -> Tensor:
        """Latents of the picture for each of the batch."""
        if self.deviation is None:
            return self.mean.expand(len(noise.generators), -1, -1, -1)
        return self.mean + self.deviation * noise()


def generate(
    pipeline: Pipeline,
    request: ImageRequest,
    prompts: Iterable[str] | None = None,
    *,
    init: Image.Image | None = None,
    mask: Image.Image | None = None,
) -> Iterator[Denoised | Picture]:
    """Make `request.count` pictures of every prompt (default: the request's own), `request.batch` at a time.

    `request` is a resolved one. Picture i draws from `torch.Generator("cpu")` seeded with `request.seed + i`, in
    diffusers' order: with `init` first its latents, then the noise, with a mask one more that goes unused, the steps.
    Raises GencliError for a prompt that is too long and for NaN from the model.
    """
    recipe = _Recipe(pipeline, request, init, mask)
    texts = [request.prompt] if prompts is None else (request.replace(prompt=prompt).prompt for prompt in prompts)
    each = itertools.chain.from_iterable(itertools.repeat(text, request.count) for text in texts)
    first = 0
    while batch := list(itertools.islice(each, request.batch)):
        yield from recipe.run(batch, first)
        first += len(batch)


class _Recipe:
    """What all batches of a request share."""

    def __init__(self, pipeline: Pipeline, request: ImageRequest, init: Image.Image | None, mask: Image.Image | None):
        assert request.width and request.height and request.steps  # it is resolved
        self.pipeline, self.request = pipeline, request
        self.sampler = samplers.get(request.sampler or "ddim")
        self.options = self.sampler.settings(pipeline.schedule, sampler_options(request))
        self.spacing = request.spacing or pipeline.schedule.timestep_spacing
        self.steps = self.sampler.steps(pipeline.schedule, request.steps, self.spacing, **self.options)
        self.shape = pipeline.latent_shape(request.width, request.height)
        self.told: tuple[Sequence[str], Conditioning] | None = None  # the last prompts, and what was told
        self.start: Start | None = None
        if init is not None:
            self.steps = from_strength(self.steps, request.strength or 1.0)
            self.start = self._start(init, mask)

    def _start(self, init: Image.Image, mask: Image.Image | None) -> Start:
        size = (self.request.width or 0, self.request.height or 0)
        picture = init if init.size == size else init.resize(size, Image.Resampling.LANCZOS)
        mean, deviation = self.pipeline.encode_picture(picture)
        white = None if mask is None else F.interpolate(pictures.from_mask(mask, *size), size=self.shape[1:])
        return Start(mean, deviation, None if white is None else white.to(mean.device))

    def run(self, prompts: Sequence[str], first: int) -> Iterator[Denoised | Picture]:
        """One batch: its steps, then its pictures."""
        request, pipeline = self.request, self.pipeline
        seeds = [(request.seed or 0) + first + i for i in range(len(prompts))]
        noise = Noise(seeds, self.shape, pipeline.device)
        x0 = None if self.start is None else self.start.draw(noise)
        eps = noise()
        if self.start is not None and self.start.mask is not None and self.start.deviation is not None:
            noise()  # diffusers samples the masked picture's latents too, for UNets that read them
        x = self._begin(x0, eps)
        denoiser = self._denoiser(prompts)
        for sample in self.sampler(denoiser, x, self.steps, noise=noise, **self.options):
            x = sample.x
            if x0 is not None and self.start is not None and self.start.mask is not None:
                _keep(x, x0, eps, self.start.mask, self.steps, sample.index)
            check_finite(x, sample.index)
            yield Denoised(sample.index, sample.total, first, sample.x0)
        for i, prompt in enumerate(prompts):
            image = pipeline.decode(x[i : i + 1], tiled=request.vae_tiling)
            made = request.item(first + i).replace(prompt=prompt, dtype=str(pipeline.dtype).removeprefix("torch."))
            yield Picture(first + i, image, made)

    def _begin(self, x0: Tensor | None, eps: Tensor) -> Tensor:
        """x at the first step: noise alone, or the picture with as much noise as that step expects."""
        masked = self.start is not None and self.start.mask is not None
        if x0 is None or (masked and self.request.strength == 1):
            return self.sampler.initial(eps, self.steps, self.spacing)
        return self.steps[0].at.mix(x0, eps)

    def _denoiser(self, prompts: Sequence[str]) -> Denoiser:
        request, pipeline = self.request, self.pipeline
        # Latents have no range to be clipped to, whatever the checkpoint's scheduler says.
        limits = self.sampler.limits - ({"clip"} if pipeline.vae is not None else set())
        if pipeline.conditioner is None:
            return Denoiser(pipeline.predict, pipeline.schedule, limits=limits)
        scale = request.guidance if request.guidance is not None else 1.0
        return Denoiser(
            pipeline.predict,
            pipeline.schedule,
            context=self._context(prompts),
            negative=self._negative if scale > 1 else None,
            guidance_scale=scale,
            guidance_rescale=request.guidance_rescale or 0.0,
            limits=limits,
        )

    def _context(self, prompts: Sequence[str]) -> Conditioning:
        """What the network is told of prompts, once for all batches of the same ones."""
        if self.told is None or self.told[0] != prompts:
            self.told = prompts, self.pipeline.conditioner.encode(prompts, self.request)
        return self.told[1]

    @cached_property
    def _negative(self) -> Conditioning:
        return self.pipeline.conditioner.negative(self.request)


def _keep(x: Tensor, x0: Tensor, eps: Tensor, mask: Tensor, steps: Sequence[Step], index: int) -> None:
    """Outside the mask, put the picture back into x at its next noise level (in place: the sampler goes on from it)."""
    original = x0 if index == len(steps) - 1 else steps[index].next.mix(x0, eps)
    x.copy_(torch.where(mask > 0.5, x, original))

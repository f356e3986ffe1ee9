"""The picture recipe: load → encode the prompt → denoise → decode. Yields every step, then the pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from gencli.image.conditioning import Conditioning
from gencli.image.controlnet import Controlled, activate, mark
from gencli.image.diffusion import samplers
from gencli.image.diffusion.classifier_guidance import ClassifierGuided, LogLikelihood
from gencli.image.diffusion.guidance import Denoiser, Model, Predict, check_finite
from gencli.image.latents import Drawn, start
from gencli.image.pipeline import Pipeline
from gencli.image.prompts import weighting
from gencli.image.request import ImageRequest
from gencli.image.settings import sampler_options
from gencli.models.controlnet import ControlNetModel


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


def generate(
    pipeline: Pipeline,
    request: ImageRequest,
    prompts: Iterable[str] | None = None,
    *,
    init: Image.Image | None = None,
    mask: Image.Image | None = None,
    controls: Sequence[tuple[ControlNetModel, Image.Image]] = (),
) -> Iterator[Denoised | Picture]:
    """Make `request.count` pictures of every prompt (default: the request's own), `request.batch` at a time.

    `request` is a resolved one. Picture i draws from `torch.Generator("cpu")` seeded with `request.seed + i`, in
    diffusers' order: with `init` first its latents, then the noise, with a mask one more that goes unused, the steps.
    controls: the ControlNets of the request, each with its picture.
    Raises GencliError for a prompt that is too long and for NaN from the model.
    """
    recipe = _Recipe(pipeline, request, init, mask, controls)
    texts = [request.prompt] if prompts is None else (request.replace(prompt=prompt).prompt for prompt in prompts)
    each = itertools.chain.from_iterable(itertools.repeat(text, request.count) for text in texts)
    first = 0
    for _, alike in itertools.groupby(each, recipe.length):  # so that no prompt is told more for another's sake
        while batch := list(itertools.islice(alike, request.batch)):
            yield from recipe.run(batch, first)
            first += len(batch)


class _Recipe:
    """What all batches of a request share."""

    def __init__(
        self,
        pipeline: Pipeline,
        request: ImageRequest,
        init: Image.Image | None,
        mask: Image.Image | None,
        controls: Sequence[tuple[ControlNetModel, Image.Image]],
    ):
        assert request.width and request.height and request.steps  # it is resolved
        self.pipeline, self.request = pipeline, request
        self.sampler = samplers.get(request.sampler or "ddim")
        self.options = self.sampler.settings(pipeline.schedule, sampler_options(request))
        self.spacing = request.spacing or pipeline.schedule.timestep_spacing
        strength = None if init is None else request.strength or 1.0
        self.steps = self.sampler.steps(pipeline.schedule, request.steps, self.spacing, strength, **self.options)
        self.shape = pipeline.latent_shape(request.width, request.height)
        self.told: tuple[Sequence[str], Conditioning] | None = None  # the last prompts, and what was told
        self.start = start(pipeline, request, init, mask)
        self.controls = activate(pipeline, request, self.steps, controls)

    def run(self, prompts: Sequence[str], first: int) -> Iterator[Denoised | Picture]:
        """One batch: its steps, then its pictures."""
        request, pipeline = self.request, self.pipeline
        seeds = [(request.seed or 0) + first + i for i in range(len(prompts))]
        noise = Noise(seeds, self.shape, pipeline.device)
        drawn = self.start.draw(noise, len(seeds))
        x = self._begin(drawn)
        denoiser = self._led(self._denoiser(prompts, drawn), prompts)
        for sample in self.sampler(denoiser, x, self.steps, noise=noise, **self.options):
            x = sample.x
            self.start.keep(x, drawn, self.steps, sample.index)
            check_finite(x, sample.index)
            yield Denoised(sample.index, sample.total, first, sample.x0)
        for i, prompt in enumerate(prompts):
            image = pipeline.decode(x[i : i + 1], tiled=request.vae_tiling)
            made = request.item(first + i).replace(prompt=prompt, dtype=str(pipeline.dtype).removeprefix("torch."))
            yield Picture(first + i, image, made)

    def _begin(self, drawn: Drawn) -> Tensor:
        """x at the first step: noise alone, or the picture with as much noise as that step expects."""
        if drawn.x0 is None or (self.start.mask is not None and self.request.strength == 1):
            return self.sampler.initial(drawn.eps, self.steps, self.spacing)
        return self.steps[0].at.mix(drawn.x0, drawn.eps)

    def _denoiser(self, prompts: Sequence[str], drawn: Drawn) -> Denoiser:
        request, pipeline = self.request, self.pipeline
        # Latents have no range to be clipped to, whatever the checkpoint's scheduler says.
        limits = self.sampler.limits - ({"clip"} if pipeline.vae is not None else set())
        if pipeline.conditioner is None:
            return Denoiser(pipeline.predict, pipeline.schedule, limits=limits)
        scale = request.guidance if request.guidance is not None else 1.0
        guided = scale > 1 and not pipeline.reads_guidance
        context, negative = self._context(prompts), self._negative if guided else None
        if request.weighted and negative is not None:
            context, negative = weighting.pad_to_same_length(context, negative, self._empty)
        context, negative, between = self.start.tell(drawn, context, negative)
        model: Model = pipeline.predict
        if self.controls:
            model = Controlled(model, self.controls)
            context, negative, between = mark(context, negative, between)
        return Denoiser(
            model,
            pipeline.schedule,
            context=context,
            negative=negative,
            between=between,
            guidance_scale=scale,
            guidance_rescale=request.guidance_rescale or 0.0,
            image_guidance_scale=1.0 if request.image_guidance is None else request.image_guidance,
            limits=limits,
        )

    def _led(self, denoiser: Denoiser, prompts: Sequence[str]) -> Predict:
        """The denoiser led by the classifier, where there is one."""
        pipeline, classes = self.pipeline, self.pipeline.checkpoint.classes
        if pipeline.classifier is None or classes is None or not self.request.classifier_scale:
            return denoiser
        wanted = torch.tensor([classes.find(prompt) for prompt in prompts])
        gradient = LogLikelihood(pipeline.classifier, wanted, self.request.classifier_scale)
        return ClassifierGuided(denoiser, gradient, mean=self.sampler.shifts_mean)

    def _context(self, prompts: Sequence[str]) -> Conditioning:
        """What the network is told of prompts, once for all batches of the same ones."""
        if self.told is None or self.told[0] != prompts:
            told = self.pipeline.conditioner.encode(prompts, self.request)
            if self.pipeline.reads_guidance:
                told = {**told, "timestep_cond": self.pipeline.embed_guidance(self.request.guidance or 0.0)}
            self.told = prompts, told
        return self.told[1]

    @cached_property
    def _negative(self) -> Conditioning:
        return self.pipeline.conditioner.negative(self.request)

    @cached_property
    def _empty(self) -> Conditioning:
        return self.pipeline.conditioner.encode([""], self.request)

    def length(self, prompt: str) -> int:
        """Chunks of a prompt, which are as many for all of a batch."""
        return weighting.count_chunks(self.pipeline.conditioner.text_encoders, prompt) if self.request.weighted else 1

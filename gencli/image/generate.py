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
from gencli.image.controlnet import Controlled, activate, mark_cond
from gencli.image.diffusion import samplers
from gencli.image.diffusion.classifier_guidance import ClassifierGuided, LogLikelihood
from gencli.image.diffusion.guidance import Denoiser, Model, Predict, check_finite
from gencli.image.latents import InitLatents, prepare_latents
from gencli.image.pipeline import Pipeline
from gencli.image.prompts import weighting
from gencli.image.request import ImageRequest
from gencli.image.resolve import sampler_options
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
        self.encoded: tuple[Sequence[str], Conditioning] | None = None  # the last prompts, and their conditioning
        self.start = prepare_latents(pipeline, request, init, mask)
        self.controls = activate(pipeline, request, self.steps, controls)

    def run(self, prompts: Sequence[str], first: int) -> Iterator[Denoised | Picture]:
        """One batch: its steps, then its pictures."""
        request, pipeline = self.request, self.pipeline
        seeds = [(request.seed or 0) + first + i for i in range(len(prompts))]
        draw_noise = Noise(seeds, self.shape, pipeline.device)
        init = self.start.draw(draw_noise, len(seeds))
        x = self._first(init)
        denoiser = self._guided(self._denoiser(prompts, init), prompts)
        for sample in self.sampler(denoiser, x, self.steps, draw_noise=draw_noise, **self.options):
            x = sample.x
            self.start.apply_mask(x, init, self.steps, sample.index)
            check_finite(x, sample.index)
            yield Denoised(sample.index, sample.total, first, sample.x0)
        for i, prompt in enumerate(prompts):
            image = pipeline.decode(x[i : i + 1], tiled=request.vae_tiling)
            made = request.item(first + i).replace(prompt=prompt, dtype=str(pipeline.dtype).removeprefix("torch."))
            yield Picture(first + i, image, made)

    def _first(self, init: InitLatents) -> Tensor:
        """x at the first step: noise alone, or the picture with as much noise as that step expects."""
        if init.x0 is None or (self.start.mask is not None and self.request.strength == 1):
            return self.sampler.initial(init.eps, self.steps, self.spacing)
        return self.steps[0].at.mix(init.x0, init.eps)

    def _denoiser(self, prompts: Sequence[str], init: InitLatents) -> Denoiser:
        request, pipeline = self.request, self.pipeline
        # Latents have no range to be clipped to, whatever the checkpoint's scheduler says.
        limits = self.sampler.limits - ({"clip"} if pipeline.vae is not None else set())
        if pipeline.conditioner is None:
            return Denoiser(pipeline.predict, pipeline.schedule, limits=limits)
        scale = request.guidance if request.guidance is not None else 1.0
        guided = scale > 1 and not pipeline.reads_guidance
        cond, uncond = self._cond(prompts), self._uncond if guided else None
        if request.weighted and uncond is not None:
            cond, uncond = weighting.pad_to_same_length(cond, uncond, self._empty)
        cond, uncond, image_uncond = self.start.add_conditioning(init, cond, uncond)
        model: Model = pipeline.predict
        if self.controls:
            model = Controlled(model, self.controls)
            cond, uncond, image_uncond = mark_cond(cond, uncond, image_uncond)
        return Denoiser(
            model,
            pipeline.schedule,
            cond=cond,
            uncond=uncond,
            image_uncond=image_uncond,
            guidance_scale=scale,
            guidance_rescale=request.guidance_rescale or 0.0,
            image_guidance_scale=1.0 if request.image_guidance is None else request.image_guidance,
            limits=limits,
        )

    def _guided(self, denoiser: Denoiser, prompts: Sequence[str]) -> Predict:
        """The denoiser, guided by the classifier if there is one."""
        pipeline, classes = self.pipeline, self.pipeline.checkpoint.classes
        if pipeline.classifier is None or classes is None or not self.request.classifier_scale:
            return denoiser
        wanted = torch.tensor([classes.find(prompt) for prompt in prompts])
        gradient = LogLikelihood(pipeline.classifier, wanted, self.request.classifier_scale)
        return ClassifierGuided(denoiser, gradient, mean=self.sampler.shifts_mean)

    def _cond(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of prompts, encoded once for all batches of the same ones."""
        if self.encoded is None or self.encoded[0] != prompts:
            cond = self.pipeline.conditioner.encode(prompts, self.request)
            if self.pipeline.reads_guidance:
                cond = cond.with_inputs(timestep_cond=self.pipeline.embed_guidance(self.request.guidance or 0.0))
            self.encoded = prompts, cond
        return self.encoded[1]

    @cached_property
    def _uncond(self) -> Conditioning:
        return self.pipeline.conditioner.negative(self.request)

    @cached_property
    def _empty(self) -> Conditioning:
        return self.pipeline.conditioner.encode([""], self.request)

    def length(self, prompt: str) -> int:
        """Chunks of a prompt, which are as many for all of a batch."""
        return weighting.count_chunks(self.pipeline.conditioner.text_encoders, prompt) if self.request.weighted else 1

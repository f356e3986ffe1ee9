"""The image recipe: for each stage encode the prompt and denoise, then decode. Yields every step, then the images."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from PIL import Image
from torch import Tensor

from gencli.errors import GencliError
from gencli.image import stages
from gencli.image.conditioning import Conditioning
from gencli.image.controlnet import Controlled, activate, mark_cond
from gencli.image.diffusion.classifier_guidance import ClassifierGuided, LogLikelihood
from gencli.image.diffusion.guidance import Denoiser, Model, Predict, check_finite
from gencli.image.families import import_name
from gencli.image.latents import InitLatents, StageOutput, Start, StartInputs
from gencli.image.pipeline import LoadedStage, Pipeline
from gencli.image.prompts import weighting
from gencli.image.prompts.base import Conditioner
from gencli.image.request import ImageRequest
from gencli.models.controlnet import ControlNetModel


@dataclass(frozen=True)
class StageInfo:
    """A stage's name, and its number (from 1) among all of a model. shows: whether its x0 can be decoded."""

    name: str = "base"
    number: int = 1
    count: int = 1
    shows: bool = True

    def __str__(self) -> str:
        return f"{self.name} (stage {self.number} of {self.count})"


@dataclass(frozen=True)
class Denoised:
    """One step of a stage is done for images `first` … `first + B - 1`; x0 (B, C, h, w) is what they are so far."""

    index: int
    total: int
    first: int
    x0: Tensor
    stage: StageInfo = StageInfo()


@dataclass(frozen=True)
class Picture:
    """A finished image, the `index`-th from 0, and the request that makes it again alone."""

    index: int
    image: Image.Image
    request: ImageRequest


class Noise:
    """Normal noise for a batch of images, each from a generator of its own: the same on every device and for every
    batch. Each call draws (1, *shape) in float32 for every image."""

    def __init__(self, seeds: Iterable[int], device: torch.device):
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.device = device

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return torch.cat([torch.randn((1, *shape), generator=one) for one in self.generators]).to(self.device)


def generate(
    pipeline: Pipeline,
    request: ImageRequest,
    prompts: Iterable[str | None] | None = None,
    *,
    init: Image.Image | None = None,
    mask: Image.Image | None = None,
    controls: Sequence[tuple[ControlNetModel, Image.Image]] = (),
) -> Iterator[Denoised | Picture]:
    """Make `request.count` images of every prompt (default: the request's own), `request.batch` at a time.

    A prompt that is None is passed over, and its seeds with it. `request` is a resolved one. Image i draws from
    `torch.Generator("cpu")` seeded with `request.seed + i`, in diffusers' order: with `init` first its latents, then
    the noise, with a mask one more that goes unused, the steps; then the same for the next stage. controls: the
    ControlNets of the request, each with its image.
    Raises GencliError for a prompt that is too long and for NaN from the model.
    """
    runs = _prepare(pipeline, request, init, mask, controls)
    texts = [request.prompt] if prompts is None else prompts
    for first, batch in _batches(texts, request, runs):
        noise = Noise(((request.seed or 0) + first + i for i in range(len(batch))), pipeline.device)
        output: StageOutput | None = None
        for run in runs:
            output = yield from run(batch, first, noise, output)
        assert output is not None
        for i, prompt in enumerate(batch):
            image = runs[-1].start.finish(pipeline.decode(output.x[i : i + 1], tiled=request.vae_tiling))
            dtype = str(pipeline.dtype).removeprefix("torch.")
            yield Picture(first + i, image, request.item(first + i, prompt=prompt, dtype=dtype))


def _batches(
    texts: Iterable[str | None], request: ImageRequest, runs: Sequence[_StageRun]
) -> Iterator[tuple[int, list[str]]]:
    """The prompts of images that follow each other, `request.batch` at most, with the index of the first one.

    Prompts of as many chunks go together, so that no prompt is padded for another's sake.
    """
    each = ((n * request.count + i, text) for n, text in enumerate(texts) for i in range(request.count))
    for key, alike in itertools.groupby(
        each, lambda one: None if one[1] is None else [run.count_chunks(one[1]) for run in runs]
    ):
        while key is not None and (batch := list(itertools.islice(alike, request.batch))):
            yield batch[0][0], [request.replace(prompt=text).prompt for _, text in batch if text is not None]


def _prepare(
    pipeline: Pipeline,
    request: ImageRequest,
    init: Image.Image | None,
    mask: Image.Image | None,
    controls: Sequence[tuple[ControlNetModel, Image.Image]],
) -> list[_StageRun]:
    """All stages of a request, ready to run."""
    runs: list[_StageRun] = []
    plans = stages.plan(request, pipeline.checkpoint, has_init=init is not None)
    for loaded, plan in zip(pipeline.stages, plans, strict=True):
        inputs = StartInputs(plan.request, init, mask, runs[-1].start if runs else None)
        start: Start = import_name(loaded.stage.start)(pipeline, inputs)
        runs.append(_StageRun(pipeline, loaded, plan, start, controls if loaded is pipeline.main else ()))
    return runs


class _StageRun:
    """One stage of a request: what all of its batches share."""

    def __init__(
        self,
        pipeline: Pipeline,
        loaded: LoadedStage,
        plan: stages.StagePlan,
        start: Start,
        controls: Sequence[tuple[ControlNetModel, Image.Image]],
    ):
        self.pipeline, self.loaded, self.plan, self.start = pipeline, loaded, plan, start
        self.request, self.sampler = plan.request, plan.sampler
        self.info = StageInfo(
            plan.stage.name, pipeline.stages.index(loaded) + 1, len(pipeline.stages), plan.stage.shows
        )
        self.encoded: tuple[Sequence[str], Conditioning] | None = None  # the last prompts, and their conditioning
        self.controls = activate(loaded, self.request, plan.steps, controls)

    def __call__(
        self, prompts: Sequence[str], first: int, noise: Noise, before: StageOutput | None
    ) -> Generator[Denoised, None, StageOutput]:
        """Denoise one batch: yield its steps, return its output. first: the index of its first image. before: the
        output of the stage before."""
        steps, draw_noise = self.plan.steps, partial(noise, self.start.shape)
        init = self.start.draw(draw_noise, len(prompts), before)
        x = self._first(init, before)
        predict = self._guided(self._denoiser(prompts, init), prompts)
        for sample in self.sampler(predict, x, steps, draw_noise=draw_noise, **self.plan.options):
            x = sample.x
            self.start.apply_mask(x, init, steps, sample.index)
            check_finite(x, sample.index, self._doubt)
            yield Denoised(sample.index, sample.total, first, sample.x0, self.info)
        return StageOutput(x, steps[-1].next, init)

    def _first(self, init: InitLatents, before: StageOutput | None) -> Tensor:
        """x at the first step: noise alone, or the image with as much noise as that step expects."""
        at = self.plan.steps[0].at
        if init.x is not None and before is not None:
            same = before.point.alpha_cumprod == at.alpha_cumprod or not self.sampler.in_sigma
            return init.x if same else init.x * (at.sqrt_alpha_cumprod / before.point.sqrt_alpha_cumprod)
        if init.x0 is None or (self.start.mask is not None and self.request.strength == 1):
            return self.sampler.initial(init.eps, self.plan.steps, self.plan.spacing)
        return at.mix(init.x0, init.eps)

    def _denoiser(self, prompts: Sequence[str], init: InitLatents) -> Denoiser:
        request, loaded, conditioner = self.request, self.loaded, self.loaded.conditioner
        # Latents have no range to be clipped to, whatever the checkpoint's scheduler says.
        limits = self.sampler.limits - ({"clip"} if self.pipeline.vae is not None else set())
        if conditioner is None:
            cond, _, _ = self.start.add_conditioning(init, Conditioning(), None)
            return Denoiser(loaded.predict, loaded.schedule, cond=cond, limits=limits)
        scale = request.guidance if request.guidance is not None else 1.0
        guided = scale > 1 and not loaded.reads_guidance
        cond, uncond = self._cond(conditioner, prompts), self._uncond if guided else None
        if request.weighted and uncond is not None:
            cond, uncond = weighting.pad_to_same_length(cond, uncond, self._empty)
        cond, uncond, image_uncond = self.start.add_conditioning(init, cond, uncond)
        model: Model = loaded.predict
        if self.controls:
            model = Controlled(model, self.controls)
            cond, uncond, image_uncond = mark_cond(cond, uncond, image_uncond)
        return Denoiser(
            model,
            loaded.schedule,
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
        classifier, classes = self.pipeline.classifier, self.pipeline.checkpoint.classes
        if classifier is None or classes is None or not self.request.classifier_scale:
            return denoiser
        wanted = torch.tensor([classes.find(prompt) for prompt in prompts])
        gradient = LogLikelihood(classifier, wanted, self.request.classifier_scale)
        return ClassifierGuided(denoiser, gradient, mean=self.sampler.shifts_mean)

    def _cond(self, conditioner: Conditioner, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of prompts, encoded once for all batches of the same ones."""
        if self.encoded is None or self.encoded[0] != prompts:
            cond = conditioner.encode(prompts, self.request)
            if self.loaded.reads_guidance:
                cond = cond.with_inputs(timestep_cond=self.loaded.embed_guidance(self.request.guidance or 0.0))
            self.encoded = prompts, cond
        return self.encoded[1]

    @cached_property
    def _uncond(self) -> Conditioning:
        assert self.loaded.conditioner is not None
        try:
            return self.loaded.conditioner.negative(self.request)
        except GencliError as error:
            error.message = error.message.replace("the prompt", "the negative prompt", 1)
            raise

    @property
    def _doubt(self) -> str:
        """What may be wrong when the network gives NaN."""
        if self.loaded.dtype != torch.float32:
            return "half precision may have overflowed: try --dtype float32"
        return "a LoRA may be broken: try it without --lora, or with a smaller SCALE" if self.request.lora else ""

    @cached_property
    def _empty(self) -> Conditioning:
        assert self.loaded.conditioner is not None
        return self.loaded.conditioner.encode([""], self.request)

    def count_chunks(self, prompt: str) -> int:
        """Chunks of a prompt, which are as many for all of a batch."""
        if not self.request.weighted or self.loaded.conditioner is None:
            return 1
        return weighting.count_chunks(self.loaded.conditioner.text_encoders, prompt)

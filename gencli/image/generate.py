"""The image recipe: for each stage encode the prompt and denoise, then decode. Yields every step, then the images."""

from __future__ import annotations

import itertools
import pkgutil
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import torch
from PIL import Image
from torch import Tensor

from gencli.errors import GencliError
from gencli.image import stages
from gencli.image.conditioning import Conditioning
from gencli.image.controlnet import Controlled, activate, mark_cond
from gencli.image.diffusion.classifier_guidance import ClassifierGuided, LogLikelihood
from gencli.image.diffusion.guidance import Denoiser, Predict, check_finite
from gencli.image.events import Denoised, Picture, StageInfo
from gencli.image.families import path_of
from gencli.image.latents import InitLatents, StageOutput, Start, StartInputs, looked_at
from gencli.image.pipeline import LoadedStage, Pipeline
from gencli.image.prompts import weighting
from gencli.image.prompts.base import Conditioner, SeesImages
from gencli.image.request import ImageRequest
from gencli.models.controlnet import ControlNetModel
from gencli.options import check_values

NO_IMAGES: Mapping[str, Image.Image] = MappingProxyType({})


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
    named: Mapping[str, Image.Image] = NO_IMAGES,
) -> Generator[Denoised | Picture, None, None]:
    """Make `request.count` images of every prompt (default: the request's own), `request.batch` at a time.

    A prompt that is None is passed over, and its seeds with it. `request` is a resolved one. Image i draws from
    `torch.Generator("cpu")` seeded with `request.seed + i`, in diffusers' order: with `init` first its latents, then
    the noise, with a mask one more that goes unused, the steps; then the same for the next stage. controls: the
    ControlNets of the request, each with its image. named: images that it mixes or looks at, by their names in
    it.
    Of a family that holds one stage at a time, all images pass a stage
    before the next one begins, and all prompts are read before the first.
    Raises GencliError for a prompt that is too long and for NaN from the model.
    """
    runs = _prepare(pipeline, request, init, mask, controls, named)
    batches = _batches(pipeline, [request.prompt] if prompts is None else prompts, request, runs)
    groups: Iterable[list[_Batch]] = [list(batches)] if pipeline.one_at_a_time else ([one] for one in batches)
    for group in groups:
        if pipeline.one_at_a_time:
            for known in {id(run.known): run.known for run in runs}.values():
                known.read_all(batch.prompts for batch in group)
        for run in runs:
            for batch in group:
                batch.output = yield from run(batch.prompts, batch.first, batch.noise, batch.output)
                if run is runs[-1]:
                    yield from _decode(pipeline, request, batch, run.start)
            if pipeline.one_at_a_time:
                run.loaded.network_part.release()


@dataclass
class _Batch:
    """Images that go through a stage together, the first of them the `first`-th. output: that of the last stage that
    they passed."""

    prompts: list[str]
    first: int
    noise: Noise
    output: StageOutput | None = None


def _batches(
    pipeline: Pipeline, texts: Iterable[str | None], request: ImageRequest, runs: Sequence[_StageRun]
) -> Iterator[_Batch]:
    """The images that follow each other, `request.batch` at most together, from a multiple of that number on: what an
    image goes with depends on nothing before that.

    Prompts of as many chunks go together, so that no prompt is padded for another's sake.
    """
    each = ((n * request.count + i, text) for n, text in enumerate(texts) for i in range(request.count))
    for key, alike in itertools.groupby(
        each, lambda one: None if one[1] is None else [run.count_chunks(one[1]) for run in runs]
    ):
        while key is not None and (batch := _next_batch(alike, request.batch)):
            first, prompts = batch[0][0], [text for _, text in batch if text is not None]
            for prompt in prompts:
                check_values(ImageRequest, {"prompt": prompt})
            noise = Noise(((request.seed or 0) + first + i for i in range(len(batch))), pipeline.device)
            yield _Batch(prompts, first, noise)


def _next_batch(images: Iterator[tuple[int, str | None]], size: int) -> list[tuple[int, str | None]]:
    """Return the next images up to a number that is a multiple of `size`, none of them read before it is needed."""
    first = list(itertools.islice(images, 1))
    return first + list(itertools.islice(images, size - 1 - first[0][0] % size)) if first else []


def _decode(pipeline: Pipeline, request: ImageRequest, batch: _Batch, start: Start) -> Iterator[Picture]:
    output = batch.output
    assert output is not None and output.codec is not None
    dtype = str(pipeline.dtype).removeprefix("torch.")
    for i, prompt in enumerate(batch.prompts):
        image = start.finish(output.codec.decode(output.x[i : i + 1], tiled=request.vae_tiling))
        yield Picture(batch.first + i, image, request.item(batch.first + i, prompt=prompt, dtype=dtype))


def _prepare(
    pipeline: Pipeline,
    request: ImageRequest,
    init: Image.Image | None,
    mask: Image.Image | None,
    controls: Sequence[tuple[ControlNetModel, Image.Image]],
    named: Mapping[str, Image.Image],
) -> list[_StageRun]:
    """All stages of a request, ready to run."""
    runs: list[_StageRun] = []
    known: dict[int, _Prompts] = {}
    plans = stages.plan(request, pipeline.checkpoint, has_init=init is not None)
    for loaded, plan in zip(pipeline.stages, plans, strict=True):
        inputs = StartInputs(plan.request, loaded, init, mask, runs[-1].start if runs else None, named)
        start: Start = pkgutil.resolve_name(path_of(loaded.stage.start))(pipeline, inputs)
        seen = looked_at(pipeline, inputs)
        prompts = known.setdefault(id(loaded.conditioner_part), _Prompts(loaded, plan.request, seen))
        alike = [len(one.steps) for one in plans if one.stage.shown_as == plan.stage.shown_as]
        done = sum(len(run.plan.steps) for run in runs if run.plan.stage.shown_as == plan.stage.shown_as)
        used = controls if loaded is pipeline.main else ()
        runs.append(_StageRun(pipeline, loaded, plan, start, prompts, used, done, sum(alike) - len(plan.steps)))
    return runs


class _Prompts:
    """What a conditioner makes of prompts, for all stages that share it: encoded once for all batches of the same.
    images: those that the network looks at, which some conditioners see too."""

    def __init__(self, loaded: LoadedStage, request: ImageRequest, images: Sequence[Image.Image]):
        self.part, self.request, self.images = loaded.conditioner_part, request, images
        self.seeing: tuple[Conditioner, Conditioner] | None = None  # the part, and that with the images
        self.encoded: dict[tuple[str, ...], Conditioning] = {}
        self.keeps_all = False

    @property
    def conditioner(self) -> Conditioner | None:
        made = self.part.get()
        if not self.images or not isinstance(made, SeesImages):
            return made
        if self.seeing is None or self.seeing[0] is not made:
            self.seeing = made, made.seeing(self.images)
        return self.seeing[1]

    def read_all(self, batches: Iterable[Sequence[str]]) -> None:
        """Encode everything that will be asked for, and let the text encoders go."""
        self.keeps_all = True
        if self.conditioner is not None:
            for prompts in batches:
                self.encode(prompts)
            assert self.negative is not None
        self.part.release()

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        if (key := tuple(prompts)) not in self.encoded:
            assert self.conditioner is not None
            if not self.keeps_all:
                self.encoded.clear()
            self.encoded[key] = self.conditioner.encode(prompts, self.request)
        return self.encoded[key]

    @cached_property
    def negative(self) -> Conditioning:
        assert self.conditioner is not None
        try:
            return self.conditioner.negative(self.request)
        except GencliError as error:
            error.message = error.message.replace("the prompt", "the negative prompt", 1)
            raise

    @cached_property
    def empty(self) -> Conditioning:
        assert self.conditioner is not None
        return self.conditioner.encode([""], self.request)


class _StageRun:
    """One stage of a request: what all of its batches share. done, others: steps that networks before it, and all but
    it, take in the stage that users know it as."""

    def __init__(
        self,
        pipeline: Pipeline,
        loaded: LoadedStage,
        plan: stages.StagePlan,
        start: Start,
        known: _Prompts,
        controls: Sequence[tuple[ControlNetModel, Image.Image]],
        done: int,
        others: int,
    ):
        self.done, self.others = done, others
        self.pipeline, self.loaded, self.plan, self.start, self.known = pipeline, loaded, plan, start, known
        self.request, self.sampler = plan.request, plan.sampler
        names = list(dict.fromkeys(one.stage.shown_as for one in pipeline.stages))
        name = plan.stage.shown_as
        self.info = StageInfo(name, names.index(name) + 1, len(names), plan.stage.shows)
        self.has_prompts = loaded.stage.conditioner is not None and (
            pipeline.one_at_a_time or loaded.conditioner is not None
        )
        self.controls = activate(loaded, self.request, plan.steps, controls)
        self.step = 0  # the one that the sampler is at

    def __call__(
        self, prompts: Sequence[str], first: int, noise: Noise, before: StageOutput | None
    ) -> Generator[Denoised, None, StageOutput]:
        """Denoise one batch: yield its steps, return its output. first: the index of its first image. before: the
        output of the stage before."""
        steps = self.plan.steps

        def draw_noise(shape: tuple[int, ...] | None = None) -> Tensor:
            return noise(self.start.shape if shape is None else shape)

        init = self.start.draw(draw_noise, len(prompts), before)
        x = self._first(init, before)
        predict = self.start.over_predictions(self._guided(self._denoiser(prompts, init), prompts))
        self.step = 0
        for sample in self.sampler(predict, x, steps, draw_noise=draw_noise, **self.plan.options):
            x, self.step = sample.x, sample.index + 1
            self.start.apply_mask(x, init, steps, sample.index)
            check_finite(x, sample.index, self._doubt)
            at, total = self.done + sample.index, self.others + sample.total
            made = sample.x0, self.loaded.codec, self.info, self.loaded.view
            yield Denoised(at, total, first, len(prompts), *made)
        return StageOutput(x, steps[-1].next, init, self.loaded.codec)

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
        request, loaded = self.request, self.loaded
        # Latents have no range to be clipped to, whatever the checkpoint's scheduler says.
        limits = self.sampler.limits - ({"clip"} if loaded.codec.vae is not None and loaded.stage.shows else set())
        if not self.has_prompts:
            cond, _, _ = self.start.add_conditioning(init, Conditioning(), None)
            return Denoiser(loaded.predict, loaded.schedule, cond=cond, limits=limits)
        scale = request.guidance if request.guidance is not None else 1.0
        guided = scale > 1 and not loaded.reads_guidance
        cond, uncond = self.known.encode(prompts), self.known.negative if guided else None
        if loaded.reads_guidance:
            cond = cond.with_inputs(**loaded.told_guidance(request.guidance or 0.0))
        if request.weighted and uncond is not None:
            cond, uncond = weighting.pad_to_same_length(cond, uncond, self.known.empty)
        cond, uncond, image_uncond = self.start.add_conditioning(init, cond, uncond)
        model = self.start.over(loaded.predict)
        if self.controls:
            model = Controlled(model, self.controls, lambda: self.step)
            cond, uncond, image_uncond = mark_cond(cond, uncond, image_uncond)
        return Denoiser(
            model,
            loaded.schedule,
            cond=cond,
            uncond=uncond,
            image_uncond=image_uncond,
            guidance_scale=scale,
            guidance_rescale=request.guidance_rescale or 0.0,
            guides=self._guides,
            keeps_norms=loaded.stage.keeps_norms,
            image_guidance_scale=1.0 if request.image_guidance is None else request.image_guidance,
            limits=limits,
        )

    def _guides(self) -> bool:
        """Return whether guidance counts at the step that the sampler is at; fractions are of all networks' steps."""
        return self.done + self.step in self.request.guided_steps(self.others + len(self.plan.steps))

    def _guided(self, denoiser: Denoiser, prompts: Sequence[str]) -> Predict:
        """The denoiser, guided by the classifier if there is one."""
        classifier, classes = self.pipeline.classifier, self.pipeline.checkpoint.classes
        if classifier is None or classes is None or not self.request.classifier_scale:
            return denoiser
        wanted = torch.tensor([classes.find(prompt) for prompt in prompts])
        gradient = LogLikelihood(classifier, wanted, self.request.classifier_scale)
        return ClassifierGuided(denoiser, gradient, mean=self.sampler.shifts_mean)

    @property
    def _doubt(self) -> str:
        """What may be wrong when the network gives NaN."""
        doubts = ["half precision may have overflowed: try --dtype float32"] * (self.loaded.dtype != torch.float32)
        doubts += ["a LoRA may be broken: try it without --lora, or with a smaller SCALE"] * bool(self.request.lora)
        return "; ".join(doubts)

    def count_chunks(self, prompt: str) -> int:
        """Chunks of a prompt, which are as many for all of a batch."""
        if not self.request.weighted or not self.has_prompts or self.loaded.conditioner is None:
            return 1
        return weighting.count_chunks(self.loaded.conditioner.text_encoders, prompt)

"""Stages that enlarge an image: it is resized, noised to a level that the network is told, and read beside x.

Ho et al. 2021, "Cascaded Diffusion Models" (arXiv 2106.15282): noise conditioning augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.image.diffusion.schedule import NoiseSchedule, Point
from gencli.image.files.pictures import from_picture
from gencli.image.latents import DrawNoise, InitLatents, StageOutput, Start, StartInputs
from gencli.image.pipeline import Pipeline

CLEAN = Point(0.0, 1.0)


@dataclass(frozen=True)
class Enlarged(Start):
    """What a stage begins with that enlarges an image. level: the noise that is added to it. small (1, 3, h, w): the
    image, None for that of the stage before."""

    level: Point = CLEAN
    small: Tensor | None = None

    def draw(self, draw_noise: DrawNoise, batch: int, before: StageOutput | None) -> InitLatents:
        """Noise of x first, then of the image, as diffusers' IFSuperResolutionPipeline."""
        eps = draw_noise()
        small = self._small(batch, before)
        resized = F.interpolate(small, size=self.shape[1:], mode="bilinear", align_corners=True)
        concat = self.level.mix(resized, draw_noise())
        return InitLatents(eps, concat=concat, inputs={"class_labels": self._labels(batch, eps)})

    def _small(self, batch: int, before: StageOutput | None) -> Tensor:
        if before is not None:
            return before.pixels()
        assert self.small is not None
        return self.small.expand(batch, -1, -1, -1)

    def _labels(self, batch: int, like: Tensor) -> Tensor:
        return torch.full((batch,), int(self.level.t), device=like.device)


def enlarge(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Begin from the image of the stage before, or from that of the request."""
    stage, image = inputs.stage, None if inputs.before is not None else inputs.init
    small = None if image is None else from_picture(image).to(stage.device)
    shape = stage.codec.latent_shape(*inputs.size)
    return Enlarged(shape, small=small, level=_level(inputs, "image_noising_scheduler"))


def _level(inputs: StartInputs, scheduler: str) -> Point:
    t = inputs.request.noise_level or 0
    schedule = NoiseSchedule.from_config(inputs.stage.checkpoint.configs[scheduler])
    return Point(float(t), float(schedule.alphas_cumprod[t]))

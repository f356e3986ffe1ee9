"""Stages that enlarge an image: it is resized, noised to a level that the network is told, and read beside x.

Ho et al. 2021, "Cascaded Diffusion Models" (arXiv 2106.15282): noise conditioning augmentation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.image.conditioning import Conditioning
from gencli.image.diffusion.guidance import Model
from gencli.image.diffusion.schedule import NoiseSchedule, Point
from gencli.image.files.pictures import from_picture
from gencli.image.latents import DrawNoise, InitLatents, StageOutput, Start, StartInputs
from gencli.image.pipeline import Pipeline

CLEAN = Point(0.0, 1.0)
TILE = 2  # sides of the image that the network was made for; larger ones are asked for in tiles


@dataclass(frozen=True)
class Enlarged(Start):
    """What a stage begins with that enlarges an image. level: the noise that is added to it. small (1, 3, h, w): the
    image, None for that of the stage before. tile: the largest side of x that the network is asked at once."""

    level: Point = CLEAN
    small: Tensor | None = None
    tile: int | None = None

    def over(self, model: Model) -> Model:
        """In tiles where x is larger than one."""
        return model if self.tile is None or max(self.shape[1:]) <= self.tile else Tiled(model, self.tile)

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


class EnlargedLatents(Enlarged):
    """The same where x are latents in the size of the small image, which is read as it is."""

    def draw(self, draw_noise: DrawNoise, batch: int, before: StageOutput | None) -> InitLatents:
        """Noise of the image first, then of x, as diffusers' StableDiffusionUpscalePipeline."""
        small = self._small(batch, before)
        concat = self.level.mix(small, draw_noise((3, *self.shape[1:])))
        eps = draw_noise()
        return InitLatents(eps, concat=concat, inputs={"class_labels": self._labels(batch, eps)})


@dataclass(frozen=True)
class Tiled:
    """Asks a model for an image in overlapping tiles at every step and joins what it says, each tile weighing less
    towards its edges (Bar-Tal et al. 2023, "MultiDiffusion", arXiv 2302.08113): no tile is ever finished alone, so that
    there are no seams. A tile's outermost row or column counts 1 / (overlap + 1) at most beside its neighbour's."""

    model: Model
    side: int

    @property
    def overlap(self) -> int:
        return self.side // 4

    def __call__(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        total, weight = torch.zeros(()), torch.zeros(1, 1, *x.shape[2:], device=x.device)
        for top in self._begins(x.shape[2]):
            for left in self._begins(x.shape[3]):
                rows, columns = slice(top, top + self.side), slice(left, left + self.side)
                beside = conditioning.concat
                cut = replace(conditioning, concat=None if beside is None else beside[..., rows, columns])
                part = self.model(x[..., rows, columns], timesteps, cut).float()
                if total.ndim == 0:
                    total = torch.zeros(*part.shape[:2], *x.shape[2:], device=x.device)
                share = self._ramp(part.shape[2])[:, None] * self._ramp(part.shape[3])
                total[..., rows, columns] += share.to(x.device) * part
                weight[..., rows, columns] += share.to(x.device)
        return total / weight

    def _begins(self, size: int) -> list[int]:
        """Where tiles begin along a side: evenly, overlapping by `overlap` at least."""
        if size <= self.side:
            return [0]
        count = math.ceil((size - self.side) / (self.side - self.overlap)) + 1
        return [round(i * (size - self.side) / (count - 1)) for i in range(count)]

    def _ramp(self, size: int) -> Tensor:
        places = torch.arange(1, size + 1, dtype=torch.float32)
        return torch.minimum(places, places.flip(0)).clamp(max=self.overlap + 1) / (self.overlap + 1)


def enlarge_latents(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Begin from the image of the stage before, or from that of the request, beside latents."""
    return _begin(EnlargedLatents, inputs, "low_res_scheduler")


def enlarge(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Begin from the image of the stage before, or from that of the request."""
    return _begin(Enlarged, inputs, "image_noising_scheduler")


def _begin(cls: type[Enlarged], inputs: StartInputs, scheduler: str) -> Start:
    stage, image = inputs.stage, None if inputs.before is not None else inputs.init
    small = None if image is None else from_picture(image).to(stage.device)
    t, schedule = inputs.request.noise_level or 0, NoiseSchedule.from_config(stage.checkpoint.configs[scheduler])
    own = stage.size("sample_size")
    return cls(
        stage.codec.latent_shape(*inputs.size),
        level=Point(float(t), float(schedule.alphas_cumprod[t])),
        small=small,
        tile=TILE * own or None,
    )

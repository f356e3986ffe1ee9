"""What pictures begin from besides noise: a picture to change, in whole or where a mask is white, or one to edit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gencli.image.files import pictures
from gencli.image.request import ImageRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gencli.image.conditioning import Conditioning
    from gencli.image.diffusion.schedule import Step


@dataclass(frozen=True)
class Latents:
    """A picture's latents: their mean and deviation, (1, C, h, w); deviation None where they are certain."""

    mean: Tensor
    deviation: Tensor | None = None

    def draw(self, noise: Callable[[], Tensor], batch: int) -> Tensor:
        """(B, C, h, w), sampled if there is anything to sample."""
        if self.deviation is None:
            return self.mean.expand(batch, -1, -1, -1)
        return self.mean + self.deviation * noise()


@dataclass(frozen=True)
class Drawn:
    """What one batch begins with: noise, latents of the picture to change (None: noise alone) and what the network
    reads beside x. All (B or 1, …, h, w)."""

    eps: Tensor
    x0: Tensor | None = None
    concat: Tensor | None = None


@dataclass(frozen=True)
class Start:
    """What all batches of a request begin from. picture: to be changed. mask (1, 1, h, w): 1 where it is painted anew,
    None for everywhere. masked: the picture without what the mask covers, and edited (1, C, h, w): the picture to
    edit, for networks that read those beside x."""

    picture: Latents | None = None
    mask: Tensor | None = None
    masked: Latents | None = None
    edited: Tensor | None = None

    def draw(self, noise: Callable[[], Tensor], batch: int) -> Drawn:
        """Draw for a batch, in diffusers' order."""
        x0 = None if self.picture is None else self.picture.draw(noise, batch)
        eps = noise()
        if self.mask is None:
            return Drawn(eps, x0, self.edited)
        if self.masked is not None:
            masked = self.masked.draw(noise, batch)
            return Drawn(eps, x0, torch.cat([self.mask.expand(batch, -1, -1, -1), masked], dim=1))
        if self.picture is not None and self.picture.deviation is not None:
            noise()  # diffusers samples the masked picture's latents too, for UNets that read them
        return Drawn(eps, x0)

    def tell(
        self, drawn: Drawn, context: Conditioning, negative: Conditioning | None
    ) -> tuple[Conditioning, Conditioning | None, Conditioning | None]:
        """What a `Denoiser` is told, and its negative and between, with what the network reads beside x."""
        if drawn.concat is None:
            return context, negative, None
        more = {"concat": drawn.concat}
        if negative is None:
            return {**context, **more}, None, None
        if self.edited is None:
            return {**context, **more}, {**negative, **more}, None
        blank = {"concat": torch.zeros_like(drawn.concat)}
        return {**context, **more}, {**negative, **blank}, {**negative, **more}

    def keep(self, x: Tensor, drawn: Drawn, steps: Sequence[Step], index: int) -> None:
        """After a step, put the picture back into x outside the mask, at its next noise level. In place: the sampler
        goes on from it. Networks that read the mask do without."""
        if self.mask is None or self.masked is not None or drawn.x0 is None:
            return
        original = drawn.x0 if index == len(steps) - 1 else steps[index].next.mix(drawn.x0, drawn.eps)
        x.copy_(torch.where(self.mask > 0.5, x, original))


def start(
    pipeline: Any, request: ImageRequest, init: Image.Image | None = None, mask: Image.Image | None = None
) -> Start:
    """The start of a resolved request; `pipeline` is a `pipeline.Pipeline`."""
    if init is None:
        return Start()
    size = (request.width or 0, request.height or 0)
    picture = init if init.size == size else init.resize(size, Image.Resampling.LANCZOS)
    if pipeline.checkpoint.also_reads == "picture":
        mean, _ = pipeline.encode_picture(picture)
        return Start(edited=pipeline.unscale(mean))
    if mask is None:
        return Start(Latents(*pipeline.encode_picture(picture)))
    white = pictures.from_mask(mask, *size)
    latent = F.interpolate(white, size=pipeline.latent_shape(*size)[1:]).to(pipeline.device)
    if pipeline.checkpoint.also_reads != "mask":
        return Start(Latents(*pipeline.encode_picture(picture)), latent)
    masked = Latents(*pipeline.encode_picture(picture, hidden=white))
    whole = request.strength == 1  # then it begins from noise alone, and the picture is not looked at
    return Start(None if whole else Latents(*pipeline.encode_picture(picture)), latent, masked)

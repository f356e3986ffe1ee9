"""Kandinsky 2.2: a prior from texts to CLIP's embedding of an image, and latents drawn from nothing else.

Several texts and images may be mixed: the embedding is their mean, by weights. A decoder is told what guidance leads
away from likewise: the embedding that the prior draws of the negative prompt, else CLIP's of a grey image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from gencli.image.conditioning import Conditioning
from gencli.image.diffusion.guidance import Model
from gencli.image.latents import DrawNoise, InitLatents, StageOutput, Start, StartInputs, prepare_latents
from gencli.image.mix import mixture, texts_of
from gencli.image.pipeline import LoadedStage, Pipeline
from gencli.image.unclip import embed_image, statistics
from gencli.models.clip_vision import CLIPVisionModelWithProjection


@dataclass(frozen=True)
class Prior(Start):
    """The embeddings of all texts of an image are drawn together: x is (B, T, E), the negative prompt's last. weights:
    of the texts. mixed (1, E): the sum of the weighted embeddings of images. none (1, E): of a grey image. statistics:
    mean and std (1, E) of embeddings."""

    weights: tuple[float, ...] = ()
    mixed: Tensor | None = None
    none: Tensor | None = None
    statistics: tuple[Tensor, Tensor] | None = None

    def over(self, model: Model) -> Model:
        def each(x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
            inputs = {name: tensor.flatten(0, 1) for name, tensor in conditioning.inputs.items()}
            times = timesteps.repeat_interleave(x.shape[1])
            return model(x.flatten(0, 1), times, replace(conditioning, inputs=inputs)).view_as(x)

        return each

    def embeds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is asked for and what guidance leads away from, (B, E) and (B or 1, E), of the drawn x."""
        assert self.statistics is not None and self.mixed is not None
        mean, std = self.statistics
        drawn, count = x * std + mean, len(self.weights)
        weights = torch.tensor(self.weights, device=x.device).view(1, -1, 1)
        asked = (drawn[:, :count] * weights).sum(dim=1) + self.mixed
        if self.none is not None:
            return asked, self.none
        return asked, drawn[:, count]


@dataclass(frozen=True)
class Decoded(Start):
    """Latents, told embeddings. prior: the start of the stage before."""

    prior: Prior | None = None

    def draw(self, draw_noise: DrawNoise, batch: int, before: StageOutput | None) -> InitLatents:
        assert before is not None and self.prior is not None
        asked, none = self.prior.embeds(before.x)
        inputs = {"image_embeds": asked, "none": none.expand(batch, -1)}
        return replace(super().draw(draw_noise, batch, None), inputs=inputs)

    def add_conditioning(
        self, init: InitLatents, cond: Conditioning, uncond: Conditioning | None
    ) -> tuple[Conditioning, Conditioning | None, Conditioning | None]:
        asked, none = ({"image_embeds": init.inputs[name]} for name in ("image_embeds", "none"))
        return cond.with_inputs(**asked), None if uncond is None else uncond.with_inputs(**none), None


def begin_prior(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Begin from noise in the shape of the embeddings."""
    stage, request = inputs.stage, inputs.request
    images = [(inputs.named[one.name], one.weight) for one in mixture(request) if one.is_image]
    mixed, none = _embed(stage, images, with_none=not request.negative)
    weights = tuple(one.weight for one in texts_of(request))
    shape = (len(weights) + bool(request.negative), stage.size("embedding_dim"))
    return Prior(shape, weights=weights, mixed=mixed, none=none, statistics=statistics(stage, stage.stage.network))


def _embed(
    stage: LoadedStage, images: Sequence[tuple[Image.Image, float]], *, with_none: bool
) -> tuple[Tensor, Tensor | None]:
    """The sum (1, E) of the weighted embeddings of images, and that of a grey one. The encoder is let go."""
    mixed = torch.zeros(1, stage.size("embedding_dim"), device=stage.device)
    if not images and not with_none:
        return mixed, None
    name = next(name for name in stage.checkpoint.parts if name.endswith("image_encoder"))
    encoder = cast(CLIPVisionModelWithProjection, stage.load_part(name))
    for image, weight in images:
        mixed = mixed + weight * embed_image(encoder, image)
    side = encoder.config.image_size
    grey = torch.zeros(1, 3, side, side, device=stage.device, dtype=encoder.compute_dtype)
    none = encoder(grey).float() if with_none else None
    encoder.to("meta")
    stage.checkpoint.forget(name)
    return mixed, none


def begin_decoder(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Begin from noise or from the request's image, encoded."""
    assert isinstance(inputs.before, Prior)
    return Decoded(**vars(prepare_latents(pipeline, inputs)), prior=inputs.before)

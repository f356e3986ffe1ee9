"""What GLIDE's stages begin from (Nichol et al. 2021, arXiv 2112.10741): its inpainting forms read what is known of an
image beside x, and put it into every x0; its upsamplers read the small image, resized."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.image.diffusion.guidance import Predict, Prediction
from gencli.image.diffusion.schedule import Point
from gencli.image.files.pictures import from_picture
from gencli.image.latents import DrawNoise, InitLatents, StageOutput, Start, StartInputs, prepare_latents
from gencli.image.pipeline import Pipeline
from gencli.image.upscale import TILE, Enlarged

TEMPERATURE = 0.997  # of the noise that the upsamplers begin from


def _known(start: Start) -> Tensor:
    """What is known (1, 4, H, W): an image, 0 where it is to be painted, and 1 where it is not."""
    assert start.mask is not None and start.masked is not None
    return torch.cat([start.masked.mean, 1 - start.mask], dim=1)


def _put_into(start: Start, predict: Predict) -> Predict:
    """The prediction with what is known in its x0."""
    known = _known(start)

    def over(x: Tensor, point: Point) -> Prediction:
        prediction = predict(x, point)
        return replace(prediction, x0=prediction.x0 * (1 - known[:, 3:]) + known[:, :3])

    return over


class Painted(Start):
    """The base model's inpainting form."""

    def draw(self, draw_noise: DrawNoise, batch: int, before: StageOutput | None) -> InitLatents:
        x0 = None if self.image is None else self.image.sample(draw_noise, batch)
        return InitLatents(draw_noise(), x0, _known(self).expand(batch, -1, -1, -1))

    def over_predictions(self, predict: Predict) -> Predict:
        return _put_into(self, predict)


@dataclass(frozen=True)
class Upsampled(Enlarged):
    """The small image, in 256 levels a colour, beside noise. reads_known: the inpainting form."""

    reads_known: bool = False

    def draw(self, draw_noise: DrawNoise, batch: int, before: StageOutput | None) -> InitLatents:
        small = ((self._small(batch, before) + 1) * 127.5).round() / 127.5 - 1
        large = F.interpolate(small, size=self.shape[1:], mode="bilinear", align_corners=False)
        eps = TEMPERATURE * draw_noise()
        if not self.reads_known:
            return InitLatents(eps, concat=large)
        known = torch.zeros_like(large[:1, :1]).expand(-1, 4, -1, -1) if self.masked is None else _known(self)
        return InitLatents(eps, concat=torch.cat([known.expand(batch, -1, -1, -1), large], dim=1))

    def over_predictions(self, predict: Predict) -> Predict:
        return predict if self.masked is None or not self.reads_known else _put_into(self, predict)


def paint(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Begin from noise, and what a mask leaves of the request's image."""
    return Painted(**vars(prepare_latents(pipeline, inputs)))


def enlarge(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Begin from the image of the stage before, or from that of the request; one that paints also reads what the mask
    leaves of the request's."""
    stage, own = inputs.stage, inputs.stage.size("image_size")
    small = None
    if inputs.before is None:
        assert inputs.init is not None
        small = from_picture(inputs.init).to(stage.device)
        inputs = replace(inputs, init=None, mask=None)
    start = prepare_latents(pipeline, inputs)
    return Upsampled(
        start.shape,
        mask=start.mask,
        masked=start.masked,
        kept=start.kept,
        small=small,
        tile=TILE * own,
        reads_known=stage.size("in_channels") == 10,
    )

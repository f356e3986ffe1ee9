"""The stages of unCLIP (Ramesh et al. 2022, arXiv 2204.06125), as Karlo: a prior from text to the CLIP embedding of an
image, a decoder from that to a small image, and two networks that enlarge it, the second for the last step alone.

Stable unCLIP: Stable Diffusion 2.1 that is told such an embedding beside the text, with noise of a level in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gencli.image.conditioning import Conditioning
from gencli.image.diffusion.schedule import NoiseSchedule, Point
from gencli.image.files.preprocess import CLIP, from_settings
from gencli.image.latents import DrawNoise, InitLatents, StageOutput, Start, StartInputs
from gencli.image.pipeline import LoadedStage, Pipeline
from gencli.image.upscale import CLEAN
from gencli.models.clip_vision import CLIPVisionModelWithProjection
from gencli.models.image_normalizer import StableUnCLIPImageNormalizer
from gencli.models.unclip_text_proj import UnCLIPTextProjModel
from gencli.models.unet_blocks import timestep_embedding


def begin_prior(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Begin from noise in the shape of an embedding."""
    return Start((inputs.stage.size("embedding_dim"),))


def begin_decoder(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Begin from noise, conditioned on what the prior draws or on the embedding of the request's image."""
    stage = inputs.stage
    width, height = inputs.size
    configs = stage.checkpoint.configs
    large, small = configs["super_res_last"]["sample_size"], configs["decoder"]["sample_size"]
    assert isinstance(large, int) and isinstance(small, int)  # as both networks have been made
    factor = large // small
    project = cast(UnCLIPTextProjModel, stage.load_part("text_proj"))
    if inputs.before is None:
        assert inputs.init is not None
        embeds = embed_image(cast(CLIPVisionModelWithProjection, stage.load_part("image_encoder")), inputs.init)
        return Decoder((3, height // factor, width // factor), project=project, embeds=embeds)
    return Decoder((3, height // factor, width // factor), project=project, statistics=statistics(stage))


def begin_super_res(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Begin from noise beside the decoder's image, enlarged."""
    width, height = inputs.size
    return SuperRes((3, height, width))


def continue_super_res(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Go on with the last step, of another network."""
    assert inputs.before is not None
    return LastStep(inputs.before.shape)


def begin_latents(pipeline: Pipeline, inputs: StartInputs) -> Start:
    """Begin from noise, and the embedding that the prior draws or that of the request's image, noised."""
    stage, embeds, normed = inputs.stage, None, None
    if inputs.before is None:
        assert inputs.init is not None
        embeds = embed_image(cast(CLIPVisionModelWithProjection, stage.load_part("image_encoder")), inputs.init)
    else:
        normed = statistics(stage)
    t = inputs.request.noise_level or 0
    noising = NoiseSchedule.from_config(stage.checkpoint.configs["image_noising_scheduler"])
    return Told(
        stage.codec.latent_shape(*inputs.size),
        embeds=embeds,
        statistics=normed,
        level=Point(float(t), float(noising.alphas_cumprod[t])),
        normalizer=cast(StableUnCLIPImageNormalizer, stage.load_part("image_normalizer")),
    )


def statistics(stage: LoadedStage, prior: str = "prior") -> tuple[Tensor, Tensor]:
    """Mean and std (1, E) of the embeddings that a prior, a part of a stage's checkpoint, draws normed by them."""
    _, tensors = stage.checkpoint.open(prior)
    mean, std = (tensors.get(name).to(stage.device).float() for name in ("clip_mean", "clip_std"))
    return mean, std


@torch.no_grad()
def embed_image(encoder: CLIPVisionModelWithProjection, image: Image.Image) -> Tensor:
    """The embedding (1, E) of an image, resized and cropped as CLIP has it."""
    side = encoder.config.image_size
    pixels = from_settings({"size": side, "crop_size": side}, CLIP, "image_encoder")(image)
    return encoder(torch.from_numpy(pixels)[None].to(encoder.device, encoder.compute_dtype)).float()


@dataclass(frozen=True)
class Embedded(Start):
    """A stage that is told the embedding of an image. embeds (1, E): of the image to vary, or None, where it is the
    prior's x, normed by its `statistics`: mean and std (1, E)."""

    embeds: Tensor | None = None
    statistics: tuple[Tensor, Tensor] | None = None

    def embedded(self, batch: int, before: StageOutput | None) -> Tensor:
        """The embeddings (B, E)."""
        embeds = self.embeds
        if before is not None:
            assert self.statistics is not None
            mean, std = self.statistics
            embeds = before.x * std + mean
        assert embeds is not None
        return embeds.expand(batch, -1)


@dataclass(frozen=True)
class Told(Embedded):
    """Stable unCLIP's UNet reads the noised embedding and the level of its noise, or zeros for no image."""

    level: Point = CLEAN
    normalizer: StableUnCLIPImageNormalizer | None = None

    def draw(self, draw_noise: DrawNoise, batch: int, before: StageOutput | None) -> InitLatents:
        """Noise of the embedding first, then of x, as diffusers' StableUnCLIPImg2ImgPipeline."""
        assert self.normalizer is not None
        embeds = self.embedded(batch, before)
        width = embeds.shape[-1]
        noised = self.normalizer.unscale(self.level.mix(self.normalizer.scale(embeds), draw_noise((width,))))
        level = torch.full((batch,), self.level.t, device=embeds.device)
        waves = timestep_embedding(level, width, flip_sin_to_cos=True, freq_shift=0)
        return InitLatents(draw_noise(), inputs={"class_labels": torch.cat([noised, waves], dim=1)})

    def add_conditioning(
        self, init: InitLatents, cond: Conditioning, uncond: Conditioning | None
    ) -> tuple[Conditioning, Conditioning | None, Conditioning | None]:
        cond, uncond, _ = super().add_conditioning(init, cond, uncond)
        none = torch.zeros_like(cond["class_labels"])
        return cond, None if uncond is None else uncond.with_inputs(class_labels=none), None


@dataclass(frozen=True)
class Decoder(Embedded):
    """Karlo's: `project` makes what it reads of the embedding and the text."""

    project: UnCLIPTextProjModel | None = None

    def draw(self, draw_noise: DrawNoise, batch: int, before: StageOutput | None) -> InitLatents:
        return InitLatents(draw_noise(), inputs={"image_embeds": self.embedded(batch, before)})

    def add_conditioning(
        self, init: InitLatents, cond: Conditioning, uncond: Conditioning | None
    ) -> tuple[Conditioning, Conditioning | None, Conditioning | None]:
        assert self.project is not None
        none = self.project.learned_classifier_free_guidance_embeddings[None]
        given = self._projected(cond, init.inputs["image_embeds"])
        return given, None if uncond is None else self._projected(uncond, none), None

    def _projected(self, text: Conditioning, embeds: Tensor) -> Conditioning:
        """What the decoder reads: tokens of the image before those of the text, and both beside the time."""
        assert self.project is not None
        batch, dtype = max(len(embeds), len(text["proj_embedding"])), self.project.compute_dtype
        states = text["encoder_hidden_states"].to(dtype).expand(batch, -1, -1)
        pooled = text["proj_embedding"].to(dtype).expand(batch, -1)
        context, added = self.project(embeds.to(dtype).expand(batch, -1), pooled, states)
        mask = F.pad(text["attention_mask"], (self.project.config.clip_extra_context_tokens, 0), value=True)
        inputs = {"encoder_hidden_states": context, "class_labels": added, "attention_mask": mask.expand(batch, -1)}
        return Conditioning(inputs)


class SuperRes(Start):
    """Noise beside the image of the stage before, in the size of x."""

    def draw(self, draw_noise: DrawNoise, batch: int, before: StageOutput | None) -> InitLatents:
        assert before is not None
        size = self.shape[1:]
        large = F.interpolate(before.pixels(), size=size, mode="bicubic", align_corners=False, antialias=True)
        return InitLatents(draw_noise(), concat=large)


class LastStep(Start):
    """What the stage before has, as it has it."""

    def draw(self, draw_noise: DrawNoise, batch: int, before: StageOutput | None) -> InitLatents:
        assert before is not None
        return replace(before.init, x=before.x)

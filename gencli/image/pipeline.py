"""The parts of a checkpoint with their weights: each stage's network and conditioner, and the autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gencli.checkpoints import build
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.embeddings import Embedding, install
from gencli.checkpoints.image_lora import merge, open_loras
from gencli.devices import pick_device, pick_dtype
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.conditioning import Conditioning
from gencli.image.diffusion.schedule import NoiseSchedule
from gencli.image.families import Stage, import_name
from gencli.image.files.pictures import from_picture, to_picture
from gencli.image.prompts.base import Conditioner
from gencli.image.request import ImageRequest
from gencli.models.autoencoder_kl import AutoencoderKL
from gencli.models.module import BaseModel, describe
from gencli.models.unet_blocks import timestep_embedding
from gencli.models.vq_model import VQModel

SKETCH = 24  # latents a side of a sketch
# Parts of half precision that would be larger in float32 stay as they lie in the file on a CPU. The network is run step
# by step, and so is converted where that fits any machine; what is run once a prompt gains little by it.
NETWORK_LIMIT, OTHERS_LIMIT = 4 << 30, 1 << 30


@dataclass(frozen=True)
class LatentDistribution:
    """The latents of an image: mean and std, (1, C, h, w); std None where they are certain."""

    mean: Tensor
    std: Tensor | None = None

    def sample(self, draw_noise: Callable[[], Tensor], batch: int) -> Tensor:
        """(B, C, h, w). Draws noise only if there is a std."""
        if self.std is None:
            return self.mean.expand(batch, -1, -1, -1)
        return self.mean + self.std * draw_noise()


@dataclass(frozen=True)
class LoadedStage:
    """A stage's parts with their weights, on one device. checkpoint: the one that holds them. conditioner: None for a
    network without a prompt."""

    stage: Stage
    checkpoint: ImageCheckpoint
    schedule: NoiseSchedule
    network: BaseModel
    conditioner: Conditioner | None = None

    @cached_property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.compute_dtype

    def predict(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output (B, C or 2C, h, w) in its own precision, for x (B, C, h, w) in any."""
        if conditioning.concat is not None:
            x = torch.cat([x, conditioning.concat.expand(len(x), -1, -1, -1)], dim=1)
        return self.network(x.to(self.dtype), timesteps, **conditioning.keywords())

    @property
    def reads_guidance(self) -> bool:
        """Whether the guidance scale is one more condition of the network (Meng et al. 2023), which is then run once a
        step instead of twice: latent consistency models."""
        return getattr(self.network.config, "time_cond_proj_dim", None) is not None

    def embed_guidance(self, scale: float) -> Tensor:
        """A guidance scale as such a network reads it, (1, G): the sinusoidal embedding of 1000 · (scale − 1)."""
        width = self.network.config.time_cond_proj_dim  # type: ignore[union-attr]
        w = torch.tensor([1000 * (scale - 1)], device=self.device)
        return timestep_embedding(w, width, flip_sin_to_cos=False, freq_shift=1)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Pipeline:
    """All stages, and what turns the last one's latents into images; vae is None for networks in pixels.

    classifier: of noisy images, for classifier guidance.
    """

    checkpoint: ImageCheckpoint
    stages: tuple[LoadedStage, ...]
    vae: AutoencoderKL | VQModel | None = None
    classifier: BaseModel | None = None

    @property
    def main(self) -> LoadedStage:
        """The stage that the request's own settings are for."""
        return next(one for one in self.stages if one.stage is self.checkpoint.main)

    @property
    def device(self) -> torch.device:
        return self.main.device

    @property
    def dtype(self) -> torch.dtype:
        return self.main.dtype

    def describe(self) -> str:
        """The model in one line: its size, precision, device and threads."""
        modules = [self.main.network, *(one.network for one in self.stages if one is not self.main)]
        modules += [one for one in (self.vae, self.classifier) if one is not None]
        modules += [encoder for one in self.stages if one.conditioner for _, encoder in one.conditioner.text_encoders]
        return describe(self.checkpoint.name, modules)

    def check_prompt(self, request: ImageRequest) -> None:
        """Raises GencliError for a prompt that a stage cannot follow: one too long, or of no class."""
        if self.checkpoint.prompt == "class" and self.checkpoint.classes is not None:
            self.checkpoint.classes.find(request.prompt)
        for one in self.stages:
            if one.conditioner is not None:
                one.conditioner.encode([request.prompt], request)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of an image's latents, or of the image itself if there is no autoencoder."""
        factor = self.checkpoint.factor
        config: Any = self.main.network.config
        channels = config.in_channels if self.vae is None else self.vae.latent_channels
        return channels, height // factor, width // factor

    def encode_picture(self, picture: Image.Image, hidden: Tensor | None = None) -> LatentDistribution:
        """The latents of an image (1, C, h, w), scaled as the UNet knows them.

        hidden (1, 1, H, W): where it is 1 the image is grey instead. A VQ autoencoder's latents have no std; without an
        autoencoder they are the image itself.
        """
        config: Any = (self.main.network if self.vae is None else self.vae).config
        x = from_picture(picture, config.in_channels)
        x = (x if hidden is None else x * (hidden < 0.5)).to(self.device)
        if self.vae is None:
            return LatentDistribution(x)
        encoded = self.vae.encode(x)
        mean, logvar = encoded if isinstance(encoded, tuple) else (encoded, None)
        shift, scale = self._scaling
        return LatentDistribution((mean - shift) * scale, None if logvar is None else (logvar / 2).exp() * scale)

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Image.Image:
        """The image of one (1, C, h, w). Raises GencliError when it holds values that are not numbers."""
        if self.vae is None:
            return to_picture(latents[0])
        z = self.unscale(latents.float())
        return to_picture((self.vae.decode_tiled(z) if tiled else self.vae.decode(z))[0])

    def unscale(self, latents: Tensor) -> Tensor:
        """The network's latents as the autoencoder knows them."""
        shift, scale = self._scaling
        return latents / scale + shift

    @cached_property
    def _scaling(self) -> tuple[Tensor | float, Tensor | float]:
        """Shift and scale between the autoencoder's latents z and the network's, (z - shift) · scale."""
        assert self.vae is not None
        config: Any = self.vae.config
        if getattr(config, "latents_mean", None) is None:
            return config.shift_factor or 0.0, config.scaling_factor
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=self.device).view(1, -1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, config.scaling_factor / std

    def sketch(self, latents: Tensor) -> Image.Image:
        """A small image of one (1, C, h, w), for little time: its latents are averaged to a few first."""
        if self.vae is None:
            return to_picture(latents[0])
        shrink = max(latents.shape[2:]) / SKETCH
        if shrink > 1:
            height, width = (max(round(side / shrink), 1) for side in latents.shape[2:])
            latents = F.adaptive_avg_pool2d(latents, (height, width))
        return self.decode(latents)


def load(
    checkpoint: ImageCheckpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    loras: Sequence[LoraRef] = (),
    embeddings: Sequence[Embedding] = (),
) -> Pipeline:
    """Load the weights of all stages; device and dtype are names as `gencli.devices` knows them.

    dtype auto: float32 on a CPU, whose half precision is slower; elsewhere the file's own. The autoencoder always runs
    in float32: in half precision some overflow and others show bands, and it runs only once per image.
    On a CPU large weights of half precision stay in the file and are converted as they are used (`models.linear`).
    loras: files that are merged into the main stage's weights. embeddings: words that its text encoders learn.
    Raises GencliError for parts that are broken or not supported, and for files that do not fit them.
    """
    place = pick_device(device)
    changes = open_loras(loras, checkpoint.configs, checkpoint.name, allow_pickle=checkpoint.allow_pickle)

    def load_part(owner: ImageCheckpoint, name: str, dtype: torch.dtype | None, limit: int = OTHERS_LIMIT) -> BaseModel:
        config, tensors = owner.open(name)
        casting = place.type == "cpu" and dtype == torch.float32 and build.bytes_as(tensors, dtype) > limit
        given: dict[str, Any] = {"config": config, "tensors": tensors, "layerwise_casting": casting}
        module = build.load(owner.parts[name], device=place, dtype=dtype, **given)
        merge(changes if owner is checkpoint else [], name, module)
        return module

    def load_stage(stage: Stage, owner: ImageCheckpoint) -> LoadedStage:
        schedule = NoiseSchedule.from_config(owner.configs[stage.scheduler])
        _, tensors = owner.open(stage.network)
        precision = pick_dtype(dtype, place, {tensors.dtype(name) for name in tensors})
        if dtype == "auto" and place.type == "cpu":
            precision = torch.float32
        network = _for_convolution(load_part(owner, stage.network, precision, NETWORK_LIMIT), place)
        conditioner = import_name(stage.conditioner)(owner, lambda name: load_part(owner, name, precision))
        return LoadedStage(stage, owner, schedule, network, conditioner)

    pipeline = Pipeline(checkpoint, tuple(load_stage(stage, owner) for stage, owner in checkpoint.stages))
    if embeddings and pipeline.main.conditioner is not None:
        install(embeddings, pipeline.main.conditioner.text_encoders, checkpoint.name)
    if autoencoder := checkpoint.family.autoencoder:
        vae = _for_convolution(load_part(checkpoint, autoencoder, torch.float32), place)
        pipeline = replace(pipeline, vae=cast(AutoencoderKL | VQModel, vae))
    if "classifier" in checkpoint.parts:
        pipeline = replace(pipeline, classifier=load_part(checkpoint, "classifier", torch.float32))
    return pipeline


def _for_convolution(module: BaseModel, device: torch.device) -> BaseModel:
    """On CUDA, weights laid out as its convolutions like them (channels last).

    On a CPU that gained 5 % for small UNets and lost 8 % for Stable Diffusion's, and it copies what is memory-mapped.
    """
    return module.to(memory_format=torch.channels_last) if device.type == "cuda" else module  # type: ignore[call-overload]

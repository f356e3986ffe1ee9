"""The parts of a checkpoint with their weights: prompts → what the network is told, pictures ↔ latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gencli.checkpoints import build
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.embeddings import Embedding, install
from gencli.checkpoints.image_lora import merge, open_loras
from gencli.devices import pick_device, pick_dtype
from gencli.image.checkpoint import Checkpoint
from gencli.image.conditioning import Conditioning
from gencli.image.diffusion.schedule import NoiseSchedule
from gencli.image.files.pictures import from_picture, to_picture
from gencli.image.latents import LatentDistribution
from gencli.models.module import BaseModel, describe
from gencli.models.unet_blocks import timestep_embedding

SKETCH = 24  # latents a side of a sketch
# Parts of half precision that would be larger in float32 stay as they lie in the file on a CPU. The network is run step
# by step, and so is converted where that fits any machine; what is run once a prompt gains little by it.
NETWORK_LIMIT, OTHERS_LIMIT = 4 << 30, 1 << 30


@dataclass(frozen=True)
class Pipeline:
    """The parts with their weights, on one device; vae and conditioner are None where there is none."""

    checkpoint: Checkpoint
    schedule: NoiseSchedule
    network: BaseModel
    vae: Any = None
    conditioner: Any = None  # a prompts.base.Conditioner
    classifier: BaseModel | None = None  # of noisy pictures

    @cached_property
    def device(self) -> torch.device:
        return self.network.device

    @cached_property
    def dtype(self) -> torch.dtype:
        return self.network.compute_dtype

    def describe(self) -> str:
        """The model in one line: its size, precision, device and threads."""
        modules = [self.network, *([] if self.vae is None else [self.vae])]
        modules += [] if self.conditioner is None else [encoder for _, encoder in self.conditioner.text_encoders]
        modules += [] if self.classifier is None else [self.classifier]
        return describe(self.checkpoint.name, modules)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latents; of the picture itself where there is no autoencoder."""
        factor = self.checkpoint.factor
        config: Any = self.network.config
        channels = config.in_channels if self.vae is None else self.vae.latent_channels
        return channels, height // factor, width // factor

    def predict(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output (B, C or 2C, h, w) in its own precision, for x (B, C, h, w) in any."""
        if conditioning.concat is not None:
            x = torch.cat([x, conditioning.concat.expand(len(x), -1, -1, -1)], dim=1)
        return self.network(x.to(self.dtype), timesteps, **conditioning.keywords())

    @property
    def reads_guidance(self) -> bool:
        """Whether the network is told the guidance scale, as one more condition (Meng et al. 2023), and so is asked
        once a step instead of twice: latent consistency models."""
        return getattr(self.network.config, "time_cond_proj_dim", None) is not None

    def embed_guidance(self, scale: float) -> Tensor:
        """A guidance scale as such a network knows it, (1, G): waves of 1000 · (scale − 1)."""
        width = self.network.config.time_cond_proj_dim  # type: ignore[union-attr]
        w = torch.tensor([1000 * (scale - 1)], device=self.device)
        return timestep_embedding(w, width, flip_sin_to_cos=False, freq_shift=1)  # type: ignore[arg-type]

    def encode_picture(self, picture: Image.Image, hidden: Tensor | None = None) -> LatentDistribution:
        """The latents of an image (1, C, h, w), scaled as the UNet knows them.

        hidden (1, 1, H, W): where it is 1 the image is grey instead. A VQ autoencoder's latents have no std; without an
        autoencoder they are the image itself.
        """
        config: Any = (self.network if self.vae is None else self.vae).config
        x = from_picture(picture, config.in_channels)
        x = (x if hidden is None else x * (hidden < 0.5)).to(self.device)
        if self.vae is None:
            return LatentDistribution(x)
        encoded = self.vae.encode(x)
        mean, logvar = encoded if isinstance(encoded, tuple) else (encoded, None)
        shift, scale = self._scaling
        return LatentDistribution((mean - shift) * scale, None if logvar is None else (logvar / 2).exp() * scale)

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Image.Image:
        """The picture of one (1, C, h, w). Raises GencliError when it holds values that are not numbers."""
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
        config = self.vae.config
        if getattr(config, "latents_mean", None) is None:
            return config.shift_factor or 0.0, config.scaling_factor
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=self.device).view(1, -1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, config.scaling_factor / std

    def sketch(self, latents: Tensor) -> Image.Image:
        """A small picture of one (1, C, h, w), for little time: its latents are averaged to a few first."""
        if self.vae is None:
            return to_picture(latents[0])
        shrink = max(latents.shape[2:]) / SKETCH
        if shrink > 1:
            height, width = (max(round(side / shrink), 1) for side in latents.shape[2:])
            latents = F.adaptive_avg_pool2d(latents, (height, width))
        return self.decode(latents)


def load(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    loras: Sequence[LoraRef] = (),
    embeddings: Sequence[Embedding] = (),
) -> Pipeline:
    """Load a checkpoint's weights; device and dtype are names as `gencli.devices` knows them.

    dtype auto: float32 on a CPU, whose half precision is slower; elsewhere the file's own. The autoencoder runs in
    float32 always: in half precision some overflow and others show bands, and it runs but once a picture.
    On a CPU large weights of half precision stay in the file and are converted as they are used (`models.linear`).
    loras: files that are merged into the weights. embeddings: words that the text encoders learn.
    Raises GencliError for parts that are broken or not supported, and for files that do not fit them.
    """
    place = pick_device(device)
    schedule = NoiseSchedule.from_config(checkpoint.configs["scheduler"])
    family = checkpoint.family
    _, tensors = checkpoint.open(family.network)
    precision = pick_dtype(dtype, place, {tensors.dtype(name) for name in tensors})
    if dtype == "auto" and place.type == "cpu":
        precision = torch.float32

    changes = open_loras(loras, checkpoint.configs, checkpoint.name, allow_pickle=checkpoint.allow_pickle)

    def load_part(name: str, dtype: torch.dtype | None = precision) -> BaseModel:
        config, tensors = checkpoint.open(name)
        limit = NETWORK_LIMIT if name == family.network else OTHERS_LIMIT
        casting = place.type == "cpu" and dtype == torch.float32 and build.bytes_as(tensors, dtype) > limit
        given: dict[str, Any] = {"config": config, "tensors": tensors, "layerwise_casting": casting}
        module = build.load(checkpoint.parts[name], device=place, dtype=dtype, **given)
        merge(changes, name, module)
        return module

    network = _for_convolution(load_part(family.network), place)
    conditioner = family.load_module().load(checkpoint, load_part)
    if embeddings:
        install(embeddings, conditioner.text_encoders, checkpoint.name)
    vae = family.autoencoder and _for_convolution(load_part(family.autoencoder, torch.float32), place)
    classifier = load_part("classifier", torch.float32) if "classifier" in checkpoint.parts else None
    return Pipeline(checkpoint, schedule, network, vae or None, conditioner, classifier)


def _for_convolution(module: BaseModel, device: torch.device) -> BaseModel:
    """On CUDA, weights laid out as its convolutions like them (channels last).

    On a CPU that gained 5 % for small UNets and lost 8 % for Stable Diffusion's, and it copies what is memory-mapped.
    """
    return module.to(memory_format=torch.channels_last) if device.type == "cuda" else module  # type: ignore[call-overload]

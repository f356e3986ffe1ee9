"""The parts of a checkpoint with their weights: prompts → what the UNet is told, pictures ↔ latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from gencli.checkpoints import build
from gencli.checkpoints.tensors import open_tensors
from gencli.devices import pick_device, pick_dtype
from gencli.errors import GencliError
from gencli.image.checkpoint import Checkpoint
from gencli.image.pictures import from_picture, to_picture
from gencli.image.schedule import NoiseSchedule
from gencli.tokens import Tokenizer, load_tokenizer

SKETCH = 24  # latents a side of a sketch


@dataclass(frozen=True)
class Pipeline:
    """The parts with their weights, on one device; text_encoder, tokenizer and vae are None where there is none."""

    checkpoint: Checkpoint
    schedule: NoiseSchedule
    unet: nn.Module
    vae: Any = None
    text_encoder: nn.Module | None = None
    tokenizer: Tokenizer | None = None

    @cached_property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @cached_property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def describe(self) -> str:
        """The model in one line: its size, precision, device and threads."""
        modules = [module for module in (self.unet, self.vae, self.text_encoder) if module is not None]
        millions = sum(parameter.numel() for module in modules for parameter in module.parameters()) / 1e6
        dtype = str(self.dtype).removeprefix("torch.")
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return f"{self.checkpoint.name} ({millions:.1f} M parameters, {dtype}, {self.device}{threads})"

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latents; of the picture itself where there is no autoencoder."""
        factor = self.checkpoint.factor
        return self.unet.config.in_channels, height // factor, width // factor  # type: ignore[union-attr,return-value]

    def predict(self, x: Tensor, timesteps: Tensor, context: Tensor | None) -> Tensor:
        """The UNet's output (B, C or 2C, h, w) in its own precision, for x (B, C, h, w) in any."""
        x = x.to(self.dtype)
        return self.unet(x, timesteps) if context is None else self.unet(x, timesteps, context)

    def encode_prompts(self, prompts: Sequence[str], truncate: str | None = None) -> Tensor:
        """What the UNet is told of each prompt, (B, L, D). Raises GencliError for a prompt that is too long."""
        assert self.text_encoder is not None
        ids = torch.tensor([self.tokenize(prompt, truncate) for prompt in prompts], device=self.device)
        return self.text_encoder(ids).last_hidden_state

    def tokenize(self, prompt: str, truncate: str | None = None) -> list[int]:
        """Token ids of a prompt between begin and end, padded to the length L that the model was trained with.

        truncate: the side that may be cut away. Raises GencliError with both lengths when it is None and must be.
        """
        assert self.tokenizer is not None and self.text_encoder is not None
        config: Any = self.text_encoder.config
        positions = config.max_position_embeddings
        length = min(self.tokenizer.max_length or positions, positions)
        ids = self.tokenizer.encode(prompt, add_special_tokens=False)
        begin, end = self.tokenizer.bos_id, next(iter(self.tokenizer.eos_ids), None)
        if begin is None or end is None:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer names no begin and end token")
        room = length - 2
        if len(ids) > room and truncate is None:
            raise GencliError(
                f"the prompt has {len(ids)} tokens, and this model reads at most {room}: {prompt[:40]!r}…",
                "--truncate right leaves out its end, --truncate left its beginning",
            )
        ids = ids[-room:] if truncate == "left" else ids[:room]
        pad = self.tokenizer.pad_id if self.tokenizer.pad_id is not None else end
        framed = [begin, *ids, end, *[pad] * (room - len(ids))]
        if max(framed) >= config.vocab_size:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer knows more tokens than the text encoder")
        return framed

    def encode_picture(self, picture: Image.Image) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of a picture's latents (1, C, h, w), scaled as the UNet knows them.

        Where there is no autoencoder: the picture itself, and None.
        """
        config: Any = (self.unet if self.vae is None else self.vae).config
        x = from_picture(picture, config.in_channels).to(self.device)
        if self.vae is None:
            return x, None
        mean, logvar = self.vae.encode(x)
        return (mean - (config.shift_factor or 0)) * config.scaling_factor, (logvar / 2).exp() * config.scaling_factor

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Image.Image:
        """The picture of one (1, C, h, w). Raises GencliError when it holds values that are not numbers."""
        if self.vae is None:
            return to_picture(latents[0])
        z = latents.float() / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)
        return to_picture((self.vae.decode_tiled(z) if tiled else self.vae.decode(z))[0])

    def sketch(self, latents: Tensor) -> Image.Image:
        """A small picture of one (1, C, h, w), for little time: its latents are averaged to a few first."""
        if self.vae is None:
            return to_picture(latents[0])
        shrink = max(latents.shape[2:]) / SKETCH
        if shrink > 1:
            height, width = (max(round(side / shrink), 1) for side in latents.shape[2:])
            latents = F.adaptive_avg_pool2d(latents, (height, width))
        return self.decode(latents)


def load(checkpoint: Checkpoint, *, device: str = "auto", dtype: str = "auto") -> Pipeline:
    """Load a checkpoint's weights; device and dtype are names as `gencli.devices` knows them.

    dtype auto: float32 on a CPU, whose half precision is slower; elsewhere the file's own. The autoencoder runs in
    float32 always: in half precision some overflow and others show bands, and it runs but once a picture.
    Raises GencliError for parts that are broken or not supported.
    """
    place = pick_device(device)
    schedule = NoiseSchedule.from_config(checkpoint.configs["scheduler"])
    parts = checkpoint.parts
    tensors = open_tensors(parts["unet"])
    precision = pick_dtype(dtype, place, {tensors.dtype(name) for name in tensors})
    if dtype == "auto" and place.type == "cpu":
        precision = torch.float32
    unet = build.load(parts["unet"], device=place, dtype=precision)
    precision = next(unet.parameters()).dtype
    if not checkpoint.reads_text:
        return Pipeline(checkpoint, schedule, _for_convolution(unet, place))
    tokenizer = load_tokenizer(parts["tokenizer"])
    text_encoder = build.load(parts["text_encoder"], device=place, dtype=precision)
    vae = build.load(parts["vae"], device=place, dtype=torch.float32)
    return Pipeline(
        checkpoint, schedule, _for_convolution(unet, place), _for_convolution(vae, place), text_encoder, tokenizer
    )


def _for_convolution(module: nn.Module, device: torch.device) -> nn.Module:
    """On CUDA, weights laid out as its convolutions like them (channels last).

    On a CPU that gained 5 % for small UNets and lost 8 % for Stable Diffusion's, and it copies what is memory-mapped.
    """
    return module.to(memory_format=torch.channels_last) if device.type == "cuda" else module  # type: ignore[call-overload]

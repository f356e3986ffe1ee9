"""The VQ autoencoder (van den Oord et al. 2017; Esser et al. 2021): pictures to entries of a codebook and back.

Attributes are named as diffusers' checkpoints (VQModel) name them.
B: batch, H, W: height and width of a picture, h, w: of its latents, C: size of a codebook entry, K: their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gencli.models.attention_blocks import OLD_ATTENTION_NAMES
from gencli.models.autoencoder_blocks import DOWN, UP, Autoencoder, Decoder, Encoder
from gencli.models.base import Layout, check_flags, check_ints, check_numbers, read_config
from gencli.models.unet_blocks import check_levels, check_sample_size

ROWS = 4096  # places compared with all K entries at once: bounds the memory of large pictures


@dataclass(frozen=True)
class VQModelConfig:
    """config.json of a VQ autoencoder; defaults are those of diffusers' class, but for `scaling_factor`.

    `scaling_factor` is for the caller: the UNet's latents are z · scaling_factor. The key is younger than Latent
    Diffusion's checkpoints, which do not scale VQ latents (Rombach et al. 2022, D.1). diffusers assumes the 0.18215 of
    Stable Diffusion's other kind of autoencoder where it is absent, and so draws noise from them (its issue 6725).
    `lookup_from_codebook` is for diffusers' callers: here `decode_codes` is what reads codes.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = DOWN[:1]
    up_block_types: tuple[str, ...] = UP[:1]
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 3
    sample_size: int | tuple[int, int] | None = 32
    num_vq_embeddings: int = 256
    norm_num_groups: int = 32
    vq_embed_dim: int | None = None
    scaling_factor: float = 1.0
    mid_block_add_attention: bool = True
    lookup_from_codebook: bool = False
    force_upcast: bool = False

    shift_factor = None  # what a KL autoencoder may have; no key of this one

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> VQModelConfig:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        config = read_config(cls, raw, only={"norm_type": ("group",)})
        config.check()
        return config

    def check(self) -> None:
        """Bounds that any real model keeps, so that a hostile config allocates nothing."""
        check_levels(self, DOWN, UP)
        check_ints(self, {"in_channels": 256, "out_channels": 256, "latent_channels": 1024, "layers_per_block": 16})
        check_ints(self, {"num_vq_embeddings": 2**20})
        if self.vq_embed_dim is not None:
            check_ints(self, {"vq_embed_dim": 2**14})
        check_numbers(self, {"scaling_factor": (1e-6, 1e6)})
        check_sample_size(self)
        check_flags(self)


class VectorQuantizer(nn.Module):
    def __init__(self, entries: int, channels: int):
        super().__init__()
        self.embedding = nn.Embedding(entries, channels)

    def codes(self, z: Tensor) -> Tensor:
        """(B, C, h, w) → the number of the nearest entry at each place, (B, h, w) int64."""
        B, C, h, w = z.shape
        rows = z.permute(0, 2, 3, 1).reshape(-1, C)
        nearest = [torch.cdist(part, self.embedding.weight).argmin(1) for part in rows.split(ROWS)]
        return torch.cat(nearest).view(B, h, w)

    def entries(self, codes: Tensor) -> Tensor:
        """(B, h, w) → the codebook's entries, (B, C, h, w)."""
        return self.embedding(codes).permute(0, 3, 1, 2).contiguous()

    def forward(self, z: Tensor) -> Tensor:
        """Each place (of B, C, h, w) becomes the entry nearest to it."""
        return self.entries(self.codes(z))


class VQModel(Autoencoder):
    """Pictures ↔ codes: `codes` and `decode_codes`. Pictures ↔ latents, which a UNet denoises: `encode`, `decode`."""

    def __init__(self, config: VQModelConfig):
        super().__init__()
        self.config = config
        width = self.latent_channels
        self.encoder = Encoder(config, config.latent_channels)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, width, 1)
        self.quantize = VectorQuantizer(config.num_vq_embeddings, width)
        self.post_quant_conv = nn.Conv2d(width, config.latent_channels, 1)

    @property
    def latent_channels(self) -> int:
        """C of its latents."""
        return self.config.vq_embed_dim or self.config.latent_channels

    def encode(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in -1..1 → latents (B, C, h, w), unscaled and not yet quantised."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, h, w), unscaled → pictures (B, 3, H, W), about -1..1. The latents are quantised first."""
        return self._paint(self.quantize(z))

    def codes(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in -1..1 → numbers of codebook entries, (B, h, w) int64 in 0..K-1."""
        return self.quantize.codes(self.encode(x))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Numbers of codebook entries (B, h, w) → pictures (B, 3, H, W), about -1..1.

        Raises ValueError for a number that is no entry's.
        """
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.num_vq_embeddings:
            raise ValueError(f"codes must be from 0 to {self.config.num_vq_embeddings - 1}")
        return self._paint(self.quantize.entries(codes))

    def _paint(self, quantised: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(quantised))

    def forward(self, x: Tensor) -> Tensor:
        """Pictures through their codes and back."""
        return self.decode(self.encode(x))


LAYOUT = Layout(renames=OLD_ATTENTION_NAMES)
Config, Model = VQModelConfig, VQModel

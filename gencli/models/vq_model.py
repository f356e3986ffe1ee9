"""The VQ autoencoder (van den Oord et al. 2017; Esser et al. 2021): images to entries of a codebook and back.

Attributes are named as the checkpoints of diffusers (VQModel) name them.
B: batch, H, W: height and width of an image, h, w: of its latents, C: size of a codebook entry, K: their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.attention_blocks import OLD_ATTENTION_NAMES
from gencli.models.autoencoder_blocks import DOWN, UP, Autoencoder, Decoder, Encoder
from gencli.models.base import BaseConfig, Layout, check_flags, check_ints, check_numbers
from gencli.models.unet_config_checks import check_levels, check_sample_size

ROWS = 4096  # latents compared with all K entries at once: bounds the memory of large images


@dataclass(frozen=True)
class VQModelConfig(BaseConfig):
    """config.json of a VQ autoencoder; defaults are those of the class in diffusers, except `scaling_factor`.

    scaling_factor: for the caller; the latents of the UNet are z · scaling_factor. The key is younger than the
    checkpoints of Latent Diffusion, which do not scale VQ latents (Rombach et al. 2022, D.1). Without it diffusers
    assumes the 0.18215 of Stable Diffusion's KL autoencoder, and so makes noise of them (its issue 6725).
    lookup_from_codebook: for callers of diffusers; here `decode_codes` reads codes. encodes: whether it has an encoder.
    norm_type spatial: MoVQ, whose decoder's norms read the latents. Kandinsky's UNet draws these as they are, neither
    quantised nor scaled, whatever the file says.
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
    encodes: bool = True
    force_upcast: bool = False
    norm_type: str = "group"

    shift_factor = None  # a KL autoencoder may have one; not a key here

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        return {**raw, "scaling_factor": 1.0} if raw.get("norm_type") == "spatial" else raw

    @property
    def is_spatial(self) -> bool:
        return self.norm_type == "spatial"

    def check(self) -> None:
        if self.norm_type not in ("group", "spatial"):
            raise GencliError(f"config.json: norm_type = {self.norm_type!r:.80} is not supported")
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
        """Return the numbers (B, h, w) int64 of the entries nearest to z (B, C, h, w)."""
        B, C, h, w = z.shape
        rows = z.permute(0, 2, 3, 1).reshape(-1, C)
        nearest = [torch.cdist(part, self.embedding.weight).argmin(1) for part in rows.split(ROWS)]
        return torch.cat(nearest).view(B, h, w)

    def entries(self, codes: Tensor) -> Tensor:
        """Return the entries (B, C, h, w) of codes (B, h, w)."""
        return self.embedding(codes).permute(0, 3, 1, 2).contiguous()

    def forward(self, z: Tensor) -> Tensor:
        """Return the entries (B, C, h, w) nearest to z (B, C, h, w)."""
        return self.entries(self.codes(z))


class VQModel(Autoencoder):
    """`codes` and `decode_codes`: images ↔ codes. `encode` and `decode`: images ↔ latents, which a UNet denoises."""

    config: VQModelConfig

    def __init__(self, config: VQModelConfig):
        super().__init__()
        self.config = config
        width = self.latent_channels
        if config.encodes:
            self.encoder = Encoder(config, config.latent_channels)
            self.quant_conv = nn.Conv2d(config.latent_channels, width, 1)
        self.decoder = Decoder(config, width if config.is_spatial else None)
        self.quantize = VectorQuantizer(config.num_vq_embeddings, width)
        self.post_quant_conv = nn.Conv2d(width, config.latent_channels, 1)

    @property
    def latent_channels(self) -> int:
        """The C of its latents."""
        return self.config.vq_embed_dim or self.config.latent_channels

    def encode(self, x: Tensor) -> Tensor:
        """Return latents (B, C, h, w), unscaled and not yet quantised, of images (B, 3, H, W) in -1..1."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about -1..1, of latents (B, C, h, w), unscaled, which are quantised first but
        for MoVQ's."""
        return self._decode(z if self.config.is_spatial else self.quantize(z))

    def codes(self, x: Tensor) -> Tensor:
        """Return the numbers of codebook entries, (B, h, w) int64 in 0..K-1, of images (B, 3, H, W) in -1..1."""
        return self.quantize.codes(self.encode(x))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about -1..1, of numbers of codebook entries (B, h, w).

        Raises ValueError for a number without an entry.
        """
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.num_vq_embeddings:
            raise ValueError(f"codes must be from 0 to {self.config.num_vq_embeddings - 1}")
        return self._decode(self.quantize.entries(codes))

    def _decode(self, quantised: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(quantised), quantised if self.config.is_spatial else None)

    def forward(self, x: Tensor) -> Tensor:
        """Encode images to codes and decode those."""
        return self.decode(self.encode(x))


LAYOUT = Layout(renames=OLD_ATTENTION_NAMES)
Config, Model = VQModelConfig, VQModel

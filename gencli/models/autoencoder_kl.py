"""The KL autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752): images to latents and back.

Attributes are named as the checkpoints of diffusers name them.
B: batch, H, W: height and width of an image, h, w: of its latents, C: latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.attention_blocks import OLD_ATTENTION_NAMES
from gencli.models.autoencoder_blocks import DOWN, UP, Autoencoder, Decoder, Encoder
from gencli.models.base import BaseConfig, Layout, check_flags, check_ints, check_numbers
from gencli.models.unet_config_checks import check_levels, check_sample_size


@dataclass(frozen=True)
class AutoencoderKLConfig(BaseConfig):
    """config.json of an autoencoder; defaults are those of the class in diffusers.

    scaling_factor, shift_factor: for the caller; the latents of the UNet are (z - shift_factor) · scaling_factor, or
    (z - latents_mean) / latents_std · scaling_factor with one number per channel.
    force_upcast: asks for float32 where half precision overflows.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] | None = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def check(self) -> None:
        check_levels(self, DOWN, UP)
        check_ints(self, {"in_channels": 256, "out_channels": 256, "latent_channels": 1024, "layers_per_block": 16})
        check_numbers(self, {"scaling_factor": (1e-6, 1e6)})
        if self.shift_factor is not None:
            check_numbers(self, {"shift_factor": (-1e6, 1e6)})
        self._check_statistics()
        check_sample_size(self)
        check_flags(self)

    def _check_statistics(self) -> None:
        """Check mean and std of latents: both or none, one number per channel, no shift_factor beside them."""
        given: dict[str, object] = {"latents_mean": self.latents_mean, "latents_std": self.latents_std}
        if all(value is None for value in given.values()):
            return
        for key, least in (("latents_mean", -1e6), ("latents_std", 1e-6)):
            value = given[key]
            values = value if isinstance(value, tuple) and len(value) == self.latent_channels else (None,)
            if not all(type(one) in (int, float) and least <= one <= 1e6 for one in values):
                raise GencliError(f"config.json: {key} = {value!r:.80} is not a list of {self.latent_channels} numbers")
        if self.shift_factor:
            raise GencliError("config.json: shift_factor beside latents_mean is not supported")


class AutoencoderKL(Autoencoder):
    config: AutoencoderKLConfig

    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder = Encoder(config, 2 * latent)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.use_post_quant_conv else nn.Identity()

    def encode(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.moments(x)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance (B, C, h, w), unscaled, of the latents of images (B, 3, H, W) in -1..1."""
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about -1..1, of latents (B, C, h, w), unscaled."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor) -> Tensor:
        """Encode images to the means of their latents and decode those."""
        encoded = self.encode(x)
        return self.decode(encoded if isinstance(encoded, Tensor) else encoded[0])


LAYOUT = Layout(renames=OLD_ATTENTION_NAMES)
Config, Model = AutoencoderKLConfig, AutoencoderKL

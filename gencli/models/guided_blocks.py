"""Blocks of the networks of guided-diffusion (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs", arXiv 2105.05233),
under its own names.

Its UNet and its classifier of noisy images share the down blocks and the mid block, `GuidedEncoder`.
B: batch, C: channels, H, W: height and width, E: width of the time embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import BaseConfig, check_flags, check_ints, check_numbers
from gencli.models.module import BaseModel
from gencli.models.unet_blocks import timestep_embedding

GROUPS = 32  # of every norm, for any width


@dataclass(frozen=True)
class GuidedConfig(BaseConfig):
    """The values that both networks are built from, under the names of the original constructors.

    channel_mult: widths of the levels in units of model_channels, largest images first. attention_resolutions: the
    levels with attention, by their downsampling factor (1, 2, 4, …). num_head_channels −1: there are `num_heads` heads
    of any width. use_new_attention_order: the 3·C channels of qkv are split into q, k, v and each of them into heads;
    otherwise into heads and each head into q, k, v. encoder_channels: of the states of a text that attention reads too
    (GLIDE); None for none.
    """

    image_size: int
    model_channels: int
    out_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    channel_mult: tuple[float, ...]
    in_channels: int = 3
    num_heads: int = 1
    num_head_channels: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    encoder_channels: int | None = None
    dropout: float = 0.0

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(multiple * self.model_channels) for multiple in self.channel_mult)

    @property
    def sample_size(self) -> int:
        """The name of image_size in configs of diffusers."""
        return self.image_size

    def check(self) -> None:
        check_ints(self, {"image_size": 2**13, "model_channels": 2**12, "in_channels": 1024, "out_channels": 2**16})
        check_ints(self, {"num_res_blocks": 16, "num_heads": 2**10, "attention_resolutions": 2**12})
        check_numbers(self, {"dropout": (0.0, 1.0)})
        if not isinstance(self.attention_resolutions, tuple):
            raise GencliError(f"attention_resolutions = {self.attention_resolutions!r:.80} is not a list")
        check_flags(self)
        if self.num_head_channels != -1:
            check_ints(self, {"num_head_channels": 2**12})
        if self.encoder_channels is not None:
            check_ints(self, {"encoder_channels": 2**14})
        if not isinstance(self.channel_mult, tuple) or not 1 <= len(self.channel_mult) <= 10:
            raise GencliError(f"channel_mult = {self.channel_mult!r:.80} is not a list of 1 to 10 widths")
        for multiple, width in zip(self.channel_mult, self._checked_widths(), strict=True):
            if not 0 < width <= 2**14 or width % GROUPS:
                raise GencliError(f"channel_mult {multiple:g} makes {width} channels, no multiple of {GROUPS}")
        levels = [1 << level for level in range(len(self.widths))]
        attended = [
            width for width, rate in zip(self.widths, levels, strict=True) if rate in self.attention_resolutions
        ]
        for width in [*attended, self.widths[-1]]:
            self.heads(width)

    def _checked_widths(self) -> tuple[int, ...]:
        for multiple in self.channel_mult:
            if isinstance(multiple, bool) or not isinstance(multiple, int | float) or not 0 < multiple <= 1024:
                raise GencliError(f"channel_mult = {self.channel_mult!r:.80} is not a list of widths")
        return self.widths

    def heads(self, channels: int) -> int:
        """Return the number of attention heads over `channels`. Raises GencliError if they do not divide them."""
        heads = self.num_heads if self.num_head_channels == -1 else channels // self.num_head_channels
        even = channels % self.num_head_channels == 0 if self.num_head_channels != -1 else channels % heads == 0
        if not heads or not even:
            each = f"{heads} heads" if self.num_head_channels == -1 else f"heads of {self.num_head_channels} channels"
            raise GencliError(f"{channels} channels of attention do not come out even in {each}")
        return heads


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)


class ResBlock(nn.Module):
    """Norm, SiLU and convolution, twice, and a shortcut; `up` and `down` resize before the first convolution."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        emb_channels: int,
        scale_shift: bool,
        dropout: float = 0.0,
        up: bool = False,
        down: bool = False,
    ):
        super().__init__()
        self.scale_shift, self.up, self.down = scale_shift, up, down
        self.in_layers = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels if scale_shift else out_channels)
        )
        self.out_layers = nn.Sequential(
            norm(out_channels), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        )
        self.skip_connection = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return (B, C', H', W') for x (B, C, H, W) and the time embedding (B, E)."""
        h = self._resize(self.in_layers[1](self.in_layers[0](x)))
        h = self.in_layers[2](h)
        shift = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + shift)
        return self.skip_connection(self._resize(x)) + self.out_layers[1:](h)

    def _resize(self, x: Tensor) -> Tensor:
        if self.up:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.down else x


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def attend(qkv: Tensor, heads: int, *, new_order: bool, context: Tensor | None = None) -> Tensor:
    """Return self-attention (B, C, T) of qkv (B, 3 C, T). new_order: `use_new_attention_order` of `GuidedConfig`.
    context (B, 2 C, L): further keys and values, head by head, before its own."""
    if new_order:
        q, k, v = qkv.unflatten(1, (3, heads, -1)).transpose(-1, -2).unbind(1)
    else:
        q, k, v = qkv.unflatten(1, (heads, 3, -1)).transpose(-1, -2).unbind(2)
    if context is not None:
        further = context.unflatten(1, (heads, 2, -1)).transpose(-1, -2).unbind(2)
        k, v = (torch.cat(pair, dim=2) for pair in zip(further, (k, v), strict=True))
    return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)  # (B, heads, T, C / heads)


class AttentionBlock(nn.Module):
    """Self-attention over the positions of an image, and attention to the states of a text if there are any, normed
    before and added to it."""

    def __init__(self, channels: int, heads: int, *, new_order: bool, encoder_channels: int | None = None):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        if encoder_channels is not None:
            self.encoder_kv = nn.Conv1d(encoder_channels, 2 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return (B, C, H, W) for x (B, C, H, W) and states (B, encoder_channels, L)."""
        qkv = self.qkv(self.norm(x).flatten(2))
        further = None if context is None else self.encoder_kv(context)
        return x + self.proj_out(attend(qkv, self.heads, new_order=self.new_order, context=further)).view_as(x)


class Layers(nn.ModuleList):
    """Layers in sequence, of which residual blocks take the time embedding too, and attention the states of a text."""

    def __init__(self, *layers: nn.Module):
        super().__init__(layers)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self:
            if isinstance(layer, AttentionBlock):
                x = layer(x, context)
            else:
                x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class GuidedEncoder(BaseModel):
    """The time embedding, the down blocks and the mid block. skip_channels: widths of the states of the down blocks."""

    def __init__(self, config: GuidedConfig):
        super().__init__()
        self.config = config
        emb_channels = 4 * config.model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(config.model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        self.resblock = partial(
            ResBlock, emb_channels=emb_channels, scale_shift=config.use_scale_shift_norm, dropout=config.dropout
        )
        order, encoder_channels = config.use_new_attention_order, config.encoder_channels
        self.attend = partial(AttentionBlock, new_order=order, encoder_channels=encoder_channels)
        width = config.widths[0]
        self.skip_channels = [width]
        blocks = [Layers(nn.Conv2d(config.in_channels, width, 3, padding=1))]
        for level, out in enumerate(config.widths):
            for _ in range(config.num_res_blocks):
                blocks.append(Layers(self.resblock(width, out), *self.attention(level, out)))
                width = out
                self.skip_channels.append(width)
            if level < len(config.widths) - 1:
                down = self.resblock(width, width, down=True) if config.resblock_updown else Downsample(width)
                blocks.append(Layers(down))
                self.skip_channels.append(width)
        self.input_blocks = nn.ModuleList(blocks)
        middle = self.attend(width, config.heads(width))
        self.middle_block = Layers(self.resblock(width, width), middle, self.resblock(width, width))

    def attention(self, level: int, channels: int) -> list[nn.Module]:
        """Return the attention of a level, if it has any."""
        if 1 << level not in self.config.attention_resolutions:
            return []
        return [self.attend(channels, self.config.heads(channels))]

    def embed(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Return embeddings (B, E), in the dtype of `like` (B, C, H, W), of timesteps (B,), which may be fractional."""
        waves = timestep_embedding(
            timesteps.expand(like.shape[0]), self.config.model_channels, flip_sin_to_cos=True, freq_shift=0
        )
        return self.time_embed(waves.to(like.dtype))

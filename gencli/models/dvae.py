"""The discrete autoencoder of DALL·E (Ramesh et al. 2021, arXiv 2102.12092, appendix A): images to codes and back.

Attributes are named as OpenAI's files name them; those of encoder.pkl and decoder.pkl have their file's name in front.
B: batch, h, w: codes a side, an eighth of the pixels, K: their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.base import BaseConfig, Layout, check_ints
from gencli.models.module import BaseModel

GROUPS = 4  # with a change of size between them
MARGIN = 0.1  # of the range 0..1, on either side, that pixels keep away from (equation 3)


@dataclass(frozen=True)
class DVAEConfig(BaseConfig):
    """What the shapes of the tensors say. width: that of the level of the image's own size; first: of what the decoder
    makes of a code. blocks: in each of four groups."""

    INERT = frozenset({"model_type"})

    num_vq_embeddings: int = 8192
    width: int = 256
    first: int = 128
    blocks: int = 2
    in_channels: int = 3

    def check(self) -> None:
        check_ints(self, {"num_vq_embeddings": 2**20, "width": 2**14, "first": 2**14, "blocks": 64, "in_channels": 256})


class Conv(nn.Module):
    def __init__(self, into: int, out: int, kernel: int):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.empty(out, into, kernel, kernel)), nn.Parameter(torch.empty(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """A residual block of four convolutions. gain: how much of them is added."""

    def __init__(self, into: int, out: int, kernels: tuple[int, ...], gain: float):
        super().__init__()
        inner, self.gain = out // 4, gain
        self.id_path = Conv(into, out, 1) if into != out else nn.Identity()
        widths = [into, inner, inner, inner, out]
        self.res_path = nn.ModuleDict({f"conv_{i + 1}": Conv(widths[i], widths[i + 1], kernels[i]) for i in range(4)})

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.res_path.values():
            y = conv(F.relu(y))
        return self.id_path(x) + self.gain * y


class Group(nn.ModuleDict):
    """Layers after each other, by name."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.values():
            x = layer(x)
        return x


class Half(nn.Module):
    """What encoder and decoder share. widths: of the groups. kernels: of a block's convolutions."""

    def __init__(self, first: Conv, widths: list[int], out: int, kernels: tuple[int, ...], blocks: int):
        super().__init__()
        self.blocks, into, gain = nn.ModuleDict({"input": first}), first.w.shape[0], (GROUPS * blocks) ** -2
        for group, width in enumerate(widths, 1):
            made = {f"block_{i + 1}": Block(width if i else into, width, kernels, gain) for i in range(blocks)}
            self.blocks[f"group_{group}"], into = Group(made), width
        self.blocks["output"] = Group({"conv": Conv(into, out, 1)})

    def run(self, x: Tensor, *, enlarges: bool) -> Tensor:
        """Return what is made of the output of the first convolution."""
        for group in range(1, GROUPS + 1):
            x = self.blocks[f"group_{group}"](x)
            if group < GROUPS:
                x = F.interpolate(x, scale_factor=2, mode="nearest") if enlarges else F.max_pool2d(x, 2)
        made: Tensor = self.blocks["output"](F.relu(x))
        return made


class DVAE(BaseModel):
    """`codes` and `decode_codes`, as `vq_model.VQModel` has them."""

    def __init__(self, config: DVAEConfig):
        super().__init__()
        self.config = config
        widths = [config.width * 2**i for i in range(GROUPS)]
        entries, channels = config.num_vq_embeddings, config.in_channels
        self.encoder = Half(Conv(channels, config.width, 7), widths, entries, (3, 3, 3, 1), config.blocks)
        self.decoder = Half(Conv(entries, config.first, 1), widths[::-1], 2 * channels, (1, 3, 3, 3), config.blocks)

    @property
    def scale(self) -> int:
        """Pixels a side of one code."""
        return 2 ** (GROUPS - 1)

    def codes(self, x: Tensor) -> Tensor:
        """Return the likeliest codes (B, h, w) of images (B, 3, H, W) in -1..1."""
        x = (1 - 2 * MARGIN) * (x + 1) / 2 + MARGIN
        return self.encoder.run(self.encoder.blocks["input"](x), enlarges=False).argmax(1)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in -1..1 of codes (B, h, w). Raises ValueError for one that there is not."""
        first, channels = cast(Conv, self.decoder.blocks["input"]), self.config.in_channels
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.num_vq_embeddings:
            raise ValueError(f"codes must be from 0 to {self.config.num_vq_embeddings - 1}")
        x = F.embedding(codes, first.w[:, :, 0, 0].T) + first.b  # a convolution of one code's row of 0 and 1
        mean = self.decoder.run(x.permute(0, 3, 1, 2), enlarges=True)[:, :channels].sigmoid()
        return 2 * ((mean - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1) - 1


LAYOUT = Layout()
Config, Model = DVAEConfig, DVAE

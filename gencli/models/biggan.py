"""BigGAN-deep (Brock et al. 2018, arXiv 1809.11096, appendix B): one pass from noise and a class to an image.

Attributes are named as the files of pytorch-pretrained-BigGAN name them; its spectral norms are divided out when a file
is opened. B: batch, Z: z_dim, N: num_classes, C: channels, E: 2 Z, what every block is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import TRANSFORMERS_INERT, BaseConfig, Layout, check_ints, check_numbers
from gencli.models.module import BaseModel

FIRST = 4  # pixels a side of what the first layer makes, of 16 times channel_width channels
REDUCED = 4  # how many times narrower a block is inside


@dataclass(frozen=True)
class BigGANConfig(BaseConfig):
    """config.json. layers: for each block whether it enlarges, and the multiples of channel_width that it reads and
    makes. attention_layer_position: the place of the attention among the blocks."""

    INERT = TRANSFORMERS_INERT

    output_dim: int
    layers: tuple[tuple[bool, int, int], ...]
    z_dim: int = 128
    class_embed_dim: int = 128
    channel_width: int = 128
    num_classes: int = 1000
    attention_layer_position: int = 8
    eps: float = 1e-4
    n_stats: int = 51

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        layers = raw.get("layers")
        rows = [tuple(row) for row in layers] if isinstance(layers, list) and all(map(_is_row, layers)) else None
        if not rows or len(rows) > 64:
            raise GencliError(f"config.json: layers = {layers!r:.80} are no rows [true or false, number, number]")
        return {**raw, "layers": rows}

    def check(self) -> None:
        bounds = {"output_dim": 4096, "z_dim": 2**14, "class_embed_dim": 2**14, "channel_width": 2**12}
        check_ints(self, {**bounds, "num_classes": 2**20, "attention_layer_position": 64, "n_stats": 2**12})
        check_numbers(self, {"eps": (0.0, 1.0)})
        if self.class_embed_dim != self.z_dim:
            raise GencliError(
                f"config.json: class_embed_dim = {self.class_embed_dim} is not supported", f"z_dim is {self.z_dim}"
            )
        width = 16
        for row in self.layers:
            if row[1] != width or row[2] not in (width, width / 2):
                raise GencliError(f"config.json: layers: {list(row)} does not follow a width of {width}")
            width = row[2]
        size = FIRST * 2 ** sum(row[0] for row in self.layers)
        if width != 1 or size != self.output_dim or self.attention_layer_position >= len(self.layers):
            raise GencliError(
                f"config.json: layers that end at width {width} and {size} pixels a side do not fit output_dim = "
                f"{self.output_dim} and attention_layer_position = {self.attention_layer_position}"
            )


def _is_row(row: object) -> bool:
    if not isinstance(row, list) or len(row) != 3 or not isinstance(row[0], bool):
        return False
    return all(type(width) is int and 1 <= width <= 64 for width in row[1:])


class Statistics(nn.Module):
    """Batch norm by means and variances that were measured for each of n_stats truncations, evenly from 0 to 1."""

    def __init__(self, channels: int, config: BigGANConfig):
        super().__init__()
        self.eps = config.eps
        self.running_means = nn.Parameter(torch.empty(config.n_stats, channels))
        self.running_vars = nn.Parameter(torch.empty(config.n_stats, channels))

    def normalise(self, x: Tensor, truncation: float) -> Tensor:
        mean, var = (self.at(truncation, table)[:, None, None] for table in (self.running_means, self.running_vars))
        return (x - mean) / (var + self.eps).sqrt()

    def at(self, truncation: float, table: Tensor) -> Tensor:
        """Return the row of a table (n_stats, C) for a truncation. Between two rows each has the weight that is the
        other's due, as in the reference, so that its images are made again."""
        part, row = math.modf(truncation / (1.0 / (len(table) - 1)))
        first = table[int(row)]
        return first if part == 0 else first * part + table[int(row) + 1] * (1 - part)


class ConditionalNorm(Statistics):
    """A batch norm whose scale and offset are read from noise and class."""

    def __init__(self, channels: int, config: BigGANConfig):
        super().__init__(channels, config)
        self.scale = nn.Linear(2 * config.z_dim, channels, bias=False)
        self.offset = nn.Linear(2 * config.z_dim, channels, bias=False)

    def forward(self, x: Tensor, told: Tensor, truncation: float) -> Tensor:
        scale, offset = (layer(told)[:, :, None, None] for layer in (self.scale, self.offset))
        return self.normalise(x, truncation) * (1 + scale) + offset


class LastNorm(Statistics):
    def __init__(self, channels: int, config: BigGANConfig):
        super().__init__(channels, config)
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor, truncation: float) -> Tensor:
        return self.normalise(x, truncation) * self.weight[:, None, None] + self.bias[:, None, None]


class Block(nn.Module):
    """A residual block (figure 16); its skip connection drops channels where it narrows."""

    def __init__(self, config: BigGANConfig, enlarges: bool, reads: int, makes: int):
        super().__init__()
        self.scale, self.kept = 2 if enlarges else 1, makes
        inner = reads // REDUCED
        self.bn_0, self.conv_0 = ConditionalNorm(reads, config), nn.Conv2d(reads, inner, 1)
        self.bn_1, self.conv_1 = ConditionalNorm(inner, config), nn.Conv2d(inner, inner, 3, padding=1)
        self.bn_2, self.conv_2 = ConditionalNorm(inner, config), nn.Conv2d(inner, inner, 3, padding=1)
        self.bn_3, self.conv_3 = ConditionalNorm(inner, config), nn.Conv2d(inner, makes, 1)

    def forward(self, x: Tensor, told: Tensor, truncation: float) -> Tensor:
        y = self.conv_0(F.relu(self.bn_0(x, told, truncation)))
        y = self.conv_1(self._enlarge(F.relu(self.bn_1(y, told, truncation))))
        y = self.conv_2(F.relu(self.bn_2(y, told, truncation)))
        y = self.conv_3(F.relu(self.bn_3(y, told, truncation)))
        return y + self._enlarge(x[:, : self.kept])

    def _enlarge(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.scale, mode="nearest") if self.scale > 1 else x


class SelfAttention(nn.Module):
    """Zhang et al. 2018 (arXiv 1805.08318): every place looks at averages of two by two places."""

    def __init__(self, channels: int):
        super().__init__()
        self.snconv1x1_theta = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.snconv1x1_phi = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.snconv1x1_g = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.snconv1x1_o_conv = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor, told: Tensor, truncation: float) -> Tensor:
        theta = self.snconv1x1_theta(x).flatten(2)
        phi, g = (F.max_pool2d(conv(x), 2).flatten(2) for conv in (self.snconv1x1_phi, self.snconv1x1_g))
        seen = g @ (theta.transpose(1, 2) @ phi).softmax(-1).transpose(1, 2)
        return x + self.gamma * self.snconv1x1_o_conv(seen.unflatten(2, x.shape[2:]))


class Generator(nn.Module):
    def __init__(self, config: BigGANConfig):
        super().__init__()
        width = config.channel_width
        self.gen_z = nn.Linear(2 * config.z_dim, FIRST * FIRST * 16 * width)
        layers: list[nn.Module] = [Block(config, up, width * reads, width * out) for up, reads, out in config.layers]
        at = config.attention_layer_position
        layers.insert(at, SelfAttention(width * config.layers[at][1]))
        self.layers = nn.ModuleList(layers)
        self.bn = LastNorm(width, config)
        self.conv_to_rgb = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, told: Tensor, truncation: float) -> Tensor:
        x = self.gen_z(told).view(len(told), FIRST, FIRST, -1).permute(0, 3, 1, 2)
        for layer in self.layers:
            x = layer(x, told, truncation)
        return self.conv_to_rgb(F.relu(self.bn(x, truncation)))[:, :3].tanh()


class BigGAN(BaseModel):
    """Noise (B, Z), within -2..2 times the truncation, and shares of classes (B, N) → images (B, 3, H, W) in -1..1."""

    def __init__(self, config: BigGANConfig):
        super().__init__()
        self.config = config
        self.embeddings = nn.Linear(config.num_classes, config.z_dim, bias=False)
        self.generator = Generator(config)

    def forward(self, z: Tensor, classes: Tensor, truncation: float) -> Tensor:
        return self.generator(torch.cat([z, self.embeddings(classes)], 1), truncation)


LAYOUT = Layout()
Config, Model = BigGANConfig, BigGAN

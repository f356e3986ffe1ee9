"""BigGAN-deep by its formulas, over the tensors of its file: the spectral norms are torch's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Config = Mapping[str, Any]


def weight(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight without its spectral norm (Miyato et al. 2018): divided by uᵀ W v."""
    u, v, w = (tensors[f"{name}.weight_{end}"] for end in ("u", "v", "orig"))
    return w / torch.einsum("o,oi,i->", u, w.reshape(len(w), -1), v)


def norm(
    tensors: Mapping[str, Tensor], name: str, x: Tensor, truncation: float, scale: Tensor, shift: Tensor
) -> Tensor:
    """A batch norm by the statistics of a truncation; between two of them with exchanged weights, as published."""
    means, variances = tensors[f"{name}.running_means"], tensors[f"{name}.running_vars"]
    share, row = math.modf(truncation / (1 / (len(means) - 1)))
    low = int(row)
    high = low + (share != 0)
    at = [share * table[low] + (1 - share) * table[high] for table in (means, variances)]
    mean, variance = (one[None, :, None, None] for one in at)
    return (x - mean) * (variance + 1e-4) ** -0.5 * scale + shift


def block(tensors: Mapping[str, Tensor], name: str, x: Tensor, c: Tensor, truncation: float, up: bool) -> Tensor:
    """Four convolutions, and a skip connection that keeps the first channels."""
    y = x
    for i in range(4):
        scale, shift = (c @ weight(tensors, f"{name}.bn_{i}.{part}").T for part in ("scale", "offset"))
        y = norm(tensors, f"{name}.bn_{i}", y, truncation, 1 + scale[..., None, None], shift[..., None, None]).relu()
        y = y.repeat_interleave(2, 2).repeat_interleave(2, 3) if up and i == 1 else y
        y = F.conv2d(
            y, weight(tensors, f"{name}.conv_{i}"), tensors[f"{name}.conv_{i}.bias"], padding=1 if i in (1, 2) else 0
        )
    skip = x[:, : y.shape[1]]
    return y + (skip.repeat_interleave(2, 2).repeat_interleave(2, 3) if up else skip)


def attention(tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Every place looks at the largest values of two by two places."""
    theta, phi, g = (F.conv2d(x, weight(tensors, f"{name}.snconv1x1_{one}")) for one in ("theta", "phi", "g"))
    phi, g = F.max_pool2d(phi, 2), F.max_pool2d(g, 2)
    seen = torch.einsum("bchw,bcij->bhwij", theta, phi).flatten(3).softmax(-1)
    mixed = torch.einsum("bhwn,bcn->bchw", seen, g.flatten(2))
    return x + tensors[f"{name}.gamma"] * F.conv2d(mixed, weight(tensors, f"{name}.snconv1x1_o_conv"))


def draw(tensors: Mapping[str, Tensor], config: Config, z: Tensor, classes: Tensor, truncation: float) -> Tensor:
    """Images (B, 3, H, W) in -1..1 of noise (B, Z) and classes (B, N)."""
    c = torch.cat([z, classes @ tensors["embeddings.weight"].T], 1)
    x = c @ weight(tensors, "generator.gen_z").T + tensors["generator.gen_z.bias"]
    x = x.view(len(z), 4, 4, -1).movedim(3, 1)
    ups = [row[0] for row in config["layers"]]
    ups.insert(config["attention_layer_position"], None)
    for i, up in enumerate(ups):
        name = f"generator.layers.{i}"
        x = attention(tensors, name, x) if up is None else block(tensors, name, x, c, truncation, up)
    scale, shift = (tensors[f"generator.bn.{part}"][:, None, None] for part in ("weight", "bias"))
    x = norm(tensors, "generator.bn", x, truncation, scale, shift).relu()
    x = F.conv2d(x, weight(tensors, "generator.conv_to_rgb"), tensors["generator.conv_to_rgb.bias"], padding=1)
    return x[:, :3].tanh()

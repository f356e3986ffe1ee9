"""Noise that tells how its image is varied, so that seeds draw different images, and sharp ones.

Where noise and image are drawn apart, nothing in the noise speaks for one varied copy before another: a small network
predicts the mean of all copies, and every seed draws that. Here they are drawn together (multisample flow matching,
Pooladian et al. 2023; OT-CFM, Tong et al. 2023): some low frequencies of the noise are the factors of the copy. Noise
stays normal, and DDIM's steps (η = 0), which follow the mean of what the network saw, take it to the data's images as
before; but which noise becomes which copy is now easy to learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MODES = 4  # lowest frequencies of each axis in which noise tells factors


@dataclass(frozen=True)
class Coupling:
    """Factors (N, F) of N latents, and the direction (F, C·m·m) among the low frequencies of noise that tells each.

    Directions have length 1 and are orthogonal, so that noise whose factors are standard normal is so too; a factor
    that noise has no room for has direction 0.
    """

    factors: Tensor
    directions: Tensor

    def told(self, noise: Tensor, picks: Tensor) -> Tensor:
        """Return noise (B, C, h, w) that tells the factors of the latents `picks` (B,), and is else as it was."""
        low = low_frequencies(noise)
        away = (self.factors[picks] - low @ self.directions.T) @ self.directions
        rows, columns = (cosines(size) for size in noise.shape[2:])
        return noise + rows.T @ away.view(len(noise), noise.shape[1], len(rows), len(columns)) @ columns


def couple(latents: Tensor, factors: Tensor) -> Coupling:
    """Return the coupling of latents (N, C, h, w) and the factors (N, F) that they were varied by.

    A factor's direction is the one in which it moves the latents (by least squares), as far as all can be orthogonal
    (the nearest such set, Schönemann 1966): then noise lies near its image, and its factors can be read at all times.
    """
    low = torch.cat([low_frequencies(part.float()) for part in latents.split(4096)])
    moved = torch.linalg.lstsq(factors - factors.mean(0), low - low.mean(0), driver="gelsd").solution
    lengths = moved.norm(dim=1)
    room = lengths.argsort(descending=True)[: low.shape[1]]
    left, _, right = torch.linalg.svd(moved[room] / lengths[room, None].clamp(min=1e-9), full_matrices=False)
    directions = torch.zeros_like(moved)
    directions[room] = left @ right
    return Coupling(factors, directions)


def low_frequencies(latents: Tensor) -> Tensor:
    """Return the lowest frequencies (N, C·m·m) of latents (N, C, h, w): their orthonormal cosine transform's first."""
    rows, columns = (cosines(size) for size in latents.shape[2:])
    return (rows @ latents @ columns.T).flatten(1)


def cosines(size: int) -> Tensor:
    """Return the first rows (m, size) of the orthonormal DCT-II."""
    k = torch.arange(min(MODES, size)).view(-1, 1)
    rows = torch.cos(math.pi / size * (torch.arange(size) + 0.5) * k) * math.sqrt(2 / size)
    return torch.where(k == 0, rows / math.sqrt(2), rows)

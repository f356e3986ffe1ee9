"""Mean and standard deviation of CLIP's embeddings of images, by which Stable unCLIP norms them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gencli.models.base import BaseConfig, Layout, check_ints
from gencli.models.module import BaseModel


@dataclass(frozen=True)
class ImageNormalizerConfig(BaseConfig):
    embedding_dim: int = 768

    def check(self) -> None:
        check_ints(self, {"embedding_dim": 2**14})


class StableUnCLIPImageNormalizer(BaseModel):
    def __init__(self, config: ImageNormalizerConfig):
        super().__init__()
        self.config = config
        self.mean = nn.Parameter(torch.empty(1, config.embedding_dim))
        self.std = nn.Parameter(torch.empty(1, config.embedding_dim))

    def scale(self, embeds: Tensor) -> Tensor:
        """Return embeddings (B, E) normed."""
        return (embeds - self.mean) / self.std

    def unscale(self, embeds: Tensor) -> Tensor:
        """Return normed embeddings (B, E) as CLIP has them."""
        return embeds * self.std + self.mean


LAYOUT = Layout()
Config, Model = ImageNormalizerConfig, StableUnCLIPImageNormalizer

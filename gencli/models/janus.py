"""Janus and Janus-Pro (Wu et al. 2024, arXiv 2410.13848; Chen et al. 2025, 2501.17811): a Llama that draws images.

An image follows its prompt as 16 by 16 pixels a token, entries of a VQ codebook. Such a token has an embedding of its
own, and a head of its own: image token k is the id vocab_size + k, and logits are over image tokens alone.
B: batch, T: positions, C: hidden_size, K: num_embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models import decoder
from gencli.models.base import Layout, Rename, check_ints
from gencli.models.llama import Llama, LlamaConfig


@dataclass(frozen=True, kw_only=True)
class JanusConfig(LlamaConfig):
    """The keys of the language model, and of the codebook: how many entries it has, and of what size. aligner_layers:
    between an entry and the width of the language model."""

    num_embeddings: int = 16384
    embed_dim: int = 8
    aligner_layers: int = 2

    def check(self) -> None:
        super().check()
        check_ints(self, {"num_embeddings": 2**20, "embed_dim": 2**14, "aligner_layers": 64})


class Aligner(nn.Module):
    def __init__(self, config: JanusConfig):
        super().__init__()
        width = config.hidden_size
        self.fc1 = nn.Linear(config.embed_dim, width)
        self.hidden_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(config.aligner_layers - 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        for layer in self.hidden_layers:
            x = layer(F.gelu(x))
        return x


class Head(nn.Module):
    def __init__(self, config: JanusConfig):
        super().__init__()
        self.proj_out = nn.Linear(config.hidden_size, config.hidden_size)
        self.vision_head = nn.Linear(config.hidden_size, config.num_embeddings)

    def forward(self, x: Tensor) -> Tensor:
        return self.vision_head(F.gelu(self.proj_out(x)))


class Janus(Llama):
    """The decoder of images: without the head over words."""

    config: JanusConfig

    def __init__(self, config: JanusConfig):
        super().__init__(config)
        del self.lm_head
        self.generation_embeddings = nn.Embedding(config.num_embeddings, config.embed_dim)
        self.generation_aligner = Aligner(config)
        self.generation_head = Head(config)

    @property
    def vocab_size(self) -> int:
        return self.config.num_embeddings

    @property
    def first_image_token(self) -> int:
        """The id of the codebook's first entry."""
        return self.config.vocab_size

    def embed(self, ids: Tensor) -> Tensor:
        """Return embeddings (B, T, C) of ids (B, T), of words and of image tokens."""
        words = self.model.embed_tokens(ids.clamp(max=self.first_image_token - 1))
        entries = self.generation_embeddings((ids - self.first_image_token).clamp(min=0))
        return torch.where((ids >= self.first_image_token)[..., None], self.generation_aligner(entries), words)

    def head(self, x: Tensor) -> Tensor:
        """Return logits (B, T, K) over image tokens."""
        return self.generation_head(x)


LAYOUT = Layout(
    renames=(
        Rename(r"model\.language_model\.(.*)", r"model.\1"),
        Rename(r"model\.(generation_.*)", r"\1"),
    ),
    drops=decoder.LAYOUT.drops,
)
Config, Model = JanusConfig, Janus

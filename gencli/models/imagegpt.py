"""iGPT (Chen et al. 2020, "Generative Pretraining from Pixels"): a GPT-2 whose tokens are the colours of a palette.

A picture is read row by row, behind a token that begins it, which the head cannot give. As GPT-2 but for its norms and
the activation. B: batch, T: new positions, C: n_embd, V: colours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import TRANSFORMERS_INERT, Layout, Rename, read_config
from gencli.models.gpt2 import MLP, Attention, GPT2Config
from gencli.models.kv_cache import KeyValueCache
from gencli.models.module import BaseModel


@dataclass(frozen=True)
class ImageGPTConfig(GPT2Config):
    """config.json of an iGPT; defaults are those of the small model. vocab_size counts the token that begins."""

    vocab_size: int = 513
    n_positions: int = 1024
    n_embd: int = 512
    n_layer: int = 24
    n_head: int = 8
    activation_function: str = "quick_gelu"
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ImageGPTConfig:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        inert = TRANSFORMERS_INERT | {"reorder_and_upcast_attn"}  # which changes rounding in half precision only
        config = read_config(cls, raw, inert=inert, only={"add_cross_attention": (False,)})
        config.check()
        if config.vocab_size < 2:
            raise GencliError(f"config.json: vocab_size = {config.vocab_size} leaves no colour")
        if config.tie_word_embeddings:
            raise GencliError("config.json: tie_word_embeddings = true is not supported: the head has no first token")
        return config


class ImageGPTLayerNorm(nn.Module):
    """By the root of the mean square: nothing is subtracted, nothing added."""

    def __init__(self, config: ImageGPTConfig):
        super().__init__()
        self.eps = config.layer_norm_epsilon
        self.weight = nn.Parameter(torch.empty(config.n_embd))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()  # squares would leave half precision's range
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class Block(nn.Module):
    def __init__(self, config: ImageGPTConfig, layer: int):
        super().__init__()
        self.ln_1 = ImageGPTLayerNorm(config)
        self.attn = Attention(config, layer)
        self.ln_2 = ImageGPTLayerNorm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KeyValueCache | None, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, config: ImageGPTConfig):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = ImageGPTLayerNorm(config)


class ImageGPT(BaseModel):
    """The decoder with its head: the same interface as a language model's."""

    def __init__(self, config: ImageGPTConfig):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size - 1, bias=False)

    @property
    def max_length(self) -> int:
        """The longest sequence the model can read: all pixels but the last, behind the token that begins."""
        return self.config.n_positions

    @property
    def vocab_size(self) -> int:
        """Colours: what the head may give."""
        return self.config.vocab_size - 1

    @property
    def begin(self) -> int:
        """The token that begins a picture."""
        return self.config.vocab_size - 1

    def new_cache(self, batch: int, positions: int) -> KeyValueCache:
        """A cache for `batch` pictures of at most `positions` tokens."""
        config = self.config
        head_dim = config.n_embd // config.n_head
        return KeyValueCache(
            config.n_layer, batch, config.n_head, positions, head_dim, device=self.device, dtype=self.compute_dtype
        )

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None, *, last_only: bool = False) -> Tensor:
        """Logits (B, T, V) for token ids (B, T); with `last_only` (B, 1, V), for the last position.

        With a cache the ids continue what is in it, and are added to it.
        """
        start = 0 if cache is None else cache.length
        T = ids.shape[1]
        positions = torch.arange(start, start + T, device=ids.device)
        x = self.transformer.wte(ids) + self.transformer.wpe(positions)  # (B, T, C)
        mask = None
        if start and T > 1:  # new position i sees the cache and new positions up to its own
            mask = positions[:, None] >= torch.arange(start + T, device=ids.device)[None, :]
        for block in self.transformer.h:
            x = block(x, cache, mask)
        if cache is not None:
            cache.length += T
        if last_only:
            x = x[:, -1:]
        return self.lm_head(self.transformer.ln_f(x))


LAYOUT = Layout(
    # A save of the model without its head lacks the prefix; it lacks the head too, and is told by that.
    renames=(Rename(r"(wte|wpe|h|ln_f)\.(.*)", r"transformer.\1.\2"),),
    drops=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),  # causal masks
)
Config, Model = ImageGPTConfig, ImageGPT

"""iGPT (Chen et al. 2020, "Generative Pretraining from Pixels"): a GPT-2 whose tokens are the colours of a palette.

An image is read row by row after a start token, which the head cannot return. It differs from GPT-2 in its norms and
its activation. B: batch, T: new positions, C: n_embd, V: colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import TRANSFORMERS_INERT, Layout, Rename
from gencli.models.gpt2 import GPT2, GPT2Config


@dataclass(frozen=True)
class ImageGPTConfig(GPT2Config):
    """config.json of an iGPT; defaults are those of the small model. vocab_size counts the start token."""

    INERT = TRANSFORMERS_INERT | {"reorder_and_upcast_attn"}  # changes rounding in half precision only

    vocab_size: int = 513
    n_positions: int = 1024
    n_embd: int = 512
    n_layer: int = 24
    n_head: int = 8
    activation_function: str = "quick_gelu"
    tie_word_embeddings: bool = False

    def check(self) -> None:
        super().check()
        if self.vocab_size < 2:
            raise GencliError(f"config.json: vocab_size = {self.vocab_size} leaves no colour")
        if self.tie_word_embeddings:
            raise GencliError("config.json: tie_word_embeddings = true is not supported: the head has no first token")


class ImageGPTLayerNorm(nn.Module):
    """A norm by the root mean square, without a mean or a bias."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()  # squares would leave the range of half precision
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class ImageGPT(GPT2):
    """The decoder with its head over the V colours. `max_length`: all pixels but the last, after the start token."""

    def __init__(self, config: ImageGPTConfig):
        super().__init__(config, ImageGPTLayerNorm)

    @property
    def vocab_size(self) -> int:
        """The number of colours, which the head returns logits for."""
        return self.config.vocab_size - 1

    @property
    def begin(self) -> int:
        """The start token of an image."""
        return self.config.vocab_size - 1


LAYOUT = Layout(
    # A save of the model without its head lacks the prefix, and is refused because it lacks the head too.
    renames=(Rename(r"(wte|wpe|h|ln_f)\.(.*)", r"transformer.\1.\2"),),
    drops=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),  # causal masks
)
Config, Model = ImageGPTConfig, ImageGPT

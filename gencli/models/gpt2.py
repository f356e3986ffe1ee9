"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners") in all sizes.

Attributes are named as the checkpoint names them. B: batch, T: new positions, S: all positions, C: n_embd, H: n_head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models import step
from gencli.models.activations import ACTIVATIONS, check_activation
from gencli.models.base import (
    TRANSFORMERS_INERT,
    BaseConfig,
    Layout,
    Rename,
    check_flags,
    check_ints,
    check_multiple,
    check_numbers,
)
from gencli.models.kv_cache import KeyValueCache
from gencli.models.linear import Conv1D
from gencli.models.module import LanguageModel


@dataclass(frozen=True)
class GPT2Config(BaseConfig):
    """config.json of a GPT-2 checkpoint; defaults are those of the 124M model."""

    INERT = TRANSFORMERS_INERT | {
        "n_ctx", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
        "summary_use_proj", "n_special", "predict_special_tokens", "output_past", "xla_device",
        "reorder_and_upcast_attn",  # upcasting changes rounding in half precision only
    }  # fmt: skip
    IGNORE = "; --ignore-config KEY says that one does not"
    ONLY: ClassVar = {"add_cross_attention": (False,)}
    OFF_IS_INERT = True

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True

    def check(self) -> None:
        bounds = {"vocab_size": 2**22, "n_positions": 2**20, "n_embd": 2**16, "n_layer": 1024, "n_head": 1024}
        check_ints(self, bounds if self.n_inner is None else bounds | {"n_inner": 2**20})
        check_numbers(self, {"layer_norm_epsilon": (0.0, 1.0)})
        check_flags(self)
        check_multiple(self, "n_embd", "n_head")
        check_activation("activation_function", self.activation_function)


class Attention(nn.Module):
    STEP = ("c_attn", "c_proj")
    rotated, window, softcap = 0, None, None

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__()
        self.n_head = self.heads = self.kv_heads = config.n_head
        self.head_dim = config.n_embd // config.n_head
        self.layer = layer
        scale = 1 / math.sqrt(config.n_embd // config.n_head) if config.scale_attn_weights else 1.0
        self.scale = scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cache: KeyValueCache | None, mask: Tensor | None) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, C / H)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        causal = mask is None and T > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    STEP, gated = ("c_fc", "c_proj"), False

    def __init__(self, config: GPT2Config):
        super().__init__()
        n_inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Conv1D(config.n_embd, n_inner)
        self.c_proj = Conv1D(n_inner, config.n_embd)
        self.activation = ACTIVATIONS[config.activation_function]
        self.step_activation = step.ACTIVATIONS.get(config.activation_function)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


Norm = Callable[[int, float], nn.Module]


def layer_norm(size: int, eps: float) -> nn.Module:
    return nn.LayerNorm(size, eps=eps)


class Block(nn.Module):
    STEP = ("attn", "mlp")
    NORMS = ("ln_1", None, "ln_2", None)

    def __init__(self, config: GPT2Config, layer: int, norm: Norm):
        super().__init__()
        self.ln_1 = norm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = norm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KeyValueCache | None, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, config: GPT2Config, norm: Norm):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer, norm) for layer in range(config.n_layer))
        self.ln_f = norm(config.n_embd, config.layer_norm_epsilon)


class GPT2(LanguageModel):
    """The decoder with its language-model head. norm: (size, eps) → a norm of that size."""

    def __init__(self, config: GPT2Config, norm: Norm = layer_norm):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config, norm)
        self.lm_head = nn.Linear(config.n_embd, self.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    @property
    def max_length(self) -> int:
        return self.config.n_positions

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def new_cache(self, batch: int, positions: int) -> KeyValueCache:
        config = self.config
        shape = (config.n_layer, batch, config.n_head, positions, config.n_embd // config.n_head)
        return KeyValueCache(*shape, device=self.device, dtype=self.compute_dtype)

    def step_parts(self) -> step.Parts:
        """What `models.step` makes a step of."""
        parts = self.transformer
        return step.Parts(parts.h, parts.wte, positions=parts.wpe, norm=parts.ln_f, head=self.lm_head)

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None, *, last_only: bool = False) -> Tensor:
        """Return logits (B, T, V) of ids (B, T) that follow those in `cache`; (B, 1, V) if `last_only`."""
        if (done := step.run(self, ids, cache, last_only)) is not None:
            if done.are_logits:
                return done.result
            x = done.result
        else:
            x = self._by_torch(ids, cache)
        if last_only:
            x = x[:, -1:]
        return self.lm_head(self.transformer.ln_f(x))

    def _by_torch(self, ids: Tensor, cache: KeyValueCache | None) -> Tensor:
        """Return x (B, T, C) after the last layer."""
        B, T = ids.shape
        starts = torch.tensor([0] if cache is None else cache.starts(B), device=ids.device)
        positions = starts[:, None] + torch.arange(T, device=ids.device)  # (B or 1, T)
        x = self.transformer.wte(ids) + self.transformer.wpe(positions)  # (B, T, C)
        mask = None if cache is None else cache.visible(B)
        if T > 1 and cache is not None and cache.length:  # the cache, and the new positions up to its own
            mask = positions[0, :, None] >= torch.arange(cache.length + T, device=ids.device)[None, :]
        for block in self.transformer.h:
            x = block(x, cache, mask)
        if cache is not None:
            cache.lengths[:B] += T
        return x


LAYOUT = Layout(
    # GPT-2 files of the hub lack the prefix that new saves have.
    renames=(Rename(r"(wte|wpe|h|ln_f)\.(.*)", r"transformer.\1.\2"),),
    drops=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),  # causal masks
    tied={"lm_head.weight": "transformer.wte.weight"},
)
Config, Model = GPT2Config, GPT2

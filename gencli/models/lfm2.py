"""LFM2 (Liquid AI 2025, arXiv 2511.23404): short convolutions between gates in most layers, attention in the others.

B: batch, T: new positions, C: hidden_size, W: width of the convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models import decoder, decoder_blocks
from gencli.models.base import Rename, check_ints
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, RMSNorm
from gencli.models.decoder_config import DECODER_INERT, DecoderConfig
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import COMMON_KINDS, CosSin, with_rope
from gencli.models.state_cache import Sizes, StateCache

FULL, CONV = "full_attention", "conv"
ADJUST = ("block_ff_dim", "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of")
NAMES = {"norm_eps": "rms_norm_eps", "tie_embedding": "tie_word_embeddings"}


@dataclass(frozen=True, kw_only=True)
class Lfm2Config(DecoderConfig):
    """config.json of an LFM2 checkpoint. rms_norm_eps: its `norm_eps`.

    `full_attn_idxs` are the layers that attend, unless `layer_types` says it. intermediate_size: with
    `block_auto_adjust_ff_dim`, as it is unless the file says otherwise, two thirds of the file's, times
    `block_ffn_dim_multiplier`, and then the next multiple of `block_multiple_of`.
    """

    INERT = DECODER_INERT | {  # which the reference does not read
        "block_dim", "block_norm_eps", "block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init",
        "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads",
    }  # fmt: skip
    ONLY: ClassVar = {"block_use_swiglu": (True,), "use_pos_enc": (True,)}

    vocab_size: int = 65536
    hidden_size: int = 2560
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 128000
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    conv_bias: bool = False
    conv_L_cache: int = 3
    full_attn_idxs: tuple[int, ...] | None = None
    layer_types: tuple[str, ...] | None = None

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        """Return the values with the width of the feed-forward networks, and RoPE's. Raises GencliError."""
        named = {NAMES.get(key, key): value for key, value in raw.items() if key not in ADJUST}
        return with_rope({**named, "intermediate_size": _inner(raw)}, COMMON_KINDS, theta=1000000.0)

    @property
    def types(self) -> tuple[str, ...]:
        """The kind of each layer."""
        if self.layer_types is not None:
            return self.layer_types
        layers = range(self.num_hidden_layers)
        full = layers if self.full_attn_idxs is None else self.full_attn_idxs
        return tuple(FULL if layer in full else CONV for layer in layers)

    def check(self) -> None:
        full = self.full_attn_idxs
        if full is not None and (not isinstance(full, tuple) or any(type(layer) is not int for layer in full)):
            raise GencliError(f"config.json: full_attn_idxs = {full!r:.80} is no list of layers")
        super().check()
        check_ints(self, {"conv_L_cache": 64})
        types, layers = self.types, self.num_hidden_layers
        if not isinstance(types, tuple) or len(types) != layers or any(kind not in (CONV, FULL) for kind in types):
            raise GencliError(
                f"config.json: layer_types = {types!r:.80} does not fit",
                f"it names {CONV} or {FULL} for each of {layers} layers",
            )
        if FULL not in types:
            raise GencliError(f"config.json: none of {layers} layers is of the type {FULL}")


def _inner(raw: Mapping[str, object]) -> object:
    """Return the width of the feed-forward networks that a config means. Raise GencliError for impossible values."""
    size, multiplier = raw.get("block_ff_dim"), raw.get("block_ffn_dim_multiplier", 1.0)
    size = raw.get("intermediate_size", Lfm2Config.intermediate_size) if size is None else size
    if not raw.get("block_auto_adjust_ff_dim", True):
        return size
    given = {"block_ff_dim": size, "block_multiple_of": raw.get("block_multiple_of", 256)}
    for key, value in given.items():
        if type(value) is not int or not 0 < value <= 2**20:
            raise GencliError(f"config.json: {key} = {value!r:.80} is out of range (1 to {2**20})")
    if multiplier is not None and (not isinstance(multiplier, int | float) or not 1e-3 <= multiplier <= 1e3):
        raise GencliError(f"config.json: block_ffn_dim_multiplier = {multiplier!r:.80} is out of range (0.001 to 1000)")
    inner, multiple = int(2 * int(str(size)) / 3), int(str(given["block_multiple_of"]))
    return inner if multiplier is None else -(-int(multiplier * inner) // multiple) * multiple


class Attention(decoder_blocks.Attention):
    """q and k are normed head by head, before RoPE. number: among the layers that attend."""

    def __init__(self, config: Lfm2Config, number: int):
        super().__init__(config, number)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v


class ShortConv(nn.Module):
    """out_proj(c · convolution(b · x)), where in_proj makes b, c and x of what is read; the convolution reads W
    positions up to its own. number: among the layers of this kind."""

    def __init__(self, config: Lfm2Config, number: int):
        super().__init__()
        hidden, bias, width = config.hidden_size, config.conv_bias, config.conv_L_cache
        self.number, self.inputs = number, width - 1
        self.in_proj = nn.Linear(hidden, 3 * hidden, bias=bias)
        self.conv = nn.Conv1d(hidden, hidden, width, groups=hidden, bias=bias)
        self.out_proj = nn.Linear(hidden, hidden, bias=bias)

    def forward(self, x: Tensor, cache: StateCache | None) -> Tensor:
        B, T, C = x.shape
        b, c, x = self.in_proj(x).chunk(3, dim=-1)
        before = x.new_zeros(B, self.inputs, C) if cache is None else cache.windows[:B, self.number].to(x)
        mixed = torch.cat((before, b * x), dim=1)  # (B, W - 1 + T, C)
        if cache is not None:
            for mark in cache.marks:
                window = mixed[:, mark.after : mark.after + self.inputs]
                cache.keep(mark, self.number, window, cache.states[:1, self.number])
            cache.windows[:B, self.number] = mixed[:, T:]
        return self.out_proj(c * self.convolved(mixed, T).to(x.dtype))

    def convolved(self, mixed: Tensor, count: int) -> Tensor:
        """Return the convolution (B, T, C) of its inputs (B, W - 1 + T, C), in float32."""
        weight = self.conv.weight.float()  # (C, 1, W)
        sums = mixed[:, :count].float() * weight[:, 0, 0]
        for i in range(1, self.inputs + 1):
            sums = torch.addcmul(sums, mixed[:, i : i + count].float(), weight[:, 0, i])
        return sums if self.conv.bias is None else sums + self.conv.bias.float()


class Layer(nn.Module):
    """A layer with a norm before its mixer and one before its feed-forward network. number: among those of its kind."""

    def __init__(self, config: Lfm2Config, kind: str, number: int):
        super().__init__()
        self.kind = kind
        if kind == CONV:
            self.conv = ShortConv(config, number)
        else:
            self.self_attn = Attention(config, number)
        self.mlp = MLP(config)
        self.operator_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: StateCache | None) -> Tensor:
        h = self.operator_norm(x)
        x = x + (self.conv(h, cache) if self.kind == CONV else self.self_attn(h, cos_sin, cache))
        return x + self.mlp(self.ffn_norm(x))


class Lfm2(Decoder):
    """The decoder with its language-model head."""

    config: Lfm2Config
    cuts_back = False

    def __init__(self, config: Lfm2Config):
        types = config.types
        super().__init__(config, lambda layer: Layer(config, types[layer], types[:layer].count(types[layer])))

    def new_cache(self, batch: int, positions: int) -> StateCache:
        config, full = self.config, self.config.types.count(FULL)
        sizes = Sizes(config.num_hidden_layers - full, config.conv_L_cache - 1, config.hidden_size, 0, 0, 0)
        shape = (full, batch, config.kv_heads, positions, config.head_size)
        return StateCache(*shape, sizes, device=self.device, dtype=self.compute_dtype)

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None, *, last_only: bool = False) -> Tensor:
        """As of every decoder. Of a single text some states on the way are kept in the cache."""
        if not isinstance(cache, StateCache):
            return super().forward(ids, last_only=last_only)
        with cache.reading(*ids.shape):
            return super().forward(ids, cache, last_only=last_only)


FILE = r"(model\.layers\.\d+)"
LAYOUT = replace(
    decoder.LAYOUT,
    renames=(
        Rename(r"model\.embedding_norm\.weight", r"model.norm.weight"),
        Rename(rf"{FILE}\.feed_forward\.w1\.weight", r"\1.mlp.gate_proj.weight"),
        Rename(rf"{FILE}\.feed_forward\.w2\.weight", r"\1.mlp.down_proj.weight"),
        Rename(rf"{FILE}\.feed_forward\.w3\.weight", r"\1.mlp.up_proj.weight"),
        Rename(rf"{FILE}\.self_attn\.out_proj\.weight", r"\1.self_attn.o_proj.weight"),
        Rename(rf"{FILE}\.self_attn\.([qk])_layernorm\.weight", r"\1.self_attn.\2_norm.weight"),
    ),
)
Config, Model = Lfm2Config, Lfm2

"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), and how checkpoints scale it to longer texts.

The vector of a head is D / 2 pairs (i, i + D / 2); position p rotates pair i by p * inv_freq[i]. Everything is computed
in float32 and cast at the end, as in the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.models.base import check_flags, check_numbers, read_config


@dataclass(frozen=True)
class Rope:
    """How a checkpoint rotates its queries and keys; the fields are the keys of its `rope_parameters`."""

    rope_type: str = "default"
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 1.0
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    # yarn
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    # llama3
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    # longrope
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    def width(self, head_dim: int) -> int:
        """Return how many numbers of a head are in pairs that have an angle, which is 0 for some proportional ones."""
        return head_dim if self.rope_type == "proportional" else int(head_dim * self.partial_rotary_factor)

    def max_length(self, max_position_embeddings: int) -> int:
        """Return the longest text in tokens. Linear and dynamic configs have the length before scaling."""
        if self.rope_type in ("linear", "dynamic"):
            return int(max_position_embeddings * (self.factor or 1))
        if self.rope_type == "yarn" and self.original_max_position_embeddings:
            return max(max_position_embeddings, int(self.original_max_position_embeddings * (self.factor or 1)))
        return max_position_embeddings


# Keys of a config about RoPE: separate before transformers 5, since then in `rope_parameters`.
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")


def with_rope(
    raw: Mapping[str, object], kinds: tuple[str, ...], *, theta: float = 10000.0, partial: bool = False
) -> dict[str, object]:
    """Return the config with its rope keys, of the old form or the new, as one Rope in `rope_parameters`.

    kinds: the rope types of the family. theta: its base if the config has none. partial: whether only a part of each
    head may be rotated. Raises GencliError for another type, unknown keys and impossible values.
    """
    parameters = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(parameters, dict):
        raise GencliError(f"config.json: rope parameters are no object: {str(parameters)[:80]}")
    beside = {key: raw.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    rope = read_rope({**beside, **parameters}, kinds, theta=theta)
    if rope.partial_rotary_factor != 1 and not partial:
        raise GencliError(f"config.json: partial_rotary_factor = {rope.partial_rotary_factor} is not supported")
    rest = {key: value for key, value in raw.items() if key not in ROPE_KEYS}
    return {**rest, "rope_parameters": rope}


def with_two_ropes(raw: Mapping[str, object], *, theta: float, local: Mapping[str, object]) -> dict[str, object]:
    """Return the config with its rope keys, of the old form or the new, as `rope_parameters`, of the full layers, and
    `sliding_rope`, of the windowed ones, which no scaling of the old form is for.

    theta: the base of the full layers if the config has none. local: what windowed layers have if the config does not
    say it. Raises GencliError as `with_rope`.
    """
    rest = {key: value for key, value in raw.items() if key not in (*ROPE_KEYS[:3], "sliding_rope")}
    parameters, scaling = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(parameters, dict) or not isinstance(scaling, dict) or not parameters.keys() <= set(kinds):
        raise GencliError(f"config.json: rope_parameters = {str(parameters)[:60]} does not have {' and '.join(kinds)}")
    full, sliding = (parameters.get(kind) or {} for kind in kinds)
    if not isinstance(full, dict) or not isinstance(sliding, dict):
        raise GencliError(f"config.json: rope_parameters = {str(parameters)[:60]} are no objects")
    full = {"rope_theta": raw.get("rope_theta"), **full, **scaling}
    return {
        **rest,
        "rope_parameters": read_rope(full, COMMON_KINDS, theta=theta),
        "sliding_rope": read_rope({**local, **sliding}, COMMON_KINDS),
    }


def read_rope(parameters: Mapping[str, object], kinds: tuple[str, ...], *, theta: float = 10000.0) -> Rope:
    """Read a Rope from the checkpoint's own keys; `type` is the old name of `rope_type`. Raises GencliError."""
    known = {key: value for key, value in parameters.items() if value is not None}
    kind = known.pop("rope_type", known.get("type", "default"))
    known.pop("type", None)
    if kind not in kinds:
        raise GencliError(
            f"config.json: rope_type = {kind!r:.80} is not supported",
            f"gencli knows {', '.join(kinds)} for this family",
        )
    # `finetuned` names one of two programs of YaRN's authors, not another formula
    rope = read_config(Rope, {"rope_theta": theta, **known, "rope_type": kind}, inert={"finetuned"})
    _check(rope)
    return rope


BOUNDS = {
    "rope_theta": (1.001, 1e12), "partial_rotary_factor": (1e-3, 1.0), "factor": (1e-6, 1e6),
    "original_max_position_embeddings": (2, 2**26), "attention_factor": (1e-6, 1e6), "beta_fast": (1e-6, 1e6),
    "beta_slow": (1e-6, 1e6), "mscale": (0, 1e6), "mscale_all_dim": (0, 1e6), "low_freq_factor": (1e-6, 1e6),
    "high_freq_factor": (1e-6, 1e6),
}  # fmt: skip


def _check(rope: Rope) -> None:
    if lost := [key for key in KINDS[rope.rope_type].needs if getattr(rope, key) is None]:
        raise GencliError(f"config.json: rope_type = {rope.rope_type!r} lacks {', '.join(lost)}")
    check_numbers(rope, {key: bounds for key, bounds in BOUNDS.items() if getattr(rope, key) is not None})
    check_flags(rope)
    if rope.low_freq_factor is not None and rope.low_freq_factor >= (rope.high_freq_factor or math.inf):
        raise GencliError("config.json: low_freq_factor is not below high_freq_factor")


def check_pairs(rope: Rope, head_dim: int) -> None:
    """Raise GencliError unless heads of this size can be rotated so."""
    dim = rope.width(head_dim)
    if dim < 4 or dim % 2:  # at least two pairs: the exponent of the dynamic kind is dim / (dim - 2)
        raise GencliError(f"config.json: {dim} of {head_dim} numbers of a head cannot be turned in pairs")
    for name in ("short_factor", "long_factor"):
        factors = getattr(rope, name)
        if factors is None:
            continue
        if not isinstance(factors, tuple) or len(factors) != dim // 2 or not all(map(_is_factor, factors)):
            raise GencliError(f"config.json: {name} is not a list of {dim // 2} factors, one for each pair")


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-6 <= value <= 1e6


class Frequencies(NamedTuple):
    """inv_freq (dim / 2,), and the factor of cos and sin."""

    inv_freq: Tensor
    scale: float = 1.0


# Each: (rope, dim: rotated part of a head, limit: max_position_embeddings, length: of the text) → Frequencies.


def _powers(rope: Rope, dim: int) -> Tensor:
    return rope.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _default(rope: Rope, dim: int, limit: int, length: int) -> Frequencies:
    return Frequencies(1 / _powers(rope, dim))


def _linear(rope: Rope, dim: int, limit: int, length: int) -> Frequencies:
    """Divide positions by a factor (Chen et al. 2023, arXiv 2306.15595)."""
    assert rope.factor is not None
    return Frequencies(1 / _powers(rope, dim) / rope.factor)


def _dynamic(rope: Rope, dim: int, limit: int, length: int) -> Frequencies:
    """Increase the base with the length of the text beyond that of training ("dynamic NTK", emozilla 2023)."""
    assert rope.factor is not None
    if length <= limit:
        return _default(rope, dim, limit, length)
    stretch = rope.factor * torch.tensor(length, dtype=torch.float32) / limit - (rope.factor - 1)
    base = rope.rope_theta * stretch ** (dim / (dim - 2))
    return Frequencies(1 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))


def _yarn(rope: Rope, dim: int, limit: int, length: int) -> Frequencies:
    """Keep fast pairs, interpolate slow ones, with a ramp between (Peng et al. 2023, arXiv 2309.00071)."""
    original = rope.original_max_position_embeddings or limit
    factor = rope.factor or limit / original

    def pair(rotations: float) -> float:  # the index with so many rotations in the original length
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = pair(rope.beta_fast or 32), pair(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    powers = _powers(rope, dim)
    inv_freq = 1 / (factor * powers) * ramp + 1 / powers * (1 - ramp)

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0

    scale = temperature(1)
    if rope.attention_factor is not None:
        scale = rope.attention_factor
    elif rope.mscale and rope.mscale_all_dim:
        scale = temperature(rope.mscale) / temperature(rope.mscale_all_dim)
    return Frequencies(inv_freq, scale)


def _llama3(rope: Rope, dim: int, limit: int, length: int) -> Frequencies:
    """Divide frequencies by up to `factor` near the original length, by all of it for longer waves (Llama 3.1)."""
    assert rope.factor is not None and rope.low_freq_factor is not None and rope.high_freq_factor is not None
    original = rope.original_max_position_embeddings or limit
    inv_freq = 1 / _powers(rope, dim)
    rotations = original * inv_freq / (2 * math.pi)  # within the original length
    smooth = (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return Frequencies((1 - smooth) * inv_freq / rope.factor + smooth * inv_freq)


def _longrope(rope: Rope, dim: int, limit: int, length: int) -> Frequencies:
    """Use a factor per pair: one set for short texts, one for long ones (Ding et al. 2024, arXiv 2402.13753)."""
    assert rope.short_factor is not None and rope.long_factor is not None
    original = rope.original_max_position_embeddings or limit
    factors = rope.long_factor if length > original else rope.short_factor
    factor = rope.factor or limit / original
    scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    if rope.attention_factor is not None:
        scale = rope.attention_factor
    return Frequencies(1 / (torch.tensor(factors, dtype=torch.float32) * _powers(rope, dim)), scale)


def _proportional(rope: Rope, dim: int, limit: int, length: int) -> Frequencies:
    """Turn only the first pairs of a head, as far as if all were turned (Gemma 4)."""
    turned = torch.arange(dim // 2) < int(rope.partial_rotary_factor * dim // 2)
    return Frequencies(torch.where(turned, 1 / _powers(rope, dim), 0) / (rope.factor or 1))


class Kind(NamedTuple):
    frequencies: Callable[[Rope, int, int, int], Frequencies]
    needs: tuple[str, ...] = ()


KINDS = {
    "default": Kind(_default),
    "linear": Kind(_linear, ("factor",)),
    "dynamic": Kind(_dynamic, ("factor",)),
    "yarn": Kind(_yarn),
    "llama3": Kind(_llama3, ("factor", "low_freq_factor", "high_freq_factor")),
    "longrope": Kind(_longrope, ("short_factor", "long_factor")),
    "proportional": Kind(_proportional),
}
COMMON_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")

CosSin = tuple[Tensor, Tensor]  # cos and signed sin of some positions, (T, 1, dim) or (B, T, 1, dim) each


class Rotary:
    """cos and sin of positions, for all layers with the same RoPE: computed when first needed, kept, and extended.

    Not a module and without buffers, as nothing of it is in a checkpoint.
    """

    def __init__(self, rope: Rope, head_dim: int, max_position_embeddings: int):
        self.rope = rope
        self.dim = rope.width(head_dim)
        self.limit = max_position_embeddings
        self._tables: dict[tuple[torch.device, torch.dtype, bool], CosSin] = {}

    def is_long(self, length: int) -> bool:
        """Return whether a text of `length` tokens is rotated otherwise than a short one."""
        if self.rope.rope_type == "longrope":
            return length > (self.rope.original_max_position_embeddings or self.limit)
        return self.rope.rope_type == "dynamic" and length > self.limit

    def regime(self, length: int) -> int:
        """Return a number that is equal for lengths of text that are rotated alike."""
        return length if self.rope.rope_type == "dynamic" and self.is_long(length) else int(self.is_long(length))

    def __call__(self, start: int, stop: int, like: Tensor) -> CosSin:
        """Return cos and sin, (T, 1, dim) each, of positions start … stop - 1 of a text of length `stop`.

        Device and dtype are those of `like`.
        """
        long = self.is_long(stop)
        if long and self.rope.rope_type == "dynamic":  # every length has its own angles
            return self._compute(start, stop, stop, like)
        key = (like.device, like.dtype, long)
        table = self._tables.get(key)
        if table is None or len(table[0]) < stop:
            rows = max(64, stop if table is None else 2 * stop)
            table = self._tables[key] = self._compute(0, rows, stop, like)
        return table[0][start:stop], table[1][start:stop]

    @torch.inference_mode(False)  # the tables must serve training as well
    @torch.no_grad()
    def _compute(self, start: int, stop: int, length: int, like: Tensor) -> CosSin:
        inv_freq, scale = KINDS[self.rope.rope_type].frequencies(self.rope, self.dim, self.limit, length)
        angles = torch.arange(start, stop, dtype=torch.float32)[:, None] * inv_freq  # (T, dim / 2)
        cos, sin = angles.cos() * scale, angles.sin() * scale
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return cos[:, None].to(like.device, like.dtype), sin[:, None].to(like.device, like.dtype)


def apply_rotary_emb(x: Tensor, cos_sin: CosSin) -> Tensor:
    """Rotate the first `dim` numbers of every head of x (B, T, H, D); `dim` is the width of cos and sin."""
    cos, sin = cos_sin
    dim = cos.shape[-1]
    if dim < x.shape[-1]:
        return torch.cat((apply_rotary_emb(x[..., :dim], cos_sin), x[..., dim:]), dim=-1)
    # (x1, x2) → (x1 cos - x2 sin, x2 cos + x1 sin); the minus is in the table
    return torch.addcmul(x * cos, x.roll(dim // 2, -1), sin)


def halves(x: Tensor, dim: int) -> Tensor:
    """Return heads x (B, T, H, D) whose first `dim` numbers are pairs of neighbours, with pairs (i, i + dim / 2)."""
    turned = x[..., :dim].unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return turned if dim == x.shape[-1] else torch.cat((turned, x[..., dim:]), dim=-1)


def of_rows(rows: Sequence[Sequence[CosSin | None]]) -> Sequence[CosSin | None]:
    """Return cos and sin of each layer for rows at several positions, (B, T, 1, dim), from those of each row."""
    if len(rows) == 1:
        return rows[0]
    made: dict[int, CosSin | None] = {id(None): None}
    for layer in zip(*rows, strict=True):
        if id(layer[0]) not in made:  # layers with one RoPE have the very same tables
            cos, sin = zip(*layer, strict=True)
            made[id(layer[0])] = torch.stack(cos), torch.stack(sin)
    return [made[id(one)] for one in rows[0]]

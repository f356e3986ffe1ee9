"""float32 → packed rows by the library (pack.h), or by torch operations without it: the inverse of `unpack`.

Q4_0 to Q8_0 are rounded as the package gguf does it. Types of K look for scales of their sub-blocks: some roundings are
tried, of each the best scale (and minimum) follows by weighted least squares, and the one with the least error is
taken, as in llama.cpp; errors of large weights count more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.kernels import TYPES, library

TILE = 2**16  # values packed at a time by torch: what fits a cache
MANY = 2**20  # by the library, on all threads
LARGEST = 2**23  # of what is packed: no type has larger steps
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def pack(kind: str, rows: Tensor) -> Tensor:
    """Return rows (R, columns) of any precision packed, (R, bytes) uint8. columns: a multiple of the type's block.

    Raises GencliError for values that are infinite, NaN, or too large for the type.
    """
    number, block, size = TYPES[kind]
    columns, kernels = rows.shape[1], None if kind in FLOATS else library()
    packed = torch.empty(len(rows), columns // block * size, dtype=torch.uint8)
    step = max((TILE if kernels is None else MANY) // max(columns, 1), 1)
    for first in range(0, len(rows), step):
        some = rows[first : first + step].to("cpu", FLOATS.get(kind, torch.float32)).contiguous()
        to = packed[first : first + step]
        if kernels is None:
            packs = _by_torch(kind, some, to)
        else:
            packs = not kernels.pack(number, some.data_ptr(), len(some), columns, to.data_ptr(), packed.shape[1], 0)
        if not packs:
            raise GencliError(f"it has values that are NaN, infinite or too large for {kind}")
    return packed


def _by_torch(kind: str, rows: Tensor, to: Tensor) -> bool:
    """Pack rows, and return whether they can be."""
    can_be = rows.isfinite() if kind in FLOATS else rows.abs() <= LARGEST
    if not can_be.all():
        return False
    try:
        packed = rows if kind in FLOATS else PARTS[kind](rows.reshape(-1, TYPES[kind][1]))
    except OverflowError:
        return False
    to[:] = packed.view(torch.uint8).reshape(to.shape)
    return True


def _join(codes: Tensor, shifts: Sequence[int], width: int) -> Tensor:
    """Put fields (n, b * shifts) into bytes (n, b), as `unpack._fields` takes them out."""
    wide = codes.byte().unflatten(1, (-1, len(shifts), width)) << torch.tensor(shifts, dtype=torch.uint8)[:, None]
    return wide.sum(2, dtype=torch.uint8).flatten(1)


def _nibbles(codes: Tensor, width: int = 16) -> Tensor:
    return _join(codes & 15, (0, 4), width)


def _half(values: Tensor) -> Tensor:
    """Numbers (n, 1) as two bytes each."""
    found = values.half()
    if not found.isfinite().all():
        raise OverflowError
    return found.view(torch.uint8)


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values == 0, 0, 1 / values)


def _away(values: Tensor) -> Tensor:
    """Whole numbers, halves away from zero."""
    size = values.abs()
    whole = size.floor()
    return values.sign() * (whole + (2 * (size - whole)).floor())


def _largest(x: Tensor) -> Tensor:
    """Return the number of the largest size in each row, with its sign, (…, 1)."""
    return x.gather(-1, x.abs().argmax(-1, keepdim=True))


def _simple(bits: int, *, minimum: bool) -> Callable[[Tensor], Tensor]:
    def packed(x: Tensor) -> Tensor:
        halves: tuple[Tensor, ...]
        if minimum:
            low = x.amin(1, keepdim=True)
            d = (x.amax(1, keepdim=True) - low) / (2**bits - 1)
            codes, halves = (x - low) * _inverse(d) + 0.5, (_half(d), _half(low))
        else:
            d = _largest(x) / -(2 ** (bits - 1))
            codes, halves = x * _inverse(d) + (2 ** (bits - 1) + 0.5), (_half(d),)
        codes = codes.clamp(0, 2**bits - 1).byte()
        fifth = (_join(codes >> 4, range(8), 1),) if bits == 5 else ()
        return torch.cat((*halves, *fifth, _nibbles(codes)), 1)

    return packed


def _q8_0(x: Tensor) -> Tensor:
    d = x.abs().amax(1, keepdim=True) / 127
    return torch.cat((_half(d), _away(x * _inverse(d)).char().view(torch.uint8)), 1)


def _spans(x: Tensor, w: Tensor, top: int, steps: Sequence[float], *, absolute: bool = False) -> tuple[Tensor, Tensor]:
    """Find scales and minimums of rows (…, S) ≈ scale * code - minimum, codes 0 to `top`, both (…,) and not negative.

    w: what an error of each weighs. steps: how much further than `top` the row's span is cut. absolute: errors count
    as they are, not squared.
    """
    x, w = x.movedim(-1, 0).contiguous(), w.movedim(-1, 0).contiguous()  # sums of many short rows are slow
    low, high = x.amin(0).clamp(max=0), x.amax(0)
    span, above = high - low, x - low
    wx, sum_w = w * x, w.sum(0)
    sum_x, sum_xx, cuts = wx.sum(0), (wx * x).sum(0), _inverse(span)
    best = torch.full_like(span, torch.inf)
    scale, offset = torch.zeros_like(span), -low
    for extra in (None, *steps):
        code = (above * (cuts * (top + (extra or 0)))).round_().clamp_(0, top)
        if extra is None:
            new, base = span / top, low
        else:
            wl = w * code
            sum_xl, sum_l, sum_ll = (wx * code).sum(0), wl.sum(0), wl.mul_(code)
            sum_ll = sum_ll.sum(0)
            divisor = sum_w * sum_ll - sum_l * sum_l
            new, base = (sum_w * sum_xl - sum_x * sum_l) / divisor, (sum_ll * sum_x - sum_l * sum_xl) / divisor
            new, base = torch.where(base > 0, sum_xl * _inverse(sum_ll), new), base.clamp(max=0)
            new = torch.where(divisor > 0, new, torch.nan)
        if absolute or extra is None:
            off = code.mul_(new).add_(base).sub_(x)
            error = ((off.abs_() if absolute else off.square_()) * w).sum(0)
        else:  # what least squares leave
            error = sum_xx - new * sum_xl - base * sum_x
        better = error < best  # never for NaN
        scale, offset = torch.where(better, new, scale), torch.where(better, -base, offset)
        best = torch.where(better, error, best)
    return scale.clamp(min=0), offset.clamp(min=0)


def _levels(x: Tensor, top: int) -> Tensor:
    """Find scales (…,) of rows (…, S) ≈ scale * code, codes -top to top - 1; an error weighs x²."""
    largest, x = _largest(x)[..., 0], x.movedim(-1, 0).contiguous()
    cuts, w = _inverse(largest), x * x
    wx = w * x
    best, scale = torch.zeros_like(largest), torch.zeros_like(largest)
    for step in (0, *range(-9, 0), *range(1, 10)):
        code = (x * (cuts * -(top + 0.1 * step))).round_().clamp_(-top, top - 1)
        sum_xl, sum_ll = (wx * code).sum(0), (w * code).mul_(code).sum(0)
        gain = sum_xl * sum_xl * _inverse(sum_ll)
        better = gain > best
        best, scale = torch.where(better, gain, best), torch.where(better, sum_xl * _inverse(sum_ll), scale)
    return scale


def _shared(values: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return values (n, sub-blocks), not negative, as whole numbers to `top`, and the bytes of what they are times."""
    d = values.amax(1, keepdim=True) / top
    return (values * _inverse(d)).round().clamp(0, top).byte(), _half(d)


def _number(data: Tensor) -> Tensor:
    """The float32 of `_half`'s bytes."""
    return data.view(torch.float16).float()


def _spanned(x: Tensor, scales: Tensor, mins: Tensor, d: Tensor, m: Tensor, top: int) -> Tensor:
    """Codes (n, 256) of sub-blocks (n, B, S) under rounded scales and minimums."""
    scale, offset = (_number(d) * scales)[..., None], (_number(m) * mins)[..., None]
    return ((x + offset) * _inverse(scale)).round().clamp(0, top).byte().flatten(1)


def _levelled(x: Tensor, scales: Tensor, d: Tensor, top: int) -> Tensor:
    scale = (_number(d) * scales)[..., None]
    return ((x * _inverse(scale)).round().clamp(-top, top - 1) + top).byte().flatten(1)


def _q2_k(x: Tensor) -> Tensor:
    x = x.unflatten(1, (16, 16))
    scale, offset = _spans(x, x.abs(), 3, [0.1 * i - 0.5 for i in range(16)], absolute=True)
    (scales, d), (mins, m) = _shared(scale, 15), _shared(offset, 15)
    codes = _spanned(x, scales, mins, d, m, 3)
    return torch.cat((scales | mins << 4, _join(codes, (0, 2, 4, 6), 32), d, m), 1)


def _q3_k(x: Tensor) -> Tensor:
    x = x.unflatten(1, (16, 16))
    scale = _levels(x, 4)
    d = _half(_largest(scale) / -32)
    scales = (scale * _inverse(_number(d))).round().clamp(-32, 31)
    codes, scales = _levelled(x, scales, d, 4), (scales + 32).byte()
    high, low = _join(codes >> 2, range(8), 32), _join(codes & 3, (0, 2, 4, 6), 32)
    return torch.cat((high, low, _nibbles(scales, 8), _join(scales >> 4, (0, 2, 4, 6), 4), d), 1)


def _six_bits(scales: Tensor, mins: Tensor) -> Tensor:
    """8 scales and 8 mins in 12 bytes."""
    first = (one[:, :4] | one[:, 4:] >> 4 << 6 for one in (scales, mins))
    return torch.cat((*first, scales[:, 4:] & 15 | mins[:, 4:] << 4), 1)


def _q4_or_5_k(bits: int, steps: Sequence[float]) -> Callable[[Tensor], Tensor]:
    top = 2**bits - 1

    def packed(x: Tensor) -> Tensor:
        x = x.unflatten(1, (8, 32))
        w = x.abs() + x.square().mean(-1, keepdim=True).sqrt()
        scale, offset = _spans(x, w, top, steps)
        (scales, d), (mins, m) = _shared(scale, 63), _shared(offset, 63)
        codes = _spanned(x, scales, mins, d, m, top)
        fifth = (_join(codes >> 4, range(8), 32),) if bits == 5 else ()
        return torch.cat((d, m, _six_bits(scales, mins), *fifth, _nibbles(codes, 32)), 1)

    return packed


def _q6_k(x: Tensor) -> Tensor:
    x = x.unflatten(1, (16, 16))
    scale = _levels(x, 32)
    d = _half(_largest(scale) / -128)
    scales = (scale * _inverse(_number(d))).round().clamp(-128, 127)
    codes = _levelled(x, scales, d, 32)
    high = _join(codes >> 4, (0, 2, 4, 6), 32)
    return torch.cat((_nibbles(codes, 64), high, scales.char().view(torch.uint8), d), 1)


PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _simple(4, minimum=False), "Q4_1": _simple(4, minimum=True), "Q5_0": _simple(5, minimum=False),
    "Q5_1": _simple(5, minimum=True), "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_or_5_k(4, [0.1 * i - 1 for i in range(21)]),
    "Q5_K": _q4_or_5_k(5, [0.1 * i - 0.5 for i in range(16)]), "Q6_K": _q6_k,
}  # fmt: skip

"""Packed rows → float32 by torch operations, where the library is not there. See blocks.h for the layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gencli.kernels import TYPES

IQ4 = torch.tensor([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=torch.float32)
MXFP4 = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=torch.float32)
BLOCKS = 2**16  # blocks unpacked at a time

# Of blocks (n, bytes): codes (n, chunks, weights of a chunk), scales (n, chunks or 1), mins or None.
Parts = tuple[Tensor, Tensor, Tensor | None]


def unpack(kind: str, rows: Tensor) -> Tensor:
    """Return packed rows (R, bytes) as float32 (R, columns), the very numbers of the library."""
    _, block, size = TYPES[kind]
    parts = [_values(kind, blocks) for blocks in rows.reshape(-1, size).split(BLOCKS)]
    return torch.cat(parts).reshape(len(rows), -1) if parts else torch.empty(len(rows), rows.shape[1] // size * block)


def _values(kind: str, blocks: Tensor) -> Tensor:
    codes, scales, mins = PARTS[kind](blocks)
    values = codes.float() * scales[..., None]
    return (values if mins is None else values - mins[..., None]).flatten(1)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The number of 16 bits at a byte, (n, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _fields(data: Tensor, shifts: Sequence[int], mask: int, width: int) -> Tensor:
    """Fields of bytes (n, b): those of each `width` bytes at the first shift, then at the next, … (n, b * shifts)."""
    wide = data.unflatten(1, (-1, 1, width)) >> torch.tensor(shifts, dtype=torch.uint8)[:, None]
    return (wide & mask).flatten(1)


def _nibbles(data: Tensor, width: int = 16) -> Tensor:
    return _fields(data, (0, 4), 15, width)


def _fifth(data: Tensor) -> Tensor:
    """32 bits → bytes of 0 or 16."""
    return (data[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1) << 4


def _simple(codes_at: int, *, offset: int = 0, minimum: bool = False, fifth: int = 0) -> Callable[[Tensor], Parts]:
    def parts(blocks: Tensor) -> Parts:
        codes = _nibbles(blocks[:, codes_at:])
        if fifth:
            codes = codes | _fifth(blocks[:, fifth : fifth + 4])
        return (codes.char() - offset)[:, None], _half(blocks, 0), -_half(blocks, 2) if minimum else None

    return parts


def _q8_0(blocks: Tensor) -> Parts:
    return blocks[:, 2:].view(torch.int8)[:, None], _half(blocks, 0), None


def _iq4_nl(blocks: Tensor) -> Parts:
    return IQ4[_nibbles(blocks[:, 2:]).int()][:, None], _half(blocks, 0), None


def _mxfp4(blocks: Tensor) -> Parts:
    e = blocks[:, :1].int()
    scales = torch.where(e < 2, 0x00200000 << e.clamp(max=1), (e - 1).clamp(min=0) << 23).view(torch.float32)
    return MXFP4[_nibbles(blocks[:, 1:]).int()][:, None], scales, None


def _q2_k(blocks: Tensor) -> Parts:
    codes = _fields(blocks[:, 16:80], (0, 2, 4, 6), 3, 32).unflatten(1, (16, 16))
    scales, mins = blocks[:, :16] & 15, blocks[:, :16] >> 4
    return codes, _half(blocks, 80) * scales, _half(blocks, 82) * mins


def _q3_k(blocks: Tensor) -> Parts:
    high = _fields(blocks[:, :32], range(8), 1, 32)
    codes = _fields(blocks[:, 32:96], (0, 2, 4, 6), 3, 32).char() + (high << 2).char() - 4
    scales = _nibbles(blocks[:, 96:104], 8) | _fields(blocks[:, 104:108], (0, 2, 4, 6), 3, 4) << 4
    return codes.unflatten(1, (16, 16)), _half(blocks, 108) * (scales.char() - 32), None


def _six_bits(data: Tensor) -> tuple[Tensor, Tensor]:
    """8 scales and 8 mins in 12 bytes."""
    first, mins, last = data.split(4, 1)
    scales = torch.cat((first & 63, last & 15 | first >> 6 << 4), 1)
    return scales, torch.cat((mins & 63, last >> 4 | mins >> 6 << 4), 1)


def _q4_k(blocks: Tensor) -> Parts:
    scales, mins = _six_bits(blocks[:, 4:16])
    return _nibbles(blocks[:, 16:], 32).unflatten(1, (8, 32)), _half(blocks, 0) * scales, _half(blocks, 2) * mins


def _q5_k(blocks: Tensor) -> Parts:
    scales, mins = _six_bits(blocks[:, 4:16])
    codes = _nibbles(blocks[:, 48:], 32) | _fields(blocks[:, 16:48], range(8), 1, 32) << 4
    return codes.unflatten(1, (8, 32)), _half(blocks, 0) * scales, _half(blocks, 2) * mins


def _q6_k(blocks: Tensor) -> Parts:
    codes = _nibbles(blocks[:, :128], 64) | _fields(blocks[:, 128:192], (0, 2, 4, 6), 3, 32) << 4
    return (codes.char() - 32).unflatten(1, (16, 16)), _half(blocks, 208) * blocks[:, 192:208].view(torch.int8), None


def _iq4_xs(blocks: Tensor) -> Parts:
    high = _fields(blocks[:, 2:4], (0, 2, 4, 6), 3, 1)
    scales = (_nibbles(blocks[:, 4:8], 1) | high << 4).char() - 32
    return IQ4[_nibbles(blocks[:, 8:]).int()].unflatten(1, (8, 32)), _half(blocks, 0) * scales, None


PARTS: dict[str, Callable[[Tensor], Parts]] = {
    "Q4_0": _simple(2, offset=8), "Q4_1": _simple(4, minimum=True), "Q5_0": _simple(6, offset=16, fifth=2),
    "Q5_1": _simple(8, minimum=True, fifth=4), "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k,
    "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4,
}  # fmt: skip

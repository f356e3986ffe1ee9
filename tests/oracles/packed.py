"""Packed rows for tests: random codes with scales of ordinary size."""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from gencli.kernels import PACKED, TYPES

# where a block has its numbers of 16 bits; the others have one at its beginning
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2),
          "Q6_K": (208,), "MXFP4": ()}  # fmt: skip


def random_rows(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Packed rows (rows, bytes), uint8."""
    rng = np.random.default_rng(seed)
    _, block, size = TYPES[kind]
    if kind not in PACKED:
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        return np.ascontiguousarray(values if kind == "F32" else gguf.quants.quantize(values, Type[kind])).view(
            np.uint8
        )
    blocks = rng.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    for at in HALVES.get(kind, (0,)):
        scales = rng.uniform(0.001, 0.02, (*blocks.shape[:2], 1)).astype(np.float16)
        blocks[..., at : at + 2] = scales.view(np.uint8)
    if kind == "MXFP4":
        blocks[..., 0] = rng.integers(118, 124, blocks.shape[:2])
    return blocks.reshape(rows, -1)

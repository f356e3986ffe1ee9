"""Products with weights as files hold them, and steps of decoders, by a small C library (see kernels.h). No torch here.

The library is compiled when gencli is installed and a C compiler is there (`build`); without it everything runs by
torch operations. It chooses its variant by what the CPU has, and works on the threads of torch's own OpenMP pool.
`GENCLI_KERNELS` names another variant (plain, avx2, avx512, neon, dotprod), or is `off`.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
from pathlib import Path

from gencli.errors import UsageError

INTERFACE = 11  # as kernels.h says it

# GGUF's names → its numbers, weights in a block, bytes of a block. No other types have kernels.
TYPES: dict[str, tuple[int, int, int]] = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "IQ4_NL": (20, 32, 18),
    "IQ4_XS": (23, 256, 136), "MXFP4": (39, 32, 17),
}  # fmt: skip
PACKED = tuple(name for name, (_, block, _) in TYPES.items() if block > 1)


class Weights(ctypes.Structure):
    """A matrix for the library: `Weights` of kernels.h. Whoever makes one keeps the memory that it points to."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("rows", ctypes.c_int64), ("columns", ctypes.c_int64), ("stride", ctypes.c_int64),
        ("order", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("type", ctypes.c_int32), ("sideways", ctypes.c_int32),
    )  # fmt: skip


class Norm(ctypes.Structure):
    """`Norm` of kernels.h."""

    _fields_ = (
        ("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("size", ctypes.c_int32), ("centred", ctypes.c_int32),
        ("eps", ctypes.c_float),
    )  # fmt: skip


class LayerInput(ctypes.Structure):
    """`LayerInput` of kernels.h."""

    _fields_ = (("gate", ctypes.POINTER(Weights)), ("projection", ctypes.POINTER(Weights)), ("after", Norm))


class Delta(ctypes.Structure):
    """`Delta` of kernels.h."""

    _fields_ = (
        ("z", ctypes.POINTER(Weights)), ("b", ctypes.POINTER(Weights)), ("a", ctypes.POINTER(Weights)),
        ("convolution", ctypes.c_void_p), ("decay", ctypes.c_void_p), ("dt_bias", ctypes.c_void_p), ("norm", Norm),
        *((name, ctypes.c_int32) for name in ("heads", "key_heads", "key", "value", "taps", "in_turns")),
    )  # fmt: skip


class Layer(ctypes.Structure):
    """`Layer` of kernels.h."""

    _fields_ = (
        ("qkv", ctypes.POINTER(Weights) * 3), ("o", ctypes.POINTER(Weights)),
        ("gate_up", ctypes.POINTER(Weights) * 2), ("down", ctypes.POINTER(Weights)),
        ("router", ctypes.POINTER(Weights)), ("experts", ctypes.c_void_p),
        ("count", ctypes.c_int32), ("chosen", ctypes.c_int32), ("normalised", ctypes.c_int32),
        ("before_attention", Norm), ("after_attention", Norm), ("before_mlp", Norm), ("after_mlp", Norm),
        ("q_norm", Norm), ("k_norm", Norm),
        ("heads", ctypes.c_int32), ("kv_heads", ctypes.c_int32), ("head_size", ctypes.c_int32),
        ("rotated", ctypes.c_int32), ("hidden", ctypes.c_int32), ("inner", ctypes.c_int32), ("window", ctypes.c_int32),
        ("activation", ctypes.c_int32), ("gated", ctypes.c_int32),
        ("scale", ctypes.c_float), ("softcap", ctypes.c_float),
        ("alpha", ctypes.c_float), ("limit", ctypes.c_float), ("sinks", ctypes.c_void_p),
        ("v_norm", Norm), ("before_router", Norm), ("after_network", Norm),
        ("expert_scales", ctypes.c_void_p), ("output_scale", ctypes.c_void_p),
        ("input", ctypes.POINTER(LayerInput)), ("beside", ctypes.c_void_p), ("reuses", ctypes.c_int32),
        ("head_gates", ctypes.c_int32), ("share", ctypes.POINTER(Weights)), ("delta", ctypes.POINTER(Delta)),
    )  # fmt: skip


class Inputs(ctypes.Structure):
    """`Inputs` of kernels.h."""

    _fields_ = (
        ("embedding", ctypes.POINTER(Weights)), ("projection", ctypes.POINTER(Weights)), ("norm", Norm),
        ("size", ctypes.c_int32), ("scale", ctypes.c_float), ("by", ctypes.c_float),
    )  # fmt: skip


class Model(ctypes.Structure):
    """`Model` of kernels.h."""

    _fields_ = (
        ("layers", ctypes.c_void_p), ("count", ctypes.c_int64), ("embedding", ctypes.POINTER(Weights)),
        ("positions", ctypes.POINTER(Weights)), ("head", ctypes.POINTER(Weights)), ("norm", Norm),
        ("scale", ctypes.c_float), ("inputs", ctypes.POINTER(Inputs)),
    )  # fmt: skip


class Place(ctypes.Structure):
    """`Place` of kernels.h: numbers, and addresses."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("texts", "new", "capacity", "last", "window_step", "state_step")),
        *((name, ctypes.c_void_p) for name in ("ids", "lengths", "keys", "values", "cos", "sin")),
        *((name, ctypes.c_void_p) for name in ("x", "logits", "memory")),
    )


class Library:
    """The open library. variant: the name of the one in use, which is that of whoever opened the file last. variants:
    those that this CPU runs, best first.

    product(weights, x, positions, y, threads), dequantise(weights, first, last, to, threads), pack(type, x, rows,
    columns, to, stride, threads), step(model, place), sample(logits, size, top_k, temperature, top_p,
    min_p, draw) → id, candidates(… min_p, ids, masses) → their number: see kernels.c, step.c and sample.c; pointers are
    addresses, and threads 0 are those of the pool.
    """

    def __init__(self, path: Path, variant: str = ""):
        """Raise OSError for a file that cannot be opened or has another version, UsageError for an unknown variant."""
        library = ctypes.CDLL(str(path))
        try:
            interface = library.gencli_interface()
        except AttributeError:
            interface = 0
        if interface != INTERFACE:
            raise OSError(f"{path} has interface {interface}, not {INTERFACE}")
        library.gencli_variant.restype = ctypes.c_char_p
        names = itertools.takewhile(lambda name: name is not None, map(library.gencli_variant, itertools.count()))
        numbers = {name.decode(): i for i, name in enumerate(names) if name}
        self.variants = tuple(numbers)
        self.variant = variant or self.variants[0]
        if self.variant not in numbers:
            raise UsageError(f"GENCLI_KERNELS={variant[:40]!r}: this CPU runs {', '.join(numbers)}; or off")
        library.gencli_choose(numbers[self.variant])
        self._pool = _openmp()
        if self._pool is not None:
            library.gencli_set_parallel(self._pool.GOMP_parallel, self._pool.omp_get_num_threads)
        pointer, number, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint
        self.product = library.gencli_product
        self.product.argtypes = (pointer, pointer, number, pointer, count)
        self.dequantise = library.gencli_dequantise
        self.dequantise.argtypes = (pointer, number, number, pointer, count)
        self.dequantise.restype = None
        self.pack = library.gencli_pack
        self.pack.argtypes = (ctypes.c_int, pointer, number, number, pointer, number, count)
        self.step = library.gencli_step
        self.step.argtypes = (pointer, pointer)
        self.sample = library.gencli_sample
        self.sample.argtypes = (pointer, number, number, ctypes.c_float, *3 * (ctypes.c_double,))
        self.sample.restype = number
        self.candidates = library.gencli_candidates
        self.candidates.argtypes = (*self.sample.argtypes[:-1], pointer, pointer)
        self.candidates.restype = number


@functools.cache
def library() -> Library | None:
    """Return the library, or None where it was not compiled, cannot be opened or is switched off."""
    wanted = os.environ.get("GENCLI_KERNELS", "")
    if wanted == "off" or sys.byteorder != "little":
        return None
    try:
        from gencli.kernels import build  # here, so that it also runs as a program

        return Library(build.HERE / build.NAME, wanted)
    except OSError:
        return None


def _openmp() -> ctypes.CDLL | None:
    """The library of torch, which finds the OpenMP that it is linked to: one pool of threads. None without one."""
    import torch

    for path in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:
            pool = ctypes.CDLL(str(path))
            pool.GOMP_parallel, pool.omp_get_num_threads  # noqa: B018
            return pool
        except (OSError, AttributeError):
            continue
    return None

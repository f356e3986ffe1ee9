"""Hostile bytes through the kernels, compiled with the address and undefined-behaviour sanitizers.

`python -m tests.oracles.fuzz_kernels [INPUTS [SEED]]`: prints how many inputs ran, or ends with the sanitizer's report.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from gencli.kernels import MOST, PACKED, TYPES, Library, Weights, build

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g1", "-shared-libasan")
C = ctypes.CDLL(None)
C.malloc.restype, C.malloc.argtypes, C.free.argtypes = ctypes.c_void_p, (ctypes.c_size_t,), (ctypes.c_void_p,)


def memory(content: bytes) -> int:
    """A block of the C library's, which the sanitizer watches to the byte: what is read beyond it ends the process."""
    address = C.malloc(max(len(content), 1))
    ctypes.memmove(address, content, len(content))
    return address


def fuzz(library: Library, inputs: int, seed: int) -> int:
    """Multiply and dequantise random bytes. Returns how many inputs there were."""
    rng = np.random.default_rng(seed)
    names = tuple(TYPES)
    for _ in range(inputs):
        kind = names[rng.integers(len(names))]
        number, block, size = TYPES[kind]
        rows, columns = int(rng.integers(1, 5)), block * int(rng.integers(1, 4 if block == 256 else 12))
        sideways = int(kind not in PACKED and rng.integers(2))
        shift = int(rng.integers(16)) if kind in PACKED else 0  # files pack rows at any address
        stride = columns // block * size
        content = rng.integers(0, 256, shift + rows * stride, dtype=np.uint8).tobytes()
        positions = int(rng.integers(1, MOST + 1))
        ins, outs = (rows, columns) if sideways else (columns, rows)
        x = rng.integers(0, 2**32, positions * ins, dtype=np.uint32).tobytes()  # NaN, infinite, and all others
        order = memory(rng.permutation(rows).astype(np.int32).tobytes()) if not sideways and rng.integers(2) else None
        bias = memory(np.zeros(outs, np.float32).tobytes()) if rng.integers(2) else None
        data, x_at, y_at = memory(content), memory(x), memory(bytes(4 * positions * outs))
        w = Weights(data + shift, rows, columns, stride, order, bias, number, sideways)
        assert library.product(ctypes.addressof(w), x_at, positions, y_at, 0) == 0
        out = memory(bytes(4 * rows * columns))
        library.dequantise(ctypes.addressof(w), 0, rows, out, 0)
        for address in (order, bias, data, x_at, y_at, out):
            C.free(address)
    return inputs


def main(inputs: int, seed: int) -> None:
    """Compile, and run every variant in a process with the sanitizer's library loaded first."""
    if file := os.environ.get("FUZZ_LIBRARY"):
        names = Library(Path(file)).variants
        print(sum(fuzz(Library(Path(file), name), inputs // len(names) + 1, seed) for name in names), "inputs")
        return
    with tempfile.TemporaryDirectory() as folder:
        flags = [flag for flag in FLAGS if flag != "-shared-libasan" or "clang" in build.compiler()[0]]
        file = build.build(Path(folder) / build.NAME, flags=flags)
        ask = [[*build.compiler(), f"-print-file-name={name}"] for name in ("libasan.so", "libubsan.so")]
        asked = [subprocess.run(command, capture_output=True, text=True, check=True) for command in ask]
        environment = {
            "LD_PRELOAD": " ".join(one.stdout.strip() for one in asked), "FUZZ_LIBRARY": str(file),
            "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.oracles.fuzz_kernels", str(inputs), str(seed)]
        done = subprocess.run(command, env={**os.environ, **environment}, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, int(sys.argv[2]) if len(sys.argv) > 2 else 0)

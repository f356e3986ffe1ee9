"""The kernels' variants that this machine lacks, run by emulators: NEON with and without dot products (unicorn), and
AVX-512 (Bochs; its CPU lacks VNNI, whose two instructions stay the header's). The tests of the kernels run on them, and
the sources are compiled for other systems.

On x86-64 Linux: `pip install ziglang unicorn bochscpu-python`, `python -m tests.oracles.other_cpus [PYTEST'S OPTIONS]`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gencli.kernels import TYPES, Library, Weights, build
from tests.oracles.variants import ELSEWHERE, compiled

ZIG = (sys.executable, "-m", "ziglang", "cc")
TARGETS = {"aarch64-linux-gnu.2.28": "aarch64", "aarch64-linux-musl": "aarch64", "aarch64-macos": "aarch64",
           "x86_64-macos": "x86_64"}  # fmt: skip
ARM = {**build.VARIANTS["aarch64"], "dotprod": ("simd_neon.h", ("-mcpu=generic+v8_2a+dotprod",))}  # as zig writes it
AVX512 = {"avx512": ("simd_avx2.h", ("-mavx512f", "-mavx512vl", "-mavx512bw", *ELSEWHERE["avx512"][1]))}
TESTS = ("tests/unit/test_kernels.py", "tests/unit/test_step.py")
NAMES = "whole_numbers or every_half or products or rows_are or packs or packed or no_number or logits_are"


class Elsewhere:
    """A `Library` whose functions run on another CPU. call(name, arguments) → the result."""

    def __init__(self, variant: str, call: Callable[..., int]):
        self.variant, self.variants = variant, (variant,)
        self.product, self.pack, self.step = (
            lambda *given, name=name: ctypes.c_int32(call(name, *map(_address, given))).value
            for name in ("gencli_product", "gencli_pack", "gencli_step")
        )
        self.call = call

    def dequantise(self, *given: Any) -> None:
        self.call("gencli_dequantise", *map(_address, given))


def _address(given: Any) -> int:
    """An argument as a number: the library's interface has addresses and integers."""
    return int(given or 0)


def libraries(machine: str) -> Iterator[Elsewhere]:
    """The variants on the emulated CPUs of a machine, aarch64 or x86_64; one at a time."""
    if machine == "aarch64":
        for name, cpu in (("neon", "cortex-a72"), ("dotprod", "max"), ("plain", "max")):
            yield Elsewhere(f"{name} on {cpu}", _arm(name, cpu))
    else:
        yield Elsewhere("avx512 by Bochs", _bochs())


@functools.cache
def _arm(name: str, cpu: str) -> Callable[..., int]:
    from tests.oracles.unicorn_arm import Arm

    cc = (*ZIG, "-target", "aarch64-linux-gnu.2.28")
    file = compiled("aarch64", ARM, cc=cc)
    machine = Arm(file, cpu)
    machine.call(machine.symbols["gencli_choose"], ["dotprod", "neon", "plain"].index(name))
    return lambda function, *given: machine.call(machine.symbols[function], *given)


@functools.cache
def _bochs() -> Callable[..., int]:
    from tests.oracles.bochs_x86 import Bochs

    file = compiled("x86_64", AVX512, flags=("-Wl,-z,now",))
    _warm(Library(file, "plain"))
    library, machine = ctypes.CDLL(str(file)), Bochs()
    library.gencli_set_parallel(None, None)
    library.gencli_choose(0)  # avx512, without asking this CPU for it
    return lambda function, *given: machine.call(ctypes.cast(library[function], ctypes.c_void_p).value or 0, *given)


def _warm(library: Library) -> None:
    """Let the library take its memory now: the emulated CPU takes it from the heap that the emulator itself uses, and
    neither may meet the other half-way."""
    columns, positions = 1 << 16, 128
    x = (ctypes.c_float * (columns * positions))()
    weights = Weights(ctypes.addressof(x), 0, columns, 0, None, None, TYPES["Q8_0"][0], 0)
    assert library.product(ctypes.addressof(weights), ctypes.addressof(x), positions, ctypes.addressof(x), 1) == 0


def compile_for_all() -> None:
    """Compile the sources for each system, with warnings for errors, and say which variants it has."""
    with tempfile.TemporaryDirectory() as folder:
        for target, machine in TARGETS.items():
            variants = ARM if machine == "aarch64" else build.VARIANTS.get(machine, {})
            file = build.build(
                Path(folder) / "library", cc=(*ZIG, "-target", target), variants=variants, flags=("-Werror", "-O0")
            )
            print(f"{target}: {', '.join((*variants, 'plain'))}, {file.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    compile_for_all()
    environment = {**os.environ, "GENCLI_OTHER_CPUS": "aarch64 x86_64"}
    command = [sys.executable, "-m", "pytest", "-q", *TESTS, "-k", NAMES, *sys.argv[1:]]
    sys.exit(subprocess.run(command, env=environment, check=False).returncode)

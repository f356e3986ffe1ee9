"""Compiling the kernels: run by the installation when there is a C compiler, or by `python -m gencli.kernels.build`.

Nothing here imports more of gencli, so that the build hook can load this file alone.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "kernels.shared"  # not .so, which Python takes for a module of its own
FLAGS = ("-std=c11", "-O2", "-ftree-vectorize", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
# machine → {variant: (its header, its flags)}, besides the plain one
VARIANTS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "x86_64": {
        "avx2": ("simd_avx2.h", AVX2),
        "avx512": ("simd_avx2.h", (*AVX2, "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512vnni")),
    },
    "aarch64": {"neon": ("simd_neon.h", ()), "dotprod": ("simd_neon.h", ("-march=armv8.2-a+dotprod",))},
}
VARIANTS["amd64"], VARIANTS["arm64"] = VARIANTS["x86_64"], VARIANTS["aarch64"]


class NoCompilerError(Exception):
    """There is no C compiler, or it cannot compile the kernels."""


def compiler() -> list[str]:
    """Return the command of the C compiler, `CC` or the first that is there. Raise NoCompilerError."""
    if chosen := os.environ.get("CC"):
        return shlex.split(chosen)
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise NoCompilerError("there is no C compiler (cc, gcc or clang)")


def build(
    to: Path = HERE / NAME,
    *,
    flags: Sequence[str] = (),
    cc: Sequence[str] = (),
    variants: Mapping[str, tuple[str, Sequence[str]]] | None = None,
) -> Path:
    """Compile the library `to`, whole or not at all, and return it. Raise NoCompilerError with the compiler's words.

    flags: more of them, for every file and the link. cc: the compiler. variants: rows as in VARIANTS; None: those of
    this machine.
    """
    command = [*(cc or compiler()), *FLAGS, *flags]
    if variants is None:
        variants = VARIANTS.get(platform.machine().lower(), {})
    with tempfile.TemporaryDirectory() as folder:
        have = [f"-DHAS_{name.upper()}" for name in variants]
        steps = [(Path(folder) / f"{name}.o", f"{name}.c", have) for name in ("kernels", "step", "sample")]
        for name, (header, more) in {"plain": ("simd_plain.h", ()), **variants}.items():
            defined = [f"-DVARIANT={name}", f'-DSIMD="{header}"', *(("-DPLAIN",) if name == "plain" else ())]
            steps.append((Path(folder) / f"{name}.o", "variant.c", [*more, *defined]))
        _run(*([*command, *more, "-c", str(HERE / file), "-o", str(made)] for made, file, more in steps))
        whole = to.with_name(f"{to.name}.{os.getpid()}")
        try:
            _run([*command, "-shared", *(str(made) for made, _, _ in steps), "-o", str(whole), "-lm"])
            os.replace(whole, to)
        finally:
            whole.unlink(missing_ok=True)
    return to


def _run(*commands: Sequence[str]) -> None:
    """Run commands at the same time. Raise NoCompilerError for the first that fails, in its own words."""
    try:
        running = [subprocess.Popen(list(command), stderr=subprocess.PIPE, text=True) for command in commands]
    except OSError as error:
        raise NoCompilerError(f"{commands[0][0]} does not run: {error.strerror or error}") from None
    said = [one.communicate()[1].strip() for one in running]
    for command, one, words in zip(commands, running, said, strict=True):
        if one.returncode:
            raise NoCompilerError(f"{shlex.join(command)} failed: {words[-2000:]}")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build()}\n")
    except NoCompilerError as error:
        sys.exit(f"error: {error}")

"""The kernels' library in every variant: what this machine can run, and the others with their intrinsics in plain C
(`emulated/`), whose lines are so compiled and run on any x86-64 machine. `other_cpus` runs their instructions."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gencli.kernels import Library, build

EMULATED = Path(__file__).parent / "emulated"
SOURCES = [*sorted(build.HERE.glob("*.[ch]")), build.HERE / "build.py"]
NEON = (f"-I{EMULATED}",)
# The kernels' lines once each, instead of once for every type and number of positions: a seventh of the compiling
NOT_INLINE = "-Dalways_inline=unused"
X86 = platform.machine().lower() in ("x86_64", "amd64")
# variant → (its header, its flags), for x86-64
ELSEWHERE = {
    "avx512": ("simd_avx2.h", (*build.AVX2, "-include", str(EMULATED / "vnni.h"))),
    "dotprod": ("simd_neon.h", (*NEON, "-D__ARM_FEATURE_DOTPROD")),
    "neon": ("simd_neon.h", NEON),
}


@functools.cache
def own_file() -> Path:
    """The library for this machine: a copy of the installed one if that is younger than its sources. Not that one
    itself, since what a test chooses in it would be the choice of all that runs later."""
    installed = build.HERE / build.NAME
    current = installed.is_file() and installed.stat().st_mtime >= max(file.stat().st_mtime for file in SOURCES)
    return compiled("own", None, installed=installed if current else None)


@functools.cache
def files() -> list[Path]:
    """The libraries that have all variants."""
    return [own_file(), *([compiled("emulated", ELSEWHERE, flags=("-O0", NOT_INLINE))] if X86 else [])]


def every_variant() -> Iterator[Library]:
    """Each variant in turn. A library's file has one in use: done with one, go on to the next."""
    done = set[str]()
    for file in files():
        for name in Library(file).variants:
            if name not in done:
                yield Library(file, name)
            done.add(name)
    for machine in os.environ.get("GENCLI_OTHER_CPUS", "").split():  # as `other_cpus` asks for
        from tests.oracles import other_cpus

        yield from other_cpus.libraries(machine)


def compiled(
    name: str,
    variants: Mapping[str, tuple[str, Sequence[str]]] | None,
    *,
    installed: Path | None = None,
    cc: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> Path:
    """Compile a library, or copy the installed one, once for all processes and runs with the same sources."""
    content = b"".join(file.read_bytes() for file in (*SOURCES, *sorted(EMULATED.glob("*.h"))))
    digest = hashlib.sha256(repr((variants, cc, flags)).encode() + content).hexdigest()[:16]
    file = EMULATED / "__pycache__" / f"{name}-{digest}.shared"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        if installed is None:
            build.build(file, variants=variants, cc=cc, flags=flags)
        else:
            part = file.with_suffix(f".{os.getpid()}")
            shutil.copy(installed, part)
            os.replace(part, file)
    return file

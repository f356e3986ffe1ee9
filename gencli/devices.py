"""Devices and dtypes by the names of the command line. Checking a name needs no torch."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gencli.errors import GencliError, UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
OTHER_DEVICES = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps", "apple": "mps"}
SHORT_DTYPES = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16", "fp16": "float16", "f16": "float16"}


def check_device(name: str, device: str) -> None:
    """Raise UsageError for an unknown device. name: the option's."""
    if device not in DEVICES and not re.fullmatch(r"cuda:\d{1,3}", device):
        hint = _meant(device, OTHER_DEVICES, DEVICES) or "auto, cpu, cuda, cuda:N or mps"
        raise UsageError(f"{name} {device!r}: no such device", hint)


def check_dtype(name: str, dtype: str) -> None:
    """Raise UsageError for an unknown dtype. name: the option's."""
    if dtype not in DTYPES:
        hint = _meant(dtype, SHORT_DTYPES, DTYPES) or ", ".join(DTYPES)
        raise UsageError(f"{name} {dtype!r}: no such precision", hint)


def check_names(device: str, dtype: str, threads: int | None) -> None:
    """Raise UsageError for an unknown device or dtype, and for an impossible number of threads."""
    check_device("--device", device)
    check_dtype("--dtype", dtype)
    if threads is not None and not 1 <= threads <= 4096:
        raise UsageError(f"--threads {threads}: must be from 1 to 4096")


def _meant(word: str, others: Mapping[str, str], known: Iterable[str]) -> str | None:
    """Return a hint for a word that others use, or that is a slip."""
    other = others.get(word.lower())
    return f"did you mean {other}?" if other else did_you_mean(word, known)


def pick_device(name: str) -> torch.device:
    """Return the torch device of a checked name; auto is the first available one of cuda, mps, cpu.

    Raise GencliError if this machine has no such device.
    """
    import torch

    cuda = torch.cuda.is_available()
    mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    if name.startswith("cuda"):
        number = int(name.partition(":")[2] or 0)
        if not cuda:
            raise GencliError(
                f"--device {name}: torch {torch.__version__} sees no CUDA device here", "try --device auto"
            )
        if number >= torch.cuda.device_count():
            raise GencliError(f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices, from 0 on")
    if name == "mps" and not mps:
        raise GencliError("--device mps: torch sees no Apple GPU here", "try --device auto")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device, stored: Iterable[str]) -> torch.dtype | None:
    """Return the dtype of a checked name, or None to keep the file's own.

    stored: the dtypes in the file as safetensors writes them (`F32`, `F16`, `BF16`). auto keeps the file's own, and a
    file of several becomes the widest of them. On a CPU it is float32, as few have fast arithmetic of half precision:
    bfloat16 stays where the CPU multiplies matrices of it (AMX). Of floats of 8 bits it is never their own: bfloat16 on
    other devices.
    """
    import torch

    if name != "auto":
        return getattr(torch, name)
    stored = set(stored)
    if any(kind.startswith("F8") for kind in stored):
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    floats = {kind for kind in stored if kind in ("F64", "F32", "F16", "BF16")}
    halves = {"BF16"} if device.type != "cpu" or has_amx() else set[str]()
    if floats <= {"F32"} or floats == halves or (floats == {"F16"} and device.type != "cpu"):
        return None
    return torch.float32


def has_amx() -> bool:
    import torch

    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def read_bandwidth(size: int = 2**28) -> float:
    """Return how many bytes per second the CPU's threads read from memory: the best of some sums over `size` bytes."""
    import time

    import torch

    numbers, best = torch.ones(size // 4), float("inf")
    for _ in range(6):
        start = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - start)
    return numbers.nbytes / best


def share(name: str, number: int) -> str:
    """Return the device of the `number`-th of several processes: where there are several GPUs and none is named, each
    takes the next."""
    import torch

    gpus = torch.cuda.device_count() if name in ("auto", "cuda") else 0
    return f"cuda:{number % gpus}" if gpus > 1 else name


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads; None leaves it to torch."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def memory() -> int:
    """Return this machine's memory in bytes, or what a container may take of it; 0 if the system does not say."""
    found = []
    try:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # Windows
        return 0
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(file).read_text()))
    return min(found)


def forget_peak_memory() -> None:
    """Let `peak_memory` begin anew, where the system can do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back_memory() -> None:
    """Give what has been let go of back to the system: CUDA's pool and the C library's keep it for later."""
    import ctypes

    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # where the C library has no such call
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory() -> int:
    """Return the peak memory of this process in bytes, mapped files included, or 0 if the system does not say."""
    try:  # Linux; getrusage counts the parent's in, as it was at the fork
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

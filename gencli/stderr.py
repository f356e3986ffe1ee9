"""What libraries in C and Rust write on stderr by themselves, which is no message of gencli's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """A context in which nothing reaches the process's stderr."""
    try:
        before = os.dup(2)
    except OSError:  # closed
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)

"""Where tests begin, and gencli without a process of its own for what needs none: torch is imported once for those."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gencli.__main__ import main
from tests.shell.process import environment, short_folder


@pytest.fixture
def run(capfdbinary, monkeypatch):
    """`run(*args, **environment)` in this process, as `process.gencli`; stdin is that of the tests."""

    def run(*args: object, **changes: str | None) -> subprocess.CompletedProcess:
        with monkeypatch.context() as patch:
            wanted = environment(**changes)
            for name in ("GENCLI_CLIP_MODEL", "GENCLI_IMAGE_MODEL", "HF_HUB_OFFLINE", "COLUMNS", "NO_COLOR"):
                patch.delenv(name, raising=False)
                if name in wanted:
                    patch.setenv(name, wanted[name])
            code = main([str(arg) for arg in args])
        out, err = capfdbinary.readouterr()
        return subprocess.CompletedProcess(args, code, out, err)

    return run


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Begin in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def inside(root, monkeypatch) -> None:
    """Begin in the folder that a file's fixture `root` has made."""
    monkeypatch.chdir(root)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for sockets, in the place of `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="gencli-", dir=short_folder()) as made:
        yield Path(made)

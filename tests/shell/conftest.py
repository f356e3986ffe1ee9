"""gencli without a process of its own, for what needs none: torch is imported once for all of those tests."""

from __future__ import annotations

import subprocess

import pytest

from gencli.__main__ import main
from tests.shell.process import environment


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

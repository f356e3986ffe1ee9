"""Completion as the shells themselves do it: gencli's script sourced in bash, zsh and fish, and a TAB typed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shell.process import LIMIT, ROOT, Terminal, environment, gencli

pytestmark = pytest.mark.slow

SHELLS = [name for name in ("bash", "zsh", "fish") if shutil.which(name)]
START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
PREPARE = {
    "bash": "bind 'set bell-style none'; bind 'set enable-bracketed-paste off'; source {script}",
    "zsh": "unsetopt beep zle_bracketed_paste; autoload -Uz compinit; compinit -u -D; source {script}",
    "fish": "source {script}",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with `gencli` in bin, a script of completion for each shell, and files to complete."""
    made = tmp_path_factory.mktemp("home")
    (made / "bin").mkdir()
    (made / "bin" / "gencli").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m gencli "$@"\n')
    (made / "bin" / "gencli").chmod(0o755)
    (made / "my-schema.json").write_text("{}")
    for shell in SHELLS:
        shown = gencli("--show-completion", shell)
        assert shown.returncode == 0
        (made / f"{shell}.script").write_bytes(shown.stdout)
    return made


def started(shell: str, home: Path) -> Terminal:
    """A shell at a terminal, in which gencli's script is sourced."""
    env = {**inside(home), "TERM": "xterm" if shell == "fish" else "dumb", "PS1": ""}
    there = Terminal.of(START[shell], home, env)
    there.type((PREPARE[shell].format(script=home / f"{shell}.script") + "; echo rea''dy\r").encode())
    there.wait_for(b"ready")
    return there


def inside(home: Path) -> dict[str, str]:
    paths = {"HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}", "XDG_CONFIG_HOME": str(home)}
    return environment(**paths, HF_HUB_CACHE=str(home / "none"))


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_offers(shell: str, home: Path):
    """Commands, options, models of the task, values behind `=`, and files where files go; with what they mean."""
    there = started(shell, home)
    try:
        for typed, shown in (
            ("gencli te\t", "xt "),
            ("gencli text --temper\t", "ature "),
            ("gencli text -m stor\t", "ies "),
            ("gencli image --sampler=dpmpp_2m_\t", "sde"),
            ("gencli text --schema my-sch\t", "ema.json "),
        ):
            there.type(typed.encode())
            there.wait_for(shown.encode())
            there.type(b"\x15")  # Ctrl-U removes the line
        there.type(b"gencli models \t\t")
        there.wait_for(b"available")
    finally:
        there.process.kill()
        there.ended()


@pytest.mark.parametrize("shell", [name for name in SHELLS if name == "fish"])
def test_it_shows_what_they_mean(shell: str, home: Path):
    script = f"source {home / 'fish.script'}; complete -C 'gencli te'; complete -C 'gencli image -m '"
    command = ["fish", "--no-config", "-c", script]
    done = subprocess.run(command, env=inside(home), capture_output=True, text=True, timeout=LIMIT)
    rows = dict(line.partition("\t")[::2] for line in done.stdout.splitlines())
    assert rows["text"].startswith("Continue a prompt") and rows["emoji"] and "stories" not in rows

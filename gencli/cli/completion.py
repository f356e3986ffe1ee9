"""Completion for shells: the script of each, and its installation. Imported when it is asked for."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path

from gencli.cli import tab
from gencli.cli.tab import SHELLS
from gencli.errors import UsageError, did_you_mean

ASKED = ("--install-completion", "--show-completion")
MENU = "zstyle ':completion:*' menu select"  # what typer adds to .zshrc, which changes completion of all programs


def named(words: list[str]) -> list[str]:
    """Return a command line in which the shell of --install-completion is named: the one that runs, unless given."""
    if words and words[0] in ASKED and (len(words) == 1 or words[1].startswith("-")):
        return [words[0], Path(os.environ.get("SHELL", "")).name or "bash", *words[1:]]
    return words


def _check(shell: str) -> None:
    if shell not in SHELLS:
        hint = did_you_mean(shell, SHELLS) or f"shells: {', '.join(SHELLS)}"
        raise UsageError(f"no completion for {shell!r}", hint)


def show(shell: str) -> str:
    """Return the script that makes a shell complete gencli's command line. Raise UsageError for an unknown shell."""
    _check(shell)
    from typer.completion import get_completion_script

    script: str = get_completion_script(prog_name="gencli", complete_var="_GENCLI_COMPLETE", shell=shell)
    return script


def install(shell: str) -> Path:
    """Install the script for a shell; return where it lies. Raise UsageError for an unknown shell."""
    _check(shell)
    from typer.completion import install as install_script

    file = Path.home() / (".zshrc" if shell == "zsh" else ".bashrc")
    before = file.read_text() if file.is_file() else ""
    _, path = install_script(shell=shell, prog_name="gencli", complete_var="_GENCLI_COMPLETE")
    if shell == "zsh" and MENU not in before:
        file.write_text(file.read_text().replace(MENU, "").rstrip() + "\n")
    elif shell == "bash" and str(path) in before:  # typer adds an empty line each time
        file.write_text(before)
    return Path(path)


def answer(complete: Callable[[], object]) -> None:
    """Answer a shell's question by the parser. complete: prints what fits, and exits."""
    tab.join_values()
    from typer import _completion_classes as classes

    if hasattr(classes, "_sanitize_help_text"):  # it imports much of rich for tags, which no text of gencli has
        classes._sanitize_help_text = lambda text: text
    found = io.StringIO()
    try:
        with contextlib.redirect_stdout(found):
            complete()
    finally:
        print(tab.behind_equals(found.getvalue()), end="")

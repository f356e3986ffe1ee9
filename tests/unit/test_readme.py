"""The README tells the truth: its help pages are the commands' own, its first two blocks are one line each."""

from __future__ import annotations

import re

import pytest

from benchmarks.update_readme import COMMANDS, README, help_page, section


@pytest.mark.parametrize("command", COMMANDS)
def test_help_pages_are_current(command: str) -> None:
    written = section(README.read_text(encoding="utf-8"), f"help:{command}")
    assert written == help_page(command), "run `python -m benchmarks.update_readme`"


def test_begins_with_two_commands_of_one_line() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert block.count("\n") == 1, "a block that a newcomer pastes is one line"
    assert "gencli text" in blocks[0] and "pytest" in blocks[1]


def test_every_example_uses_options_that_exist() -> None:
    text = README.read_text(encoding="utf-8")
    pages = {command: help_page(command) for command in COMMANDS}
    for command, rest in re.findall(r"gencli (text|image) ([^|>\n]*)", text):
        for option in re.findall(r"(?<![\w'\"-])(--?[a-zA-Z][\w-]*)", rest):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", pages[command]), (command, option)

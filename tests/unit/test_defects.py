"""Every defect that a newcomer met has a test that fails without its mending (defects.txt); some of these tests."""

from __future__ import annotations

import ast
import os
import pty
import re
import select
import sys
from pathlib import Path

import pytest

from gencli.__main__ import main
from gencli.cli.chat_terminal import WrappedSink

TESTS = Path(__file__).parents[1]
ROWS = re.split(r"\n(?=\S)", (TESTS / "defects.txt").read_text(encoding="utf-8").strip())


@pytest.mark.slow
def test_every_defect_has_a_test() -> None:
    numbers = []
    for row in ROWS:
        head, *names = row.splitlines()
        numbers.append(int(head.split()[0].removeprefix("D")))
        assert names, head
        for name in map(str.strip, names):
            file, _, function = name.partition("::")
            tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
    assert numbers == list(range(1, 41))


@pytest.mark.slow
def test_words_and_sizes_that_a_model_never_saw_are_told(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    line = "image a spaceship ein Apfel --size 256x256 --steps 1 -s 1 -o a.png"
    assert main(line.split()) == 0
    notes = capsys.readouterr().err.splitlines()
    assert "note: emoji has not learned 'spaceship', 'ein', 'apfel'; " in notes[0]
    assert notes[1] == "note: emoji learned to draw at 128x128; 256x256 may fall apart"
    assert main(["image", "a", "red", "apple", "--steps", "1", "-s", "1", "-o", "b.png"]) == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat and a dog were talking", ["a cat and", "a dog were", "talking"]),
        ("one\n\ntwo three four", ["one", "", "two three", "four"]),
        ("abcdefghijklmnop qr", ["abcdefghij", "klmnop qr"]),
        ("\u4ece\u524d\u6709\u4e00\u4e2a\u5c0f", ["\u4ece\u524d\u6709\u4e00\u4e2a", "\u5c0f"]),
    ],
)
def test_a_reply_breaks_between_words(monkeypatch, text: str, shown: list[str]) -> None:
    """On a terminal of ten columns, however the text comes in pieces; scripts without spaces break anywhere."""
    for size in (1, 3, 100):
        master, slave = pty.openpty()
        with os.fdopen(slave, "w") as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            sink = WrappedSink(lambda: 10)
            for at in range(0, len(text), size):
                sink.write(text[at : at + size])
            sink.end()
            stream.flush()
            seen = b""
            while select.select([master], [], [], 0.1)[0]:
                seen += os.read(master, 1 << 16)
        os.close(master)
        assert seen.decode().replace("\r", "").removesuffix("\n").split("\n") == shown

"""Weights in a prompt, as users of AUTOMATIC1111's web UI write them. No torch in here.

`(word)` weighs 1.1, `((word))` 1.21, `[word]` 1 / 1.1, `(word:1.3)` 1.3; `\\(` is a bracket of the text's own; BREAK
ends a chunk (see `weighted`).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gencli.errors import GencliError

STRONGER = 1.1  # what a bracket without a number multiplies by, or divides by if it is square
DEPTH = 100  # brackets in brackets

SYNTAX = re.compile(
    r"\\(?P<escaped>[\\()\[\]]?)"  # a backslash before anything else goes away
    r"|(?P<opens>[(\[])"
    r"|:\s*(?P<weight>[+-]?[.\d]+)\s*\)"
    r"|(?P<closes>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|:)"
)
BREAK = re.compile(r"\bBREAK\b")
EDITING = re.compile(r"\||:\s*[.\d]+\s*\Z")  # in square brackets: [from:to:when], [one|other]
EXTRA = re.compile(r"<(lora|lyco|hypernet):([^:>]{1,80})")


@dataclass
class Piece:
    """A stretch of text and its weight; text None: BREAK."""

    text: str | None
    weight: float = 1.0


def parse(prompt: str) -> list[Piece]:
    """The weights that brackets give. A bracket without its partner counts to the end, or is text.

    Raises GencliError for a weight that is no number, and for what the web UI reads and gencli does not: prompts that
    change on the way, `AND`, `<lora:…>`.
    """
    _refuse_extras(prompt)
    pieces: list[Piece] = []
    opened: dict[str, list[tuple[int, int]]] = {"(": [], "[": []}  # (piece, character) that follows each bracket
    for found in SYNTAX.finditer(prompt):
        kind = found.lastgroup or ""
        value = found[kind]
        bracket = {")": "(", "]": "["}.get(value, "(")
        if kind == "opens":
            opened[value].append((len(pieces), found.end()))
            if len(opened[value]) > DEPTH:
                raise GencliError(f"the prompt has more than {DEPTH} brackets in one another: {prompt[:40]!r}…")
        elif kind in ("weight", "closes") and opened[bracket]:
            piece, character = opened[bracket].pop()
            if bracket == "[":
                _refuse_editing(prompt[character : found.start()])
            by = _number(value) if kind == "weight" else STRONGER if bracket == "(" else 1 / STRONGER
            _multiply(pieces[piece:], by)
        elif kind == "escaped":
            pieces.append(Piece(value))
        else:
            pieces += _split(found[0])
    for bracket, by in (("(", STRONGER), ("[", 1 / STRONGER)):
        for piece, _ in opened[bracket]:
            _multiply(pieces[piece:], by)
    return _merge(pieces)


def _multiply(pieces: Sequence[Piece], by: float) -> None:
    for piece in pieces:
        piece.weight *= by


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise GencliError(f"the prompt's weight {text[:40]!r} is no number") from None


def _split(text: str) -> Iterator[Piece]:
    """Text at its BREAKs, without the blanks around them."""
    parts = BREAK.split(text)
    for i, part in enumerate(parts):
        if i:
            yield Piece(None)
            part = part.lstrip()
        yield Piece(part if i == len(parts) - 1 else part.rstrip())


def _merge(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one weight as one, since words may go over from one to the other."""
    if any(not math.isfinite(piece.weight) for piece in pieces):
        raise GencliError("the prompt's weights are too large")
    merged: list[Piece] = []
    for (is_break, weight), same in itertools.groupby(pieces, lambda piece: (piece.text is None, piece.weight)):
        if is_break:
            merged += same
        else:
            merged.append(Piece("".join(piece.text or "" for piece in same), weight))
    return merged


def _refuse_extras(prompt: str) -> None:
    if found := EXTRA.search(prompt):
        hint = "load it with --lora FILE:SCALE, and leave that out of the prompt" if found[1] != "hypernet" else None
        raise GencliError(f"{found[0]!r} in a prompt is not supported", hint)
    if re.search(r"\bAND\b", prompt):
        raise GencliError("AND between prompts is not supported with --weighted", "as a word, write it `and`")


def _refuse_editing(inside: str) -> None:
    if EDITING.search(inside):
        raise GencliError(
            f"{f'[{inside[:40]}]'!r}: prompts that change from step to step are not supported",
            r"brackets of the text's own are written \[ and \]",
        )

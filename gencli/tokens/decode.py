"""Token pieces → text, token by token, whole characters only.

A tokenizer.json describes its decoder as a chain of steps over the list of all pieces. Here each step takes one piece
at a time and holds back only what a later piece can still change, so that the parts joined are the whole text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Protocol

from gencli.errors import GencliError
from gencli.tokens.growth import Rule


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable characters of the bytes: the byte itself, or the next free one from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_alphabet()
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte in SentencePiece
# How text of WordPiece is cleaned up, in this order
CLEANED = [(f" {mark}", mark) for mark in ".?!,"] + [(" ' ", "'"), (" n't", "n't"), (" 'm", "'m")]
CLEANED += [(" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")]


def byte_level_bytes(piece: str) -> bytes:
    """Return the bytes of a byte-level piece; of one with any other character (an added token) those of its text."""
    try:
        return bytes([BYTE_OF[char] for char in piece])
    except KeyError:
        return piece.encode()


class Step(Protocol):
    """A step of a decoder. `push` takes a piece and returns what is final; `finish` returns the rest."""

    def push(self, piece: str) -> list[str]: ...
    def finish(self) -> list[str]: ...


class Each:
    """Change each piece by `change(piece, first)`, where `first` says whether it is the first one."""

    def __init__(self, change: Callable[[str, bool], str]):
        self.change = change
        self.first = True

    def push(self, piece: str) -> list[str]:
        changed = self.change(piece, self.first)
        self.first = False
        return [changed]

    def finish(self) -> list[str]:
        return []


class ByteLevel:
    """Byte-level pieces → UTF-8. Invalid bytes become U+FFFD as soon as they are known to be invalid."""

    def __init__(self, suffix: str = ""):
        self.suffix = suffix  # CLIP's mark at the end of a word, which becomes a space
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, piece: str) -> list[str]:
        return [self.utf8.decode(self.bytes_of(piece))]

    def bytes_of(self, piece: str) -> bytes:
        if self.suffix and piece.endswith(self.suffix):
            return byte_level_bytes(piece.removesuffix(self.suffix)) + b" "
        return byte_level_bytes(piece)

    def finish(self) -> list[str]:
        return [self.utf8.decode(b"", final=True)]


class ByteFallback:
    """Runs of `<0xE4>` pieces → UTF-8, or one U+FFFD per piece if the run as a whole is invalid (so runs are held)."""

    def __init__(self) -> None:
        self.run = bytearray()

    def push(self, piece: str) -> list[str]:
        if match := BYTE_PIECE.fullmatch(piece):
            self.run.append(int(match[1], 16))
            return []
        return [*self.finish(), piece]

    def finish(self) -> list[str]:
        run = bytes(self.run)
        self.run.clear()
        try:
            return [run.decode()] if run else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)


class StripWhole:
    """Strip up to `start` and `stop` characters for which `strips` is true from the ends of the whole text."""

    def __init__(self, strips: Callable[[str], bool], start: float, stop: float):
        self.strips = strips
        self.start, self.stop = start, stop
        self.held = ""

    def push(self, piece: str) -> list[str]:
        text = self.held + piece
        while text and self.start and self.strips(text[0]):
            text = text[1:]
            self.start -= 1
        if text:
            self.start = 0  # the beginning is over
        end = len(text)
        while end and len(text) - end < self.stop and self.strips(text[end - 1]):
            end -= 1
        self.held = text[end:]
        return [text[:end]]

    def finish(self) -> list[str]:
        return []


class IncrementalDecoder:
    """Turns token ids into text as they come. Push every token of a sequence once, then call `finish`."""

    def __init__(self, piece_of: Callable[[int], str | None], steps: list[Step]):
        """piece_of: token id → piece, or None for a token that is not shown."""
        self._piece_of = piece_of
        self._steps = steps

    def push(self, token: int) -> str:
        """Return the text that this token makes final, in whole characters; it may be empty.

        Raises GencliError for an id that the vocabulary does not have.
        """
        piece = self._piece_of(token)
        return "" if piece is None else "".join(self._run([piece], 0))

    def finish(self) -> str:
        """Return what is still held back; bytes that are no character become U+FFFD."""
        text = ""
        for i, step in enumerate(self._steps):
            text += "".join(self._run(step.finish(), i + 1))
        return text

    def _run(self, pieces: list[str], start: int) -> list[str]:
        for step in self._steps[start:]:
            pieces = [out for piece in pieces for out in step.push(piece)]
        return pieces


def middle_bytes(piece: str, steps: list[Step]) -> bytes:
    """Return the bytes that a piece adds inside a text. steps: of the decoder; they stay as they are."""
    for step in steps:
        if isinstance(step, ByteLevel):
            return step.bytes_of(piece)
        if isinstance(step, ByteFallback) and (match := BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        if isinstance(step, Each):
            piece = step.change(piece, False)
    return piece.encode()


def make_steps(decoder: Rule | None, word_suffix: str = "") -> list[Step]:
    """Make the steps of a decoder of tokenizer.json.

    word_suffix: CLIP's `</w>`; such text is also stripped at both ends. Raises GencliError for an unknown step.
    """
    if decoder is None:
        return [Each(lambda piece, first: piece if first else " " + piece)]
    rows = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    steps: list[Step] = []
    whole = False  # whether the pieces are one text by now
    for row in rows:
        kind = row["type"]
        if kind == "Fuse" or (kind == "ByteLevel" and not whole):
            steps += [ByteLevel(word_suffix)] if kind == "ByteLevel" else []
            whole = True
        elif kind == "Strip" and whole:
            steps.append(StripWhole(row["content"].__eq__, row["start"], row["stop"]))
        elif kind in EACH and not whole:
            steps.append(Each(EACH[kind](row)))
        elif kind == "ByteFallback" and not whole:
            steps.append(ByteFallback())
        else:
            raise GencliError(f"the tokenizer's decoder {kind!r} is not supported{' at its place' if whole else ''}")
    if word_suffix:
        steps.append(StripWhole(str.isspace, float("inf"), float("inf")))
    return steps


def _replace(row: Rule) -> Callable[[str, bool], str]:
    if "String" not in row["pattern"]:
        raise GencliError("the tokenizer's decoder 'Replace' with a regular expression is not supported")
    old, new = row["pattern"]["String"], row["content"]
    return lambda piece, first: piece.replace(old, new)


def _metaspace(row: Rule) -> Callable[[str, bool], str]:
    mark, keeps_first = row["replacement"], row["prepend_scheme"] == "never"
    return lambda piece, first: piece.replace(mark, "" if first and not keeps_first else " ")


def _word_piece(row: Rule) -> Callable[[str, bool], str]:
    prefix = row["prefix"]

    def change(piece: str, first: bool) -> str:
        if not first:
            piece = piece.removeprefix(prefix) if piece.startswith(prefix) else " " + piece
        for old, new in CLEANED if row["cleanup"] else ():
            piece = piece.replace(old, new)
        return piece

    return change


def _strip(row: Rule) -> Callable[[str, bool], str]:
    def change(piece: str, first: bool) -> str:
        strip = StripWhole(row["content"].__eq__, row["start"], row["stop"])
        return strip.push(piece)[0]

    return change


EACH: dict[str, Callable[[Rule], Callable[[str, bool], str]]] = {
    "Replace": _replace,
    "Metaspace": _metaspace,
    "WordPiece": _word_piece,
    "Strip": _strip,
}

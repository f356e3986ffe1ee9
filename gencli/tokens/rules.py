"""What tokenizer.json says, in the words of the tokenizers library, which has checked it."""

from __future__ import annotations

from typing import TypedDict


class Pattern(TypedDict, total=False):
    """What is looked for: a text or a regular expression."""

    String: str
    Regex: str


class Rule(TypedDict, total=False):
    """A step of a normaliser or decoder, or of what splits words; `type` is its kind, which says what else it has."""

    type: str
    normalizers: list[Rule]
    pretokenizers: list[Rule]
    decoders: list[Rule]
    pattern: Pattern
    content: str
    prepend: str
    prepend_scheme: str
    precompiled_charsmap: str | None
    replacement: str
    prefix: str
    cleanup: bool
    start: int
    stop: int


class Model(TypedDict, total=False):
    """The model itself."""

    vocab: dict[str, int]
    ignore_merges: bool


class Whole(TypedDict):
    """All of the file that is read here."""

    model: Model
    normalizer: Rule | None
    pre_tokenizer: Rule | None

"""Bounds on what a tokenizer's rules make of a text: a few of them could make millions of characters out of one."""

from __future__ import annotations

import base64
import math
from typing import TypedDict

from tokenizers.normalizers import Normalizer

from gencli.errors import GencliError

GROWTH_LIMIT = 256  # characters that all rules together may make of one; those of real tokenizers reach about 100
REAL_GROWTH = 32  # the most that a real text grows
SAMPLE = 2**22  # characters that a sample of a text may become


class Rule(TypedDict, total=False):
    """A part of tokenizer.json, as the library writes it; of a step, `type` says what else it has."""

    type: str
    model: Rule
    vocab: dict[str, int]
    ignore_merges: bool
    normalizer: Rule | None
    pre_tokenizer: Rule | None
    normalizers: list[Rule]
    pretokenizers: list[Rule]
    decoders: list[Rule]
    pattern: Rule
    String: str
    content: str
    prepend: str
    prepend_scheme: str
    precompiled_charsmap: str | None
    replacement: str
    prefix: str
    cleanup: bool
    start: int
    stop: int


def growth(rules: Rule | None) -> float:
    """Return an upper bound on how many characters a normaliser or decoder, as tokenizer.json writes it, makes of one.

    Rules of Unicode's own (NFKC, lower case, …) count nothing: they grow a text by little, and once.
    """
    if not rules:
        return 1
    if rules["type"] == "Sequence":
        return math.prod(growth(rule) for rule in rules.get("normalizers") or rules.get("decoders") or ())
    if rules["type"] == "Replace":
        text, pattern = rules["content"], rules["pattern"].get("String")
        return max(1, len(text) / len(pattern)) if pattern else 1 + len(text)  # a regex may match between characters
    if rules["type"] == "Prepend":
        return 1 + len(rules["prepend"])
    if rules["type"] == "Precompiled":  # a trie, then what it leads to, each ended by a null byte
        table = base64.b64decode(rules["precompiled_charsmap"] or "")
        return max(1, *map(len, table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")))
    return 1


def check_growth(rules: Rule | None, where: str) -> float:
    """Return the growth of a normaliser or decoder. Raise GencliError when it is beyond any real one's."""
    bound = growth(rules)
    if bound > GROWTH_LIMIT:
        raise GencliError(f"{where}: the tokenizer's rules could make {bound:.3g} characters out of one")
    return bound


def check_text(normalizer: Normalizer, bound: float, text: str, where: str) -> None:
    """Raise GencliError when a normaliser with this bound on its growth makes far more of a text than a real one."""
    if bound > REAL_GROWTH:
        sample = text[: int(SAMPLE / bound)]
        if len(normalizer.normalize_str(sample)) > REAL_GROWTH * (len(sample) + 100):
            raise GencliError(f"{where}: the tokenizer's rules make too many characters of this text")

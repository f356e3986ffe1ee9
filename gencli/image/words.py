"""The words that a text-to-image checkpoint has learned, where it says them: words.txt beside its model_index.json.

A model of few words draws something for every prompt; this is how it says that a word means nothing to it. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

FILE = "words.txt"  # one word per line, in lower case
LIMIT = 2**22  # bytes of it that are read
WORD = re.compile(r"[^\W\d_]+")
ENDINGS = (("'s", ""), ("ies", "y"), ("es", ""), ("s", ""))
FILLERS = frozenset((
    "a", "about", "above", "all", "an", "and", "are", "art", "as", "at", "background", "be", "beautiful", "below",
    "beside", "by", "can", "clipart", "could", "cute", "draw", "drawing", "emoji", "for", "from", "give", "her",
    "his", "i", "icon", "image", "in", "is", "it", "its", "logo", "lot", "lovely", "make", "me", "my", "next", "of",
    "on", "one", "or", "our", "over", "painting", "photo", "picture", "please", "show", "some", "sticker", "that",
    "the", "their", "them", "these", "this", "three", "tiny", "to", "top", "two", "under", "want", "was", "we",
    "with", "you", "your",
))  # fmt: skip


def words_of(texts: Iterable[str]) -> list[str]:
    """Return the words of texts, in lower case and sorted."""
    return sorted({word for text in texts for word in WORD.findall(text.lower())})


def learned_words(folder: Path) -> frozenset[str]:
    """Return the words that the checkpoint in a folder has learned; none where it does not say."""
    try:
        with (folder / FILE).open("rb") as file:
            return frozenset(file.read(LIMIT).decode("utf-8").split())
    except (OSError, UnicodeDecodeError):
        return frozenset()


def unknown_words(prompt: str, learned: frozenset[str]) -> list[str]:
    """Return the words of a prompt that are not among those learned, nor their plurals, nor filler words, in order."""
    found = dict.fromkeys(WORD.findall(prompt.lower().replace("'s", "")))
    return [word for word in found if word not in FILLERS and not _forms(word) & learned]


def notes(name: str, folder: Path, prompt: str, size: tuple[int, int], own: tuple[int, int] | None) -> Iterator[str]:
    """Yield what a model of few words must say of a prompt, and of a size that it was not trained for. own: that of the
    model, (width, height)."""
    if not (learned := learned_words(folder)):
        return
    if unknown := unknown_words(prompt, learned):
        some = ", ".join(map(repr, unknown[:5])) + (", …" if unknown[5:] else "")
        yield f"{name} has not learned {some[:200]}; {FILE} in its folder lists its {len(learned)} words"
    if own is not None and size[0] * size[1] > 2 * own[0] * own[1]:
        yield f"{name} learned to draw at {own[0]}x{own[1]}; {size[0]}x{size[1]} may fall apart"


def _forms(word: str) -> set[str]:
    return {word, *(word[: -len(end)] + start for end, start in ENDINGS if word.endswith(end))}

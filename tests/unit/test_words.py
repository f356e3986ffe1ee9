"""What a checkpoint of few words says of a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from gencli.checkpoints.find import embedded_root
from gencli.image.words import FILE, learned_words, unknown_words, words_of

LEARNED = frozenset({"cat", "dog", "cherry", "glass", "red", "house"})


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("a red cat and the dogs", []),
        ("Please draw me a picture of my CAT's house!", []),
        ("two cherries, three glasses", []),
        ("a spaceship over a red Apfel, spaceship", ["spaceship", "apfel"]),
        ("日本の cat 2", ["日本の"]),
        ("", []),
    ],
)
def test_words_that_were_not_learned(prompt: str, unknown: list[str]) -> None:
    assert unknown_words(prompt, LEARNED) == unknown


def test_words_of_captions_are_read_back(tmp_path: Path) -> None:
    assert learned_words(tmp_path) == frozenset()
    (tmp_path / FILE).write_text("\n".join([*words_of(["Red cat", "cat's eye"]), ""]), encoding="utf-8")
    assert learned_words(tmp_path) == {"red", "cat", "s", "eye"}
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    assert learned_words(tmp_path) == frozenset()


def test_the_embedded_model_says_its_words() -> None:
    learned = learned_words(embedded_root() / "emoji")
    assert {"coffee", "moon", "apple", "red", "sock"} <= learned and "spaceship" not in learned and len(learned) > 3000

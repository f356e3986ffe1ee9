"""The tokenizers library with hostile files: patterns without an end, panics, texts longer than any context."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from gencli.errors import GencliError
from gencli.tokens import guard, load_tokenizer
from tests.tiny.text import make_tokenizer

HOSTILE = {
    "exponential": r"(a+)+$|b",
    "exponential by alternatives": r"(a|aa)+$|b",
    "cubic": r"a*a*b|.",
    "quadratic": r"a*b|.",
    "a lookahead": r"(?=(a*)*c)b|.",
}


def write(folder: Path, pattern: str, *, normalizer: bool = False, word: int | None = None) -> None:
    made = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    if word is not None:
        made = Tokenizer(models.WordPiece(vocab={"a": 0, "##a": 1, "[UNK]": 2}, max_input_chars_per_word=word))
    elif normalizer:
        made.normalizer = normalizers.Replace(Regex(pattern), "b")
    else:
        made.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.save(str(folder / "tokenizer.json"))


@pytest.fixture
def one_second(monkeypatch):
    """In place of the limit of processor time that users have, which is 2 seconds and more for a long text."""
    monkeypatch.setattr(guard, "SECONDS", 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind, normalizer", [*((kind, False) for kind in HOSTILE), ("cubic", True)])
def test_a_pattern_that_takes_for_ever(tmp_path: Path, kind: str, normalizer: bool, capfd, one_second):
    write(tmp_path, HOSTILE[kind], normalizer=normalizer)
    began = time.process_time(), time.monotonic()
    with pytest.raises(GencliError) as caught:
        load_tokenizer(tmp_path).encode("a" * 150_000 + "c")
    assert time.process_time() - began[0] < 5 and str(tmp_path) in caught.value.message
    assert capfd.readouterr() == ("", "")  # a panic's words are not shown


@pytest.mark.slow
def test_words_without_end(tmp_path: Path, one_second):
    write(tmp_path, "", word=10**9)
    with pytest.raises(GencliError, match="take too long over this text"):
        load_tokenizer(tmp_path).encode("a" * 200_000)


@pytest.mark.parametrize("normalizer", [False, True])
def test_a_pattern_of_its_own_that_is_sound(tmp_path: Path, normalizer: bool):
    write(tmp_path, r"(?:aab?)+", normalizer=normalizer)
    tokenizer = load_tokenizer(tmp_path)
    text = "aabaabaa" * 50
    assert tokenizer.encode(text) == Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids


def test_which_are_known_to_be_quick(tmp_path: Path):
    """Those need no fork: of gencli's own kinds, and of the commonest tokenizer.json."""
    make_tokenizer(tmp_path)
    assert guard.is_known_to_be_quick(load_tokenizer(tmp_path).backend)
    write(tmp_path, r"a")
    assert not guard.is_known_to_be_quick(load_tokenizer(tmp_path).backend)


PANICS = {
    "chunks of nothing": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "an id beyond the template": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"x": {"id": "x", "ids": [], "tokens": []}},
        }
    },
}


@pytest.mark.parametrize("kind", PANICS)
def test_a_panic_is_one_line(tmp_path: Path, kind: str, capfd):
    write(tmp_path, "a")
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **PANICS[kind]}))
    try:
        load_tokenizer(tmp_path).encode("aab")
    except GencliError as error:
        assert str(tmp_path) in error.message and len(error.message) < 500
    assert capfd.readouterr() == ("", "")


def test_an_interrupt_is_no_error_of_the_library():
    with pytest.raises(KeyboardInterrupt), guard.library("x"):
        raise KeyboardInterrupt


def test_a_text_far_longer_than_the_context_is_not_read_to_its_end(tmp_path: Path):
    make_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    began = time.process_time()
    assert tokenizer.is_longer("abc " * 5_000_000, 128)
    assert time.process_time() - began < 1
    assert tokenizer.is_longer("a " * 10_000, 10) and not tokenizer.is_longer(" " * 10**6 + "a", 10**5)
    assert not tokenizer.is_longer("a " * 200, 128)  # such a text is encoded as a whole, and counted

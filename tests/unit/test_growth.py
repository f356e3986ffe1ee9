"""Tokenizers whose rules make much of little are refused; what real ones do is not."""

from __future__ import annotations

import json
import resource
import struct

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from gencli.errors import GencliError
from gencli.tokens import load_tokenizer
from gencli.tokens.growth import growth

REAL = {
    "none": (None, 1),
    "Llama's": (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), 2),
    "CLIP's": (normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " ")]), 2),
    "BERT's": (normalizers.BertNormalizer(), 1),
    "quotes": (normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.Lowercase()]), 1),
}


def charsmap(*made: bytes) -> bytes:
    """A table of SentencePiece's: an empty trie, and what it would lead to."""
    return struct.pack("<I", 4) + bytes(4) + b"".join(word + b"\0" for word in made)


HOSTILE = {
    "one to many": normalizers.Replace("a", "b" * 10**6),
    "doubled and doubled": normalizers.Sequence([normalizers.Replace("a", "aa")] * 40),
    "between all": normalizers.Replace(Regex(""), "b" * 1000),
    "before each": normalizers.Prepend("b" * 10**5),
    "nested": normalizers.Sequence([normalizers.Sequence([normalizers.Replace("a", "a" * 20)] * 2)] * 2),
}


def write(folder, normalizer=None, decoder=None):
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    if normalizer is not None:
        backend.normalizer = normalizer
    if decoder is not None:
        backend.decoder = decoder
    backend.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", REAL)
def test_what_real_rules_make_of_a_character(kind, tmp_path):
    rules, bound = REAL[kind]
    assert growth(None if rules is None else json.loads(rules.__getstate__())) == bound
    write(tmp_path, rules)
    assert load_tokenizer(tmp_path).encode("aab" * 10**5)  # of any length


@pytest.mark.parametrize("kind", HOSTILE)
def test_rules_that_make_much_of_little_are_refused(kind, tmp_path):
    write(tmp_path, HOSTILE[kind])
    with pytest.raises(GencliError, match=r"could make .* characters out of one") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert len(caught.value.message) < 500


def test_a_table_of_sentencepieces_counts_by_its_longest_word():
    rules = {"type": "Precompiled", "precompiled_charsmap": ""}
    assert growth(rules) == 1
    import base64

    rules["precompiled_charsmap"] = base64.b64encode(charsmap(b"a", b"b" * 33)).decode()
    assert growth(rules) == 33
    assert growth({"type": "Sequence", "normalizers": [rules, rules]}) == 33**2


def test_decoders_are_bounded_too(tmp_path):
    write(tmp_path, decoder=decoders.Sequence([decoders.Replace("a", "aa")] * 40))
    with pytest.raises(GencliError, match=r"could make 1\.1e\+12 characters out of one"):
        load_tokenizer(tmp_path)


def test_long_texts_may_not_grow_as_short_ones_may(tmp_path):
    write(tmp_path, normalizers.Replace("a", "b" * 200))
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer.encode("b" * 10**5)) == 10**5
    assert len(tokenizer.encode("a" * 10)) == 2000
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(GencliError, match="make too many characters of this text"):
        tokenizer.encode("a" * 10**6)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 5
    assert after.ru_maxrss - before.ru_maxrss < 2**20  # kB

"""SentencePiece's `.model` files give the library's own ids and texts; broken ones end in one clear line."""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from gencli.errors import GencliError
from gencli.tokens import load_tokenizer
from gencli.tokens.sentencepiece import merges, read
from tests.oracles.libraries import sentencepiece, transformers
from tests.tiny.sentencepiece import MODELS, make, some_texts, trained
from tests.tiny.text import SENTENCES, write_json


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_the_librarys(tmp_path, name):
    """The library takes control tokens in a text for words, as `special=False` does."""
    ours, theirs = make(tmp_path, name)
    compared = 0
    for text in some_texts():
        if "▁" in text:
            continue
        ids = ours.encode(text, special=False, add_special_tokens=False)
        assert ids == theirs.encode(text), text
        compared += len(ids)
    assert compared > 3000


@pytest.mark.parametrize("name", ["llama", "t5", "unigram, bytes"])
def test_only_the_beginning_gets_a_space(tmp_path, name):
    """`legacy: false`: of texts without special tokens the ids are the library's all the same, spaces first or not."""
    ours, theirs = make(tmp_path, name, legacy=False)
    for text in some_texts():
        if "▁" not in text and "<unk>" not in text and "</s>" not in text:
            assert ours.encode(text, add_special_tokens=False) == theirs.encode(text), text


@pytest.mark.parametrize("name", MODELS)
def test_texts_come_back_as_the_librarys(tmp_path, name):
    ours, theirs = make(tmp_path, name)
    special = {i for i in range(theirs.vocab_size()) if theirs.is_control(i) or theirs.is_unknown(i)}
    compared = 0
    for text in some_texts():
        ids = theirs.encode(text)
        if special & set(ids):
            continue  # the library writes ⁇ for the unknown
        expected = theirs.decode(ids)
        assert ours.decode(ids) == expected, text
        compared += len(ids)
        decoder = ours.decoder()
        assert "".join(map(decoder.push, ids)) + decoder.finish() == expected
    assert compared > 500


def test_beginnings_and_ends(tmp_path):
    llama, theirs = make(tmp_path / "llama", "llama")
    assert (llama.bos_id, llama.eos_ids, llama.pad_id) == (1, (2,), None)
    assert llama.encode("The dog") == [1, *theirs.encode("The dog")]
    assert llama.vocab_size == theirs.vocab_size()
    off, _ = make(tmp_path / "off", "llama", add_bos_token=False, add_eos_token=True)
    assert off.encode("The dog") == [*theirs.encode("The dog"), 2]
    gemma, theirs = make(tmp_path / "gemma", "gemma")
    assert gemma.encode("The dog") == [2, *theirs.encode("The dog")] and gemma.eos_ids == (1,)
    t5, theirs = make(tmp_path / "t5", "t5")
    assert t5.encode("The dog") == [*theirs.encode("The dog"), 1] and t5.bos_id is None and t5.pad_id == 0
    size = theirs.vocab_size()
    assert t5.encode("The <extra_id_0> dog <extra_id_99>")[-2:] == [size, 1] and t5.vocab_size == size + 100
    assert t5.encode("The <extra_id_0>", add_special_tokens=False)[-1] == size + 99


@pytest.mark.parametrize("name", MODELS)
def test_control_tokens_stay_words_unless_they_are_asked_for(tmp_path, name):
    ours, theirs = make(tmp_path, name)
    end = theirs.eos_id()
    for text in ("a</s>b", "<unk>", " </s> <unk> the girl</s>", "<extra_id_0>"):
        assert ours.encode(text, special=False, add_special_tokens=False) == theirs.encode(text), text
    assert end in ours.encode("a</s>b", add_special_tokens=False) and end not in theirs.encode("a</s>b")
    saved = tmp_path / "saved"
    saved.mkdir()
    ours.backend.save(str(saved / "tokenizer.json"))
    if not ours.begin:
        again = load_tokenizer(saved)
        assert again.encode("a</s><unk>b", special=False, add_special_tokens=False) == theirs.encode("a</s><unk>b")


def test_the_space_after_a_special_token(tmp_path):
    """As the reference's LlamaTokenizer has it, "legacy" or not."""
    text = "The dog</s>ran home<s> ran</s>"
    ours, _ = make(tmp_path, "llama", legacy=False)
    pieces = read(tmp_path / "tokenizer.model")
    vocab = {piece: i for i, piece in enumerate(pieces.texts)}
    theirs = transformers.LlamaTokenizer(vocab=vocab, merges=merges(pieces), legacy=False)
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    after = {}
    for legacy in (True, False):
        ours, _ = make(tmp_path / str(legacy), "llama", legacy=legacy)
        ids = ours.encode("The</s>dog", add_special_tokens=False)
        after[legacy] = ours.raw_piece(ids[ids.index(2) + 1])
    assert after[True].startswith("▁") and not after[False].startswith("▁")


def test_added_tokens_follow_the_vocabulary(tmp_path):
    (tmp_path / "added_tokens.json").write_text('{"<extra>": 640}', encoding="utf-8")
    ours, theirs = make(tmp_path, "llama", pad_token="<extra>")
    assert theirs.vocab_size() == 640 and ours.pad_id == 640
    assert ours.encode("The<extra>", add_special_tokens=False) == [*theirs.encode("The"), 640]


def test_other_classes_are_refused(tmp_path):
    with pytest.raises(GencliError, match="'XLMRobertaTokenizer' is not supported"):
        make(tmp_path, "t5", tokenizer_class="XLMRobertaTokenizer")


def test_a_file_of_tiktoken_is_named(tmp_path):
    """Llama 3's original download has one under the name of SentencePiece's."""
    lines = [f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256)]
    (tmp_path / "tokenizer.model").write_text("\n".join(lines) + "\n")
    with pytest.raises(GencliError, match=r"tokenizer\.model is a file of tiktoken") as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in caught.value.hint


@pytest.mark.parametrize("kind", ["word", "char"])
def test_other_kinds_are_refused(tmp_path, kind):
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=file,
        vocab_size=60,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(file.getvalue())
    with pytest.raises(GencliError, match=f"of the kind '{kind}' is not supported"):
        load_tokenizer(tmp_path)


def check_refusal(folder: Path) -> None:
    with pytest.raises(GencliError) as caught:
        load_tokenizer(folder)
    message = caught.value.message
    assert "tokenizer.model" in message and "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"\xff" * 40, b"\n\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"IQ== 0\nIg== 1\n", b"\n\x05\n\x03abc" * 2],
    ids=["nothing", "a key", "a long number", "2^60 bytes", "tiktoken's", "a piece twice"],
)
def test_broken_files(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    check_refusal(tmp_path)


def test_damaged_files(tmp_path):
    """Cut or flipped anywhere: refused in one line, or a tokenizer that works."""
    content = trained("llama")
    refused = 0
    for seed in range(60):
        draw = random.Random(seed)
        damaged = bytearray(content[: draw.randrange(len(content))] if seed % 2 else content)
        if seed % 2 == 0:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        try:
            load_tokenizer(tmp_path).encode("The dog ran.")
        except GencliError as error:
            assert "\n" not in error.message
            refused += 1
    assert refused > 20


def test_qwen2s_vocabulary_and_merges(tmp_path):
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    backend.model.save(str(tmp_path))
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"})
    write_json(tmp_path / "added_tokens.json", {"<|endoftext|>": 400, "<|im_end|>": 401})
    ours = load_tokenizer(tmp_path)
    theirs = transformers.Qwen2Tokenizer.from_pretrained(tmp_path)
    for text in some_texts():
        assert ours.encode(text) == theirs.encode(text), text
    assert ours.eos_ids == (401,) and ours.bos_id is None

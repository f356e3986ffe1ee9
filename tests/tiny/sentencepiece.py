"""Small SentencePiece models, trained in memory, and texts that are hard for them."""

from __future__ import annotations

import functools
import io
import random
from pathlib import Path

from gencli.tokens import Tokenizer, load_tokenizer
from tests.oracles.libraries import sentencepiece
from tests.tiny.text import SENTENCES, TEXTS, write_json

# name → what the trainer is told; as the families have it
MODELS: dict[str, dict] = {
    "llama": {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "split_digits": True,
    },
    "gemma": {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "add_dummy_prefix": False, "allow_whitespace_only_pieces": True,
        "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "user_defined_symbols": ["<table>", "▁▁", "▁▁▁", "\n\n"],
    },
    "t5": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "unigram, bytes": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "nfkc"},
    "bpe, no bytes": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc_cf"},
    "bpe, symbols of the user's": {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "user_defined_symbols": ["<sep>", "girl"],
    },
}  # fmt: skip


CLASSES = {"gemma": "GemmaTokenizer", "t5": "T5Tokenizer", "llama": "LlamaTokenizer"}
WORDS = "the a girl dog ran soup naïve 花园 里 🙂 7 10 <table> <sep> <unk> ﬁ Ⅷ ｆｕｌｌ \n \t - . , '".split(" ")


@functools.cache
def trained(name: str) -> bytes:
    file = io.BytesIO()
    size = 640 if MODELS[name].get("byte_fallback") else 360
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_writer=file,
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **MODELS[name],
    )
    return file.getvalue()


def make(folder: Path, name: str, **config) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    """Ours from a checkpoint's folder, and the library's."""
    folder.mkdir(exist_ok=True)
    (folder / ("spiece.model" if name == "t5" else "tokenizer.model")).write_bytes(trained(name))
    named = {"tokenizer_class": CLASSES[name]} if name in CLASSES else {}
    write_json(folder / "tokenizer_config.json", {**named, **config})
    return load_tokenizer(folder), sentencepiece.SentencePieceProcessor(model_proto=trained(name))


def some_texts() -> list[str]:
    """The hard ones, and 300 of words and spaces in any order. None has what SentencePiece's files call control."""
    draw = random.Random(1)
    texts = [text for text in TEXTS if "\u0000" not in text]
    for _ in range(300):
        words = [draw.choice(WORDS) + " " * draw.choice((0, 0, 1, 1, 1, 2, 5)) for _ in range(draw.randrange(1, 12))]
        texts.append(" " * draw.choice((0, 0, 1, 3)) + "".join(words))
    return texts

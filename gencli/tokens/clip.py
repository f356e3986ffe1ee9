"""CLIP's byte-level BPE: words in lower case that end in `</w>`, and the vocabulary of OpenAI's models."""

from __future__ import annotations

import gzip
from pathlib import Path

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from gencli.tokens.decode import BYTE_OF

WORD_END, START, END = "</w>", "<|startoftext|>", "<|endoftext|>"
MERGES = Path(__file__).parent / "clip_bpe.txt.gz"  # see clip_bpe.md
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPACES = r"\s+"
PATTERNS = (WORDS, SPACES, WORDS.removeprefix(r"<\|startoftext\|>|<\|endoftext\|>|"))


def backend(model: models.BPE) -> Backend:
    """Make a backend that splits a text as CLIP does and passes the words to `model`."""
    found = Backend(model)
    found.decoder = decoders.ByteLevel()
    found.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(SPACES), " "), normalizers.Lowercase()]
    )
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return found


def own_backend() -> Backend:
    """Make the backend with the 49408 tokens of OpenAI's CLIP, which are those of OpenCLIP too."""
    vocab, merges = vocabulary()
    return backend(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=WORD_END, unk_token=END))


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return token → id, and the merges, best first, of OpenAI's CLIP.

    The ids: 256 bytes, 256 bytes at the end of a word, a token per merge, the start and the end of a text.
    """
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    bytes_ = list(BYTE_OF)  # printable ones first
    tokens = [*bytes_, *(one + WORD_END for one in bytes_), *(left + right for left, right in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}, merges

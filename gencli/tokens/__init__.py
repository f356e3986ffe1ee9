"""Tokenizer files → encode, decode, incremental decode. BPE itself is the tokenizers library's. No torch."""

from gencli.tokens.decode import IncrementalDecoder
from gencli.tokens.load import load_clip_tokenizer, load_tokenizer
from gencli.tokens.tokenizer import Tokenizer

__all__ = ["IncrementalDecoder", "Tokenizer", "load_clip_tokenizer", "load_tokenizer"]

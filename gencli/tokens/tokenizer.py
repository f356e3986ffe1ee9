"""Text ↔ token ids."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from gencli.errors import GencliError
from gencli.tokens.decode import IncrementalDecoder, Step, make_steps, middle_bytes
from gencli.tokens.growth import Rule, check_growth, check_text
from gencli.tokens.guard import check_time, is_known_to_be_quick, library

NO_TEXT = "\ufdd1"  # no character
CONTEXT = 64  # visible tokens of a prompt that a decoder of its continuation looks at: more than any step holds back


@dataclass(frozen=True)
class Tokenizer:
    """A checkpoint's tokenizer, made by `load_tokenizer`.

    folder: of its files. bos_id: the token that begins a text. eos_ids: the tokens that end one. pad_id: the padding
    token. max_length: of sequences, according to the files. None: not said. word_suffix: `</w>` for a CLIP tokenizer,
    else empty. names: `bos_token` and the like → the text of the token. chat_template: Jinja source that turns a
    conversation into a prompt, or None. split_special_tokens: those in a text are words, always. begin: what the
    backend wants before every text. groups: a token → the tokens that replace it in a text (itself first), for
    embeddings of several vectors.
    """

    backend: Backend
    folder: Path
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    max_length: int | None = None
    word_suffix: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    split_special_tokens: bool = False
    begin: str = ""
    groups: dict[int, tuple[int, ...]] = field(default_factory=dict)
    special_ids: frozenset[int] = field(init=False)
    _decoder: Rule | None = field(init=False, repr=False)
    _growth: float = field(init=False, repr=False)
    _quick: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        special = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        decoder = self.backend.decoder
        object.__setattr__(self, "special_ids", frozenset(special))
        object.__setattr__(self, "_decoder", None if decoder is None else json.loads(decoder.__getstate__()))
        check_growth(self._decoder, str(self.folder))
        normalizer = self.backend.normalizer
        rules = None if normalizer is None else json.loads(normalizer.__getstate__())
        object.__setattr__(self, "_growth", check_growth(rules, str(self.folder)))
        object.__setattr__(self, "_quick", is_known_to_be_quick(self.backend))

    @property
    def vocab_size(self) -> int:
        """The number of tokens, with added ones. The vocabulary of a model may be larger (padding)."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, special: bool = True, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text.

        special: parse special tokens in the text, as transformers does; otherwise they are plain words.
        add_special_tokens: add those of every text (CLIP's start and end, Llama's start).
        Raises GencliError for a text with lone surrogates, which UTF-8 cannot encode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise GencliError(f"the text is not valid Unicode at character {error.start}") from None
        ids = self._encode(text, special, add_special_tokens).ids
        return [one for i in ids for one in self.groups.get(i, (i,))] if self.groups else ids

    def _encode(self, text: str, special: bool, add_special_tokens: bool) -> Encoding:
        where, text = str(self.folder), self._begun(text, special)
        backend = self.backend
        if not special and self._pieces_of_no_text and any(piece in text for piece in self._pieces_of_no_text.values()):
            backend = self._backend_of_words
        backend.encode_special_tokens = self.split_special_tokens or not special
        encode = partial(backend.encode, text, add_special_tokens=add_special_tokens)
        with library(f"{where}: the tokenizer cannot encode this text"):
            check_text(self.backend.normalizer, self._growth, text, where)
            if not self._quick:
                check_time(encode, len(text), where)
            return encode()

    @cached_property
    def _pieces_of_no_text(self) -> dict[int, str]:
        """The special and the unknown tokens of a unigram model, which would pick them for words: id → text."""
        if type(self.backend.model).__name__ != "Unigram":
            return {}
        ids = {*self.special_ids, getattr(self.backend.model, "unk_id", None)}
        return {i: self.raw_piece(i) for i in ids if i is not None}

    @cached_property
    def _backend_of_words(self) -> Backend:
        """The backend, in which the pieces of no text have names that no text holds."""
        state = json.loads(self.backend.to_str())
        for i in self._pieces_of_no_text.keys() & set(range(len(state["model"]["vocab"]))):
            state["model"]["vocab"][i][0] = f"{NO_TEXT}{i}"
        for token in state["added_tokens"]:
            if token["id"] in self._pieces_of_no_text:
                token["content"] = f"{NO_TEXT}{token['id']}"
        return Backend.from_str(json.dumps(state))

    def _begun(self, text: str, special: bool) -> str:
        """Return a text with `begin`, unless it begins with a special token already."""
        if not self.begin or not text:
            return text
        begins = special and text.startswith(tuple(map(self.raw_piece, self.special_ids)))
        return text if begins else self.begin + text

    def encode_all(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the token ids of many texts, as `encode` does, in less time. Raise GencliError."""
        self.backend.encode_special_tokens = self.split_special_tokens
        with library(f"{self.folder}: the tokenizer cannot encode these texts"):
            return [one.ids for one in self.backend.encode_batch([self._begun(text, True) for text in texts])]

    def is_longer(self, text: str, tokens: int) -> bool:
        """Return whether a text has far more tokens, told by its beginning, so that a whole library costs no more."""
        size = max(16 * tokens, 2**14)
        while size < len(text):
            if len(self._encode(text[:size], True, False)) > 2 * tokens:
                return True
            size *= 4
        return False

    def lost(self, text: str) -> int:
        """Return how many visible characters of a text become no token, or only the unknown one."""
        encoded = self._encode(text, True, False)
        text = self._begun(text, True)
        name = getattr(self.backend.model, "unk_token", None) or self.names.get("unk_token", "")
        unknown = self.backend.token_to_id(name)
        seen = bytearray(len(text))
        for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            if token != unknown or text[start:end] == name:
                seen[start:end] = b"\1" * (end - start)
        # Spaces, controls and combining marks may be a normaliser's to drop.
        return sum(
            not there and unicodedata.category(char)[0] in "LNPS" for char, there in zip(text, seen, strict=True)
        )

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD. Raises GencliError for unknown ids."""
        decoder = self.decoder(skip_special)
        parts = [decoder.push(i) for i in ids]
        return "".join(parts) + decoder.finish()

    def decoder(self, skip_special: bool = True, *, after: Sequence[int] = ()) -> IncrementalDecoder:
        """Make a decoder for one sequence, token by token; its parts joined are `decode` of all tokens.

        after: ids of a text that the sequence continues. What comes is then `decode` of both without the first text: a
        token at the beginning of a text may lose its space, and here none does.
        Raises GencliError for a kind of decoder that gencli does not know.
        """

        def piece_of(token: int) -> str | None:
            return None if skip_special and token in self.special_ids else self.raw_piece(token)

        decoder = IncrementalDecoder(piece_of, make_steps(self._decoder, self.word_suffix))
        for token in [i for i in after if not (skip_special and i in self.special_ids)][-CONTEXT:]:
            decoder.push(token)
        decoder.finish()
        return decoder

    def raw_piece(self, token: int) -> str:
        """Return a token as the vocabulary writes it (`Ġthe`, `▁the`). Raises GencliError for an unknown id."""
        piece = self.backend.id_to_token(token) if 0 <= token < 2**32 else None
        if piece is None:
            raise GencliError(
                f"token id {token} is not in the tokenizer's vocabulary of {self.vocab_size} ({self.folder})"
            )
        return piece

    def id_to_piece(self, token: int) -> str:
        """Return the text of one token inside a text, as `logprobs` of OpenAI's API writes it.

        That is ` the`, the name of a special token, or `bytes:\\xe4\\xbd` for a part of a character.
        Raises GencliError for an unknown id.
        """
        return self.raw_piece(token) if token in self.special_ids else _text_of(self.token_bytes(token))

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes that a token adds inside a text: maybe a part of a character. Special ones add none.

        Raises GencliError for an unknown id.
        """
        return b"" if token in self.special_ids else middle_bytes(self.raw_piece(token), self._steps)

    @cached_property
    def _steps(self) -> list[Step]:
        return make_steps(self._decoder, self.word_suffix)


def _text_of(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

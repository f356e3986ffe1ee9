"""Which tokens may come next in a text that follows a grammar, as llguidance knows it.

An answer follows the grammar from its first token to its last. What a reasoning model thinks before it is free, but may
not end the text; a line or two may stand between, which are no part of the answer.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from gencli.errors import GencliError
from gencli.models.module import LanguageModel
from gencli.text.channels import ChannelSplitter
from gencli.text.grammar import first_line, translated
from gencli.text.load import TextModel
from gencli.text.reasoning import Marks, Reasoning
from gencli.tokens import Tokenizer

GAP = 2  # tokens of white space after a thought
KEPT = 32  # grammars per model; to compile one takes from a millisecond to a second


class _Tokens(NamedTuple):
    """What llguidance asks of a tokenizer: the bytes of every token. One more than the model has stands for the end."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    bos_token_id: None = None

    def __call__(self, text: bytes) -> list[int]:
        return []  # nothing is written by the tokenizer: see `grammar.OPTIONS`


class Vocabulary:
    """The tokens of a model. visible: one that has a text. spaces: those of white space alone."""

    def __init__(self, tokenizer: Tokenizer, size: int):
        self.size = size
        texts, special = [b""] * size, []
        for piece, i in tokenizer.backend.get_vocab(with_added_tokens=True).items():
            if i < size:
                texts[i] = piece.encode() if i in tokenizer.special_ids else tokenizer.token_bytes(i)
                special += [i] if i in tokenizer.special_ids else []
        self.visible = next(i for i, text in enumerate(texts) if text.strip() and i not in special)
        self.spaces = [i for i, text in enumerate(texts) if text.isspace()]
        tokens = _Tokens([*texts, b"<end>"], [*special, size], size)
        self.tokenizer = LLTokenizer(TokenizerWrapper(tokens), n_vocab=size + 1, eos_token=size)
        self._matchers: dict[str, LLMatcher] = {}

    def matcher(self, grammar: str) -> LLMatcher:
        """Return a matcher at the beginning of a text. Raise GencliError for a grammar that is too large."""
        if grammar not in self._matchers:
            made = LLMatcher(self.tokenizer, translated(grammar), log_level=0)
            if made.is_error():
                raise GencliError(f"the schema or grammar cannot be followed: {first_line(made.get_error())}")
            if len(self._matchers) == KEPT:
                del self._matchers[next(iter(self._matchers))]
            self._matchers[grammar] = made
        return self._matchers[grammar].deep_copy()


def next_tokens(matcher: LLMatcher, known: Vocabulary, ends: list[int], mask: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return for every token of a model (V,) whether a text may go on with it. ends: tokens that end it. mask: room for
    the answer in bits. Raise GencliError where llguidance gives up."""
    if not matcher.is_error():
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    if matcher.is_error():
        reason = first_line(matcher.get_error())
        reason = "no text follows it" if reason.startswith("NoExtension") else reason
        raise GencliError(f"the schema or grammar can be followed no further: {reason}")
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little").view(np.bool_)
    bits[ends] = bits[known.size]
    return bits[: known.size]


VOCABULARIES: WeakKeyDictionary[LanguageModel, Vocabulary] = WeakKeyDictionary()  # by the model's module


def vocabulary(model: TextModel) -> Vocabulary:
    """Return the tokens of a model, which are looked through once."""
    if model.module not in VOCABULARIES:
        VOCABULARIES[model.module] = Vocabulary(model.tokenizer, model.vocab_size)
    return VOCABULARIES[model.module]


class Constraint:
    """One text that follows a grammar. reasoning: the marks that count before it: tokens alone, as words would be text.

    Raise GencliError for a grammar that cannot be followed.
    """

    def __init__(self, model: TextModel, grammar: str, reasoning: Reasoning | None):
        self.vocabulary = vocabulary(model)
        self._matcher = self.vocabulary.matcher(grammar)
        self._mask = np.zeros((self.vocabulary.size + 32) // 32, dtype=np.int32)
        self._ends = [i for i in model.tokenizer.eos_ids if i < self.vocabulary.size]
        marks = {one.open_id: one for one in reasoning.marks if one.open_id is not None} if reasoning else {}
        self.reasoning = reasoning and dataclasses.replace(reasoning, marks=tuple(marks.values()))
        self._inside: Marks | None = reasoning.inside if reasoning else None
        self._channels = ChannelSplitter(reasoning.channels) if reasoning and reasoning.channels else None
        if self._channels is not None:
            self._inside = Marks()
        self._opens = {} if self._inside else marks  # while a thought may begin
        self.after = (self.vocabulary.visible,)  # a token means the same everywhere: not even the first loses its space
        self._gap = 0  # tokens that may stand between a thought and the answer
        self._decoder, self._thought, self._known = model.tokenizer.decoder(), "", model.tokenizer.vocab_size

    def allowed(self) -> NDArray[np.bool_]:
        """Return for every token of the model (V,) whether it may come next.

        Raise GencliError where llguidance gives up.
        """
        if self._inside is not None:
            free = np.ones(self.vocabulary.size, dtype=np.bool_)
            free[self._ends] = False
            if self._channels is not None:  # which ends a message before the answer too
                free[self._channels.tokens.end] = self._channels.inside
                if marks := [*self._channels.next]:  # without them all would be answer
                    free[:], free[marks] = False, True
            return free
        bits = next_tokens(self._matcher, self.vocabulary, self._ends, self._mask)
        bits[list(self._opens)] = True
        if self._gap:
            bits[self.vocabulary.spaces] = True
        return bits

    def take(self, token: int) -> bool:
        """Take the next token. Return whether nothing can follow it."""
        if self._inside is not None and self._channels is not None:
            self._in_channel(token, self._channels)
            return False
        if self._inside is not None:
            self._think(token, self._inside)
            return False
        if token in self._opens:
            self._inside, self._opens = self._opens[token], {}
            return False
        self._opens = {}
        if self._gap and token in self.vocabulary.spaces:
            self._gap -= 1
            return False
        self._gap = 0
        if token in self._ends:
            return True
        return self._matcher.consume_token(token) and self._matcher.is_stopped()

    def _in_channel(self, token: int, channels: ChannelSplitter) -> None:
        """Look for the beginning of the answer among channels."""
        channels.follow(token, self._decoder, self._known)
        if channels.begun:
            self._inside, self._gap = None, GAP

    def _think(self, token: int, marks: Marks) -> None:
        """Look for the end of a thought. What stands behind it in the same token begins the answer."""
        closed, rest = token == marks.close_id, ""
        if marks.close_id is None:
            self._thought += self._decoder.push(token) if token < self._known else ""
            _, mark, rest = self._thought.partition(marks.close)
            closed = bool(mark)
        if closed:
            self._inside, self._gap = None, 0 if rest.strip() else GAP
            self._matcher.consume_tokens(self.vocabulary.tokenizer.greedy_tokenize(rest.lstrip()))

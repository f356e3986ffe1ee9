"""Which tokens may come next in an answer that may call tools: what it says is free, and calls follow their schemas."""

from __future__ import annotations

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from gencli.text.call_grammars import one_of
from gencli.text.calls import CallSplitter
from gencli.text.channels import ChannelSplitter
from gencli.text.constraint import next_tokens, vocabulary
from gencli.text.load import TextModel
from gencli.text.reasoning import Reasoning

THOUGHT = "<|channel|>analysis<|message|>"  # how an answer in channels begins that has to end in a call


class CallConstraint:
    """One answer that may call tools, or has to. Raise GencliError for schemas that cannot be followed."""

    def __init__(self, model: TextModel, reasoning: Reasoning):
        calls, tokenizer = reasoning.calls, model.tokenizer
        assert calls is not None
        self.vocabulary = vocabulary(model)
        self.reasoning, self.after = reasoning, ()
        self.schemas, self.must = calls.tools.schemas, calls.tools.must
        self._ends = [i for i in tokenizer.eos_ids if i < self.vocabulary.size]
        self._known = tokenizer.vocab_size
        self._splitter = reasoning.splitter()
        self._decoder = tokenizer.decoder()
        self._caller = CallSplitter(calls, calls.opens()) if calls.form else None
        self._special = {i: tokenizer.raw_piece(i) for i in tokenizer.special_ids}
        self._matcher: LLMatcher | None = None  # once a call has begun
        self._grammar = calls.grammar(tokenizer)
        opens = THOUGHT if calls.form is None else "" if calls.form.inside else calls.form.opens[0]
        self._forced = tokenizer.encode(opens, add_special_tokens=False) if self.must and opens else []
        self._starts = self.must and bool(calls.form and calls.form.inside)
        self._mask = np.zeros((self.vocabulary.size + 32) // 32, dtype=np.int32)
        self._done = False
        self.vocabulary.matcher(self._grammar)  # what is wrong with it is told before anything is read
        if not isinstance(self._splitter, ChannelSplitter):
            self._begin_at_once()

    def allowed(self) -> NDArray[np.bool_]:
        """Return for every token of the model (V,) whether it may come next. Raise GencliError where llguidance gives
        up."""
        if self._matcher is not None:
            return next_tokens(self._matcher, self.vocabulary, self._ends, self._mask)
        free = np.ones(self.vocabulary.size, dtype=np.bool_)
        if not self.must or self._done:
            return free
        free[self._ends] = False
        channels = isinstance(self._splitter, ChannelSplitter)
        if self._forced and (channels or not self._splitter.inside):
            opens = () if channels else [i for i in self._splitter.openers if i < self.vocabulary.size]
            free[:] = False
            free[[self._forced[0], *opens]] = True
        elif channels:  # which end the thought too
            free[self.reasoning.channels.end if self.reasoning.channels else []] = True
        return free

    def take(self, token: int) -> bool:
        """Take the next token. Return whether nothing can follow it."""
        if self._matcher is not None:
            if token in self._ends:
                return True
            if self._matcher.consume_token(token):
                return self._matcher.is_stopped()
            self._matcher, self._done = None, True  # what the model has written otherwise is read as it is
            return False
        if self._done:
            return False
        if self._forced and token == self._forced[0] and not (self._splitter.inside and self._caller):
            self._forced = self._forced[1:]
        if isinstance(self._splitter, ChannelSplitter):
            self._in_channel(token, self._splitter)
            return False
        text = ""
        if token in self._splitter.ids:
            self._push(self._decoder.finish())
            if self._splitter.take(token):
                self._begin_at_once()
                return False
        piece = self._special.get(token)
        if piece is not None and self._caller and piece in self._caller.opens and not self._splitter.inside:
            text = self._decoder.finish() + piece
        elif token < self._known:
            text = self._decoder.push(token)
        self._push(text)
        return False

    def _push(self, text: str) -> None:
        """Look for the beginning of a call in what is said, and follow its grammar from there on."""
        assert self._caller and not isinstance(self._splitter, ChannelSplitter)
        self._caller.push(self._splitter.push(text)[1])
        if self._caller.begun:
            self._begin(self._grammar, self._caller.rest())

    def _begin_at_once(self) -> None:
        """Begin the call after a thought, where nothing stands before it and there has to be one."""
        if self._starts and not self._splitter.inside and not self._splitter.openers:
            self._begin(self._grammar, "")

    def _begin(self, grammar: str, rest: str) -> None:
        matcher = self.vocabulary.matcher(grammar)
        if not rest or matcher.consume_tokens(self.vocabulary.tokenizer.greedy_tokenize(rest)):
            self._matcher = matcher
        else:
            self._done = True

    def _in_channel(self, token: int, channels: ChannelSplitter) -> None:
        """Follow the headers of channels: one that names a tool begins its arguments."""
        channels.follow(token, self._decoder, self._known)
        if channels.called in self.schemas:
            self._begin(one_of(self.schemas[channels.called]), "")
        elif self.must and channels.next == (channels.tokens.start,):
            self._begin(self._grammar, "")
        elif channels.begun:
            self._done = not self.must

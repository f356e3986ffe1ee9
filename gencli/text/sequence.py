"""One sample that is generated: tokens in, text out, until it ends."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from gencli.errors import GencliError
from gencli.text.batch import Pick
from gencli.text.calls import CallSplitter
from gencli.text.channels import ChannelSplitter
from gencli.text.events import Completion, Logprobs, ReasoningDelta, TextDelta
from gencli.text.load import TextModel
from gencli.text.reasoning import Reasoning, logprobs_after
from gencli.text.request import TextRequest
from gencli.text.stops import StopScanner
from gencli.text.tools import Call

if TYPE_CHECKING:
    from gencli.text.call_constraint import CallConstraint
    from gencli.text.constraint import Constraint


class Sequence:
    """One sample of a job: its random generator, and its text so far. reasoning: what to tell from the answer, if
    anything. index: among the samples of all jobs.

    Stop strings are looked for in the answer alone. One that is the text of a special token ends it at that token, in
    the reasoning too, unless the token marks reasoning.
    """

    def __init__(
        self,
        model: TextModel,
        request: TextRequest,
        job: int,
        sample: int,
        ids: list[int],
        max_tokens: int,
        reasoning: Reasoning | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ):
        self.request, self.ids, self.job, self.wanted = request, ids, job, wanted
        self.index = job * request.num_samples + sample
        self.seed = request.seed + sample
        self.generator = torch.Generator("cpu").manual_seed(self.seed)
        self.finish_reason, self.stop = "", ""
        self.tokenizer = model.tokenizer
        self.prompt_tokens = len(ids)
        self.max_tokens = max_tokens
        self.count = 0
        self.constraint = constraint_of(model, request, reasoning)
        after = ids
        if self.constraint is not None:
            after, reasoning = [*ids, *self.constraint.after], self.constraint.reasoning
        self.decoder = model.tokenizer.decoder(after=after)
        self.splitter = reasoning.splitter() if reasoning else None
        calls = reasoning.calls if reasoning else None
        self.caller = CallSplitter(calls) if calls and calls.form else None
        self.special = {i: self.tokenizer.raw_piece(i) for i in self.tokenizer.special_ids} if self.caller else {}
        self.calls: tuple[Call, ...] = ()
        self.scanner = StopScanner(request.stop)
        named = {i: model.tokenizer.raw_piece(i) for i in model.tokenizer.special_ids} if request.stop else {}
        self.ends = {*model.tokenizer.eos_ids, *(i for i, name in named.items() if name in request.stop)}
        self.hidden = {i: name for i, name in named.items() if any(name in stop for stop in request.stop)}
        self.decoded = 0  # characters that the decoder has returned, shown or not
        self.parts: list[str] = []  # of the answer
        self.thoughts: list[str] = []
        self.thought = False
        self.reasoned = 0  # tokens of thoughts and of what marks them
        self.logprobs = None if request.logprobs is None else Logprobs()

    def take(self, pick: Pick) -> list[TextDelta | ReasoningDelta]:
        """Take the next token; return the text that may be shown. Sets `finish_reason` when it is the last."""
        inside = self.splitter and self.splitter.inside
        shown = self._take(pick)
        self.reasoned += bool(inside or (self.splitter and self.splitter.inside))
        return shown

    def _take(self, pick: Pick) -> list[TextDelta | ReasoningDelta]:
        self.count += 1
        token, shown = pick.token, []
        if self.splitter and token in self.splitter.ids:
            shown = self._show(self.decoder.finish())
            if not self.finish_reason and self.splitter.take(token):
                return shown + self._last("length") if self.count == self.max_tokens else shown
        if self.finish_reason:
            return shown
        if token in self.ends:
            piece = self.hidden.get(token, "")
            self.stop = piece if piece in self.request.stop else ""
            return shown + self._last("stop")
        known = token < self.tokenizer.vocab_size  # a padded vocabulary has tokens without text
        if self.logprobs is not None and known:
            name = self.tokenizer.id_to_piece
            top = [(name(i), value) for i, value in pick.top if i < self.tokenizer.vocab_size]
            self.logprobs.add(name(token), pick.logprob, top, self.decoded)
        if self.caller and token in self.special and self._is_of_call(self.special[token]):
            shown += self._show(self.decoder.finish())
            shown += [] if self.finish_reason else self._show(self.special[token])
        elif token in self.hidden:
            shown += self._show(self.decoder.finish())
            shown += [] if self.finish_reason else self._show("", hidden=self.hidden[token])
        elif known:
            shown += self._show(self.decoder.push(token))
        if not self.finish_reason and (pick.last or self.count == self.max_tokens):
            shown += self._last("stop" if pick.last else "length")
        return shown

    def completion(self) -> Completion:
        """Return the whole sample."""
        text, logprobs = "".join(self.parts), self.logprobs
        if self.splitter and logprobs is not None:
            logprobs = Logprobs() if self.splitter.inside else logprobs_after(logprobs, self.splitter.skipped)
        unanswered = bool(self.thought and not text)
        counts = self.prompt_tokens, self.count
        thoughts = "".join(self.thoughts), self.reasoned
        calls = self.splitter.calls() if isinstance(self.splitter, ChannelSplitter) else self.calls
        unanswered = unanswered and not calls
        return Completion(
            self.index, self.seed, text, self.finish_reason, *counts, logprobs, unanswered, *thoughts, calls, self.stop
        )

    def _is_of_call(self, piece: str) -> bool:
        """Return whether a special token is a part of a call here."""
        assert self.caller
        inside = self.splitter is not None and self.splitter.inside
        return not inside and (self.caller.begun or piece in self.caller.opens)

    def _last(self, reason: str) -> list[TextDelta | ReasoningDelta]:
        """End the sample, and return what was held back of its text."""
        self.finish_reason = reason
        return self._show(self.decoder.finish(), last=True)

    def _show(self, text: str, *, hidden: str = "", last: bool = False) -> list[TextDelta | ReasoningDelta]:
        """Return what may be shown of the decoded text, now that `text` is added to it.

        hidden: what stands there for stop strings alone.
        """
        self.decoded += len(text)
        thought, answer = self.splitter.push(text) if self.splitter else ("", text)
        if self.splitter and last:
            thought, answer = (a + b for a, b in zip((thought, answer), self.splitter.finish(), strict=True))
        if self.caller:
            answer = self.caller.push(answer)
            if last:
                held, self.calls = self.caller.finish()
                answer += held
        shown, stopped = self.scanner.push(answer)
        if hidden and not (self.splitter and self.splitter.inside):
            shown, stopped = self.scanner.push(hidden, hidden=True)
        if stopped:
            self.finish_reason, self.stop = "stop", self.scanner.found
        elif last:
            shown += self.scanner.finish()
        self.parts.append(shown)
        self.thoughts.append(thought)
        if stopped and self.logprobs is not None:
            self.logprobs.cut((self.splitter.skipped if self.splitter else 0) + sum(map(len, self.parts)))
        self.thought = self.thought or bool(thought) or bool(self.splitter and self.splitter.inside)
        deltas = [ReasoningDelta(self.index, thought)] if thought else []
        return [*deltas, TextDelta(self.index, shown)] if shown else [*deltas]


def constraint_of(
    model: TextModel, request: TextRequest, reasoning: Reasoning | None = None
) -> Constraint | CallConstraint | None:
    """Return what a text of this request has to follow, if anything. Raise GencliError if it cannot."""
    if request.form is not None:
        from gencli.text.constraint import Constraint

        return Constraint(model, request.form, reasoning)
    if reasoning is None or reasoning.calls is None:
        return None
    if find_spec("llguidance") is None:  # calls then follow their schemas as well as the model does
        if reasoning.calls.tools.must:
            raise GencliError("llguidance is not installed", "pip install 'gencli[grammar]'")
        return None
    from gencli.text.call_constraint import CallConstraint

    return CallConstraint(model, reasoning)

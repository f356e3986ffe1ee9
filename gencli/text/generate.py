"""The text recipe: encode → prefill → (sample, detokenize, check stops, decode) … Yields text as it is made."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import torch

from gencli.errors import GencliError, UsageError
from gencli.text.batch import Batch, Pick
from gencli.text.events import (
    CharactersLost,
    Completion,
    Event,
    GenerationStats,
    Logprobs,
    PromptTruncated,
    ReasoningDelta,
    TextDelta,
)
from gencli.text.load import TextModel
from gencli.text.prompt_cache import PromptCache
from gencli.text.reasoning import Reasoning, Splitter, logprobs_after
from gencli.text.request import TextRequest
from gencli.text.stops import StopScanner

BATCH = 16  # samples per forward pass: more of them take memory and save little time


def generate(
    model: TextModel,
    request: TextRequest,
    stats: GenerationStats | None = None,
    *,
    ids: list[int] | None = None,
    prompt_cache: PromptCache | None = None,
    reasoning: Reasoning | None = None,
) -> Iterator[Event]:
    """Continue a prompt. Text of several samples is interleaved; a sample's `Completion` comes after all of its text.

    `stats` is updated while it runs. ids: the ids of the prompt, if it is encoded already. prompt_cache: what the model
    has read before, so that it reads only the rest; used for a single sample only. reasoning: the marks of reasoning
    before an answer, which becomes events of its own.
    Raises GencliError when the prompt leaves no room in the context (unless `truncate` allows a cut) and when the
    model returns NaN; UsageError for a `logit_bias` token that the model does not have.
    """
    request = request.resolve(model.generation_config)
    whole = prompt_ids(model, request, ids)
    if ids is None and (lost := model.tokenizer.lost(request.prompt)):
        yield CharactersLost(lost)
    ids = fit(model, request, whole)
    if len(ids) < len(whole):
        yield PromptTruncated(len(whole), len(ids))
    assert request.max_tokens is not None
    max_tokens = min(request.max_tokens, model.max_length - len(ids))
    if request.max_length is not None:
        max_tokens = min(max_tokens, max(request.max_length - len(ids), 1))
    sampling = dataclasses.replace(request.sampling, eos_ids=model.tokenizer.eos_ids, max_tokens=max_tokens)
    request = dataclasses.replace(request, sampling=sampling)
    for first in range(0, request.num_samples, BATCH):
        indices = range(first, min(first + BATCH, request.num_samples))
        sequences = [Sequence(model, request, index, ids, max_tokens, reasoning) for index in indices]
        yield from _together(model, request, ids, sequences, max_tokens, stats or GenerationStats(), prompt_cache)


def prompt_ids(model: TextModel, request: TextRequest, ids: list[int] | None = None) -> list[int]:
    """Return the token ids of the prompt, at least one; `ids` if they are known already.

    Raises GencliError or UsageError for tokens that the model does not have, and for a prompt beyond all measure.
    """
    if ids is None and request.truncate is None and model.tokenizer.is_longer(request.prompt, model.max_length):
        raise _too_long(model, f"more than {2 * model.max_length}")
    ids = (model.tokenizer.encode(request.prompt) if ids is None else ids) or _beginning(model)
    if max(ids) >= model.vocab_size:
        raise GencliError(
            f"{model.name}: token {max(ids)} of the tokenizer is not among the model's {model.vocab_size}"
        )
    for token, _ in request.sampling.logit_bias:
        if token >= model.vocab_size:
            raise UsageError(f"--logit-bias {token}: the tokens of {model.name} go from 0 to {model.vocab_size - 1}")
    return ids


def fit(model: TextModel, request: TextRequest, ids: list[int]) -> list[int]:
    """Return the ids that fit the context together with an answer. `request` must be resolved.

    Raises GencliError for a prompt that is too long, unless `truncate` allows to remove its beginning: then room is
    made for max_tokens, or for half of the context if that is less.
    """
    context = model.max_length
    if len(ids) < context:
        return ids
    if request.truncate is None:
        raise _too_long(model, str(len(ids)))
    assert request.max_tokens is not None
    keep = context - min(request.max_tokens, max(context // 2, 1))
    begins = ids[:1] if keep > 1 and ids[0] == model.tokenizer.bos_id else []
    return begins + ids[len(ids) - keep + len(begins) :]


def _too_long(model: TextModel, tokens: str) -> GencliError:
    return GencliError(
        f"the prompt has {tokens} tokens, but the context of {model.name} is {model.max_length} for prompt and answer",
        "shorten it, or leave out its beginning with --truncate left",
    )


def _beginning(model: TextModel) -> list[int]:
    """Return the ids of an empty prompt: the token that begins a text, or else one that ends the text before."""
    if model.tokenizer.bos_id is not None:
        return [model.tokenizer.bos_id]
    if model.tokenizer.eos_ids:
        return [model.tokenizer.eos_ids[0]]
    raise GencliError(f"{model.name} knows no token that begins a text", "give it a prompt")


def _together(
    model: TextModel,
    request: TextRequest,
    ids: list[int],
    sequences: list[Sequence],
    max_tokens: int,
    stats: GenerationStats,
    prompt_cache: PromptCache | None,
) -> Iterator[TextDelta | ReasoningDelta | Completion]:
    """Generate samples of one prompt as one batch. Finished ones leave it."""
    clock = time.perf_counter()
    batch = Batch(model.module, request, ids, [sequence.generator for sequence in sequences], max_tokens, prompt_cache)
    picks = batch.pick()
    stats.prompt_tokens += batch.read
    stats.first_tokens += len(sequences)
    stats.prompt_seconds += time.perf_counter() - clock
    while True:
        for sequence, pick in zip(sequences, picks, strict=True):
            yield from sequence.take(pick)
            if sequence.finish_reason:
                yield sequence.completion()
        going = [i for i, sequence in enumerate(sequences) if not sequence.finish_reason]
        if not going:
            return
        clock = time.perf_counter()
        if len(going) < len(sequences):
            sequences = [sequences[i] for i in going]
            batch.keep(going)
        batch.advance()
        picks = batch.pick()
        stats.decode_tokens += len(sequences)
        stats.decode_seconds += time.perf_counter() - clock


class Sequence:
    """One sample: its random generator, and its text so far. reasoning: what to tell from the answer, if anything.

    Stop strings are looked for in the answer alone. One that is the text of a special token ends it at that token, in
    the reasoning too, unless the token marks reasoning.
    """

    def __init__(
        self,
        model: TextModel,
        request: TextRequest,
        index: int,
        ids: list[int],
        max_tokens: int,
        reasoning: Reasoning | None = None,
    ):
        self.index = index
        self.seed = request.seed + index
        self.generator = torch.Generator("cpu").manual_seed(self.seed)
        self.finish_reason = ""
        self.tokenizer = model.tokenizer
        self.prompt_tokens = len(ids)
        self.max_tokens = max_tokens
        self.count = 0
        self.decoder = model.tokenizer.decoder(after=ids)
        self.splitter = Splitter(reasoning) if reasoning else None
        self.scanner = StopScanner(request.stop)
        named = {i: model.tokenizer.raw_piece(i) for i in model.tokenizer.special_ids} if request.stop else {}
        self.ends = {*model.tokenizer.eos_ids, *(i for i, name in named.items() if name in request.stop)}
        self.hidden = {i: name for i, name in named.items() if any(name in stop for stop in request.stop)}
        self.decoded = 0  # characters that the decoder has returned, shown or not
        self.parts: list[str] = []  # of the answer
        self.thought = False
        self.logprobs = None if request.logprobs is None else Logprobs()

    def take(self, pick: Pick) -> list[TextDelta | ReasoningDelta]:
        """Take the next token; return the text that may be shown. Sets `finish_reason` when it is the last."""
        self.count += 1
        token, shown = pick.token, []
        if self.splitter and token in self.splitter.ids:
            shown = self._show(self.decoder.finish())
            if not self.finish_reason and self.splitter.take(token):
                return shown + self._last("length") if self.count == self.max_tokens else shown
        if self.finish_reason:
            return shown
        if token in self.ends:
            return shown + self._last("stop")
        known = token < self.tokenizer.vocab_size  # a padded vocabulary has tokens without text
        if self.logprobs is not None and known:
            name = self.tokenizer.id_to_piece
            top = [(name(i), value) for i, value in pick.top if i < self.tokenizer.vocab_size]
            self.logprobs.add(name(token), pick.logprob, top, self.decoded)
        if token in self.hidden:
            shown += self._show(self.decoder.finish())
            shown += [] if self.finish_reason else self._show("", hidden=self.hidden[token])
        elif known:
            shown += self._show(self.decoder.push(token))
        if not self.finish_reason and self.count == self.max_tokens:
            shown += self._last("length")
        return shown

    def completion(self) -> Completion:
        """Return the whole sample."""
        text, logprobs = "".join(self.parts), self.logprobs
        if self.splitter and logprobs is not None:
            inside = self.splitter.inside is not None
            logprobs = Logprobs() if inside else logprobs_after(logprobs, self.splitter.skipped)
        unanswered = bool(self.thought and not text)
        counts = self.prompt_tokens, self.count
        return Completion(self.index, self.seed, text, self.finish_reason, *counts, logprobs, unanswered)

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
        shown, stopped = self.scanner.push(answer)
        if hidden and not (self.splitter and self.splitter.inside):
            shown, stopped = self.scanner.push(hidden, hidden=True)
        if stopped:
            self.finish_reason = "stop"
        elif last:
            shown += self.scanner.finish()
        self.parts.append(shown)
        if stopped and self.logprobs is not None:
            self.logprobs.cut((self.splitter.skipped if self.splitter else 0) + sum(map(len, self.parts)))
        self.thought = self.thought or bool(thought) or bool(self.splitter and self.splitter.inside)
        deltas = [ReasoningDelta(self.index, thought)] if thought else []
        return [*deltas, TextDelta(self.index, shown)] if shown else [*deltas]

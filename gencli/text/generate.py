"""The text recipe: encode → prefill → pick, decode, show, and again. Yields pieces of text as they are made."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from gencli.errors import GencliError, UsageError
from gencli.text.batch import Batch, Pick
from gencli.text.events import Cut, Event, Piece, Sample, Speed
from gencli.text.load import TextModel
from gencli.text.logprobs import Logprobs
from gencli.text.memory import Memory
from gencli.text.request import TextRequest
from gencli.text.stops import StopScanner

BATCH = 16  # samples that go through the model at once: more take memory, and little time is left to win


def generate(
    model: TextModel,
    request: TextRequest,
    speed: Speed | None = None,
    *,
    ids: list[int] | None = None,
    memory: Memory | None = None,
) -> Iterator[Event]:
    """Continue a prompt. Pieces of several samples come mixed; each sample's `Sample` comes after its last piece.

    `speed` is kept up to date while it runs. ids: the prompt's, where it is encoded already. memory: what the model
    has read before, of which it reads only the rest; of use to a single sample.
    Raises GencliError when the prompt leaves no room in the context (unless `truncate` allows a cut) and when the
    model gives NaN; UsageError for a biased token that the model does not have.
    """
    request = request.resolve(model.generation_config)
    whole = prompt_ids(model, request, ids)
    ids = fit(model, request, whole)
    if len(ids) < len(whole):
        yield Cut(len(whole), len(ids))
    assert request.max_tokens is not None
    max_tokens = min(request.max_tokens, model.max_length - len(ids))
    for first in range(0, request.num_samples, BATCH):
        indices = range(first, min(first + BATCH, request.num_samples))
        rows = [Row(model, request, index, len(ids), max_tokens) for index in indices]
        yield from _together(model, request, ids, rows, max_tokens, speed or Speed(), memory)


def prompt_ids(model: TextModel, request: TextRequest, ids: list[int] | None = None) -> list[int]:
    """The prompt's token ids, one at least; `ids` where they are known already.

    Raises GencliError or UsageError for tokens that the model lacks.
    """
    ids = (model.tokenizer.encode(request.prompt) if ids is None else ids) or _beginning(model)
    if max(ids) >= model.vocab_size:
        raise GencliError(
            f"{model.name}: token {max(ids)} of the tokenizer is not among the model's {model.vocab_size}"
        )
    for token, _ in request.logit_bias:
        if token >= model.vocab_size:
            raise UsageError(f"--logit-bias {token}: the tokens of {model.name} go from 0 to {model.vocab_size - 1}")
    return ids


def fit(model: TextModel, request: TextRequest, ids: list[int]) -> list[int]:
    """The prompt as it fits the context with an answer. `request` has every setting filled in.

    Raises GencliError when it is too long, unless `truncate` allows to leave out its beginning: then room is made for
    max_tokens, or half of the context if that is less.
    """
    context = model.max_length
    if len(ids) < context:
        return ids
    if request.truncate is None:
        raise GencliError(
            f"the prompt has {len(ids)} tokens, but the context of {model.name} is {context} for prompt and answer",
            "shorten it, or leave out its beginning with --truncate left",
        )
    assert request.max_tokens is not None
    keep = context - min(request.max_tokens, max(context // 2, 1))
    begins = ids[:1] if keep > 1 and ids[0] == model.tokenizer.bos_id else []
    return begins + ids[len(ids) - keep + len(begins) :]


def _beginning(model: TextModel) -> list[int]:
    """What an empty prompt stands for: the token that begins a text, or the one that ends the text before."""
    if model.tokenizer.bos_id is not None:
        return [model.tokenizer.bos_id]
    if model.tokenizer.eos_ids:
        return [model.tokenizer.eos_ids[0]]
    raise GencliError(f"{model.name} knows no token that begins a text", "give it a prompt")


def _together(
    model: TextModel,
    request: TextRequest,
    ids: list[int],
    rows: list[Row],
    max_tokens: int,
    speed: Speed,
    memory: Memory | None,
) -> Iterator[Piece | Sample]:
    """Samples of one prompt as one batch. Finished ones leave it."""
    clock = time.perf_counter()
    batch = Batch(model, request, ids, [row.generator for row in rows], max_tokens, memory)
    picks = batch.pick()
    speed.prompt_tokens += batch.read
    speed.first_tokens += len(rows)
    speed.prompt_seconds += time.perf_counter() - clock
    while True:
        for row, pick in zip(rows, picks, strict=True):
            if text := row.take(pick):
                yield Piece(row.index, text)
            if row.finish_reason:
                yield row.sample()
        going = [i for i, row in enumerate(rows) if not row.finish_reason]
        if not going:
            return
        clock = time.perf_counter()
        if len(going) < len(rows):
            rows = [rows[i] for i in going]
            batch.keep(going)
        batch.advance()
        picks = batch.pick()
        speed.decode_tokens += len(rows)
        speed.decode_seconds += time.perf_counter() - clock


class Row:
    """One sample: its generator, and its text as far as it has come."""

    def __init__(self, model: TextModel, request: TextRequest, index: int, prompt_tokens: int, max_tokens: int):
        self.index = index
        self.seed = request.seed + index
        self.generator = torch.Generator("cpu").manual_seed(self.seed)
        self.finish_reason = ""
        self.tokenizer = model.tokenizer
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.count = 0
        self.decoder = model.tokenizer.decoder()
        self.scanner = StopScanner(request.stop)
        self.decoded = 0  # characters that the decoder has given, shown or not
        self.parts: list[str] = []
        self.logprobs = None if request.logprobs is None else Logprobs()

    def take(self, pick: Pick) -> str:
        """The next token → text that may be shown. Sets `finish_reason` when it is the last."""
        self.count += 1
        if pick.token in self.tokenizer.eos_ids:
            self.finish_reason = "stop"
            return self._show(self.decoder.finish(), last=True)
        known = pick.token < self.tokenizer.vocab_size  # a padded vocabulary has tokens that stand for nothing
        if self.logprobs is not None and known:
            name = self.tokenizer.id_to_piece
            top = [(name(i), value) for i, value in pick.top if i < self.tokenizer.vocab_size]
            self.logprobs.add(name(pick.token), pick.logprob, top, self.decoded)
        text = self.decoder.push(pick.token) if known else ""
        if self.count < self.max_tokens:
            return self._show(text)
        self.finish_reason = "length"
        return self._show(text + self.decoder.finish(), last=True)

    def sample(self) -> Sample:
        """The sample as a whole."""
        text = "".join(self.parts)
        return Sample(self.index, self.seed, text, self.finish_reason, self.prompt_tokens, self.count, self.logprobs)

    def _show(self, text: str, *, last: bool = False) -> str:
        """What of the decoded text may be shown, now that this much more of it is known."""
        self.decoded += len(text)
        shown, stopped = self.scanner.push(text)
        if stopped:
            self.finish_reason = "stop"
        elif last:
            shown += self.scanner.finish()
        self.parts.append(shown)
        if stopped and self.logprobs is not None:
            self.logprobs.cut(sum(map(len, self.parts)))
        return shown

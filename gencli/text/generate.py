"""The text recipe: encode → prefill → (sample, detokenize, check stops, decode) … Yields text as it is made."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from gencli.errors import ContextError, GencliError, UsageError
from gencli.text.batch import Batch, Picked
from gencli.text.events import (
    CharactersLost,
    Completion,
    Event,
    Failed,
    GenerationStats,
    MessagesLeftOut,
    PromptTruncated,
    ReasoningDelta,
    TextDelta,
)
from gencli.text.load import TextModel
from gencli.text.prompt_cache import PromptCache
from gencli.text.reasoning import Reasoning
from gencli.text.request import TextRequest
from gencli.text.sequence import Sequence, constraint_of
from gencli.text.speculation import Guesser

if TYPE_CHECKING:
    from typing_extensions import Unpack

BATCH = 16  # texts per forward pass: more of them take memory and save little time


class How(TypedDict, total=False):
    """The further arguments of `generate_all`."""

    batch: int
    ready: Callable[[], bool]
    prompt_cache: PromptCache | None
    guesser: Guesser | None


@dataclass(frozen=True)
class Job:
    """A prompt to continue. ids: of the prompt, if it is encoded already. reasoning: the marks of reasoning before an
    answer, which becomes events of its own. lost, left_out: how many characters of the prompt, and how many messages of
    its conversation, are not among the ids. problem: why there is no prompt. wanted: whether anyone still waits for it;
    if not, it fails."""

    request: TextRequest
    ids: list[int] | None = None
    reasoning: Reasoning | None = None
    lost: int = 0
    left_out: int = 0
    problem: GencliError | None = None
    wanted: Callable[[], bool] = lambda: True


def generate(
    model: TextModel,
    request: TextRequest,
    stats: GenerationStats | None = None,
    *,
    ids: list[int] | None = None,
    reasoning: Reasoning | None = None,
    lost: int = 0,
    **how: Unpack[How],
) -> Iterator[Event]:
    """Continue one prompt, as `generate_all` does several. For ids, reasoning and lost see `Job`.

    Raises GencliError when the prompt leaves no room in the context (unless `truncate` allows a cut) and when the
    model returns NaN; UsageError for a `logit_bias` token that the model does not have.
    """
    for event in generate_all(model, [Job(request, ids, reasoning, lost)], stats, **how):
        if isinstance(event, Failed):
            raise event.error
        yield event


def generate_all(
    model: TextModel,
    jobs: Iterable[Job],
    stats: GenerationStats | None = None,
    *,
    batch: int = BATCH,
    ready: Callable[[], bool] = lambda: True,
    prompt_cache: PromptCache | None = None,
    guesser: Guesser | None = None,
) -> Generator[Event, None, None]:
    """Continue prompts, `batch` texts at a time: one that ends makes room for the next at once.

    The events of several texts are mixed; a text's `Completion` comes after all of its own. Event i of job j has the
    index j * num_samples + i, which must be the same number for all jobs, as must all settings but the seed, the length
    and the stops. A job that fails is `Failed`, and the others go on. ready: whether the next job can be had without
    waiting for it. stats: updated while it runs. prompt_cache: what the model has read before, so that it reads only
    the rest. guesser: what guesses tokens ahead.
    """
    stats, running = stats or GenerationStats(), list[Sequence]()
    waiting = _Waiting(model, jobs, ready)
    together: Batch | None = None
    while True:
        while len(running) < batch and (item := waiting.next(wait=not running)) is not None:
            if not isinstance(item, Sequence):
                yield item
                continue
            together = together or Batch(model.module, item.request, prompt_cache, guesser)
            if not together.has_room(len(item.ids), item.max_tokens):
                waiting.held = item
                break
            clock = time.perf_counter()
            picked, read = together.add(item.ids, item.generator, item.max_tokens, item.constraint)
            stats.prompt_tokens += read
            stats.first_tokens += 1
            stats.prompt_seconds += time.perf_counter() - clock
            running.append(item)
            yield from _taken(together, running, waiting, {len(running) - 1: picked}, stats)
        if not running or together is None:
            return
        clock = time.perf_counter()
        steps = together.step()
        stats.decode_tokens += sum(len(picks) for picks in steps if isinstance(picks, list))
        stats.decode_seconds += time.perf_counter() - clock
        yield from _taken(together, running, waiting, dict(enumerate(steps)), stats)


def _taken(
    batch: Batch, running: list[Sequence], waiting: _Waiting, picked: Mapping[int, Picked], stats: GenerationStats
) -> Iterator[TextDelta | ReasoningDelta | Completion | Failed]:
    """Give texts their tokens, by number, and let go those that end."""
    ended, failed = set[int](), dict[int, GencliError]()
    for number, picks in picked.items():
        sequence = running[number]
        if isinstance(picks, GencliError) or not sequence.wanted():
            problem = picks if isinstance(picks, GencliError) else GencliError("nobody waits for it any more")
            failed.setdefault(sequence.job, problem)
            continue
        for at, pick in enumerate(picks):
            yield from sequence.take(pick)
            if sequence.finish_reason:
                stats.decode_tokens -= len(picks) - at - 1  # that were guessed beyond the end
                yield sequence.completion()
                ended.add(number)
                break
    for number, sequence in enumerate(running):
        if sequence.job in failed and number not in ended:
            ended.add(number)
    for job, error in failed.items():
        waiting.skip(job)
        of_job = [one for number, one in enumerate(running) if one.job == job and number in ended]
        left = [one.index for one in of_job if not one.finish_reason]
        yield Failed(min(left), error, (job + 1) * of_job[0].request.num_samples, at_work=True)
    for number in sorted(ended, reverse=True):
        batch.remove(number)
        running[number] = running[-1]
        running.pop()


class _Waiting:
    """What is to be generated: the sequences of one job after the other, and what there is to say of a job."""

    def __init__(self, model: TextModel, jobs: Iterable[Job], ready: Callable[[], bool]):
        self.model, self.ready = model, ready
        self.jobs = enumerate(jobs)
        self.items: Iterator[Event | Sequence] = iter(())
        self.held: Sequence | None = None
        self.job = -1

    def next(self, *, wait: bool) -> Event | Sequence | None:
        """Return the next one; None if there is none, or none without waiting where that is not wished."""
        if self.held is not None:
            held, self.held = self.held, None
            return held
        while (item := next(self.items, None)) is None:
            if not (wait or self.ready()) or (job := next(self.jobs, None)) is None:
                return None
            self.job, self.items = job[0], _prepared(self.model, *job)
        return item

    def skip(self, job: int) -> None:
        """Leave out what is left of a job."""
        if job == self.job:
            self.items, self.held = iter(()), None


def _prepared(model: TextModel, number: int, job: Job) -> Iterator[Event | Sequence]:
    """What there is to say of a job, and its sequences."""
    first = number * job.request.num_samples
    try:
        if job.problem is not None:
            raise job.problem
        request = job.request.resolve(model.generation_config)
        whole = prompt_ids(model, request, job.ids)
        lost = model.tokenizer.lost(request.prompt) if job.ids is None else job.lost
        ids = fit(model, request, whole)
        constraint_of(model, request, job.reasoning)
    except GencliError as error:
        yield Failed(first, error, first + job.request.num_samples)
        return
    if job.left_out:
        yield MessagesLeftOut(job.left_out, first)
    if lost:
        yield CharactersLost(lost, first)
    if len(ids) < len(whole):
        yield PromptTruncated(len(whole), len(ids), first)
    assert request.max_tokens is not None
    max_tokens = min(request.max_tokens, model.max_length - len(ids))
    if request.max_length is not None:
        max_tokens = min(max_tokens, max(request.max_length - len(ids), 1))
    sampling = dataclasses.replace(request.sampling, eos_ids=model.tokenizer.eos_ids)
    if request.form is not None or request.tools is not None:  # where a text may and has to end is the grammar's to say
        sampling = dataclasses.replace(sampling, min_length=None, min_new_tokens=None, forced_eos_token_id=None)
    request = dataclasses.replace(request, sampling=sampling)
    for sample in range(request.num_samples):
        yield Sequence(model, request, number, sample, ids, max_tokens, job.reasoning, job.wanted)


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
    return ContextError(
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

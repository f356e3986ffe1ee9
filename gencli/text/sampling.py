"""Logits → token, over float32 logits (B, V), in the order of transformers' processors.

Every field of `SamplingParams` is applied by one function, which is registered here under the field's name; they are
applied in the order of this file. A filter sets what it excludes to -inf. After top-k only the k candidates are carried
on, in the order of their ids, so that the filters behind it sort k numbers and not the vocabulary. B: rows, V:
vocabulary, K: candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from gencli.errors import GencliError
from gencli.options import rows
from gencli.text.request import SamplingParams

OFF = {name: option.off for name, option in rows(SamplingParams)}  # values that change nothing
EXTREME = 1e30  # factors and biases beyond it act as it does; float32 would make infinities and NaN of them
HEAD = 1024  # candidates that top-p looks at before it sorts a whole vocabulary


class Candidates(NamedTuple):
    """What may still be picked: logits (B, K) and the token ids (B, K) they belong to; ids None: all V, in order.

    context (B, T): ids of prompt and generated tokens; generated (B, G): of generated tokens. None where they are of no
    use. eos_ids: the tokens that end a text. max_tokens: the most that are generated.
    """

    logits: Tensor
    ids: Tensor | None = None
    context: Tensor | None = None
    generated: Tensor | None = None
    eos_ids: tuple[int, ...] = ()
    max_tokens: int | None = None

    @property
    def num_generated(self) -> int:
        """How many tokens were generated."""
        return 0 if self.generated is None else self.generated.shape[1]

    def without(self, ids: Sequence[int]) -> Candidates:
        """Return these with some tokens excluded; ids that the vocabulary lacks exclude nothing."""
        known = [i for i in ids if i < self.logits.shape[-1]]
        return self._replace(
            logits=self.logits.index_fill(1, torch.tensor(known, device=self.logits.device).long(), -torch.inf)
        )


class Logprobs(NamedTuple):
    """Natural log-probabilities: of the chosen tokens (B,); of the n most likely, best first, (B, n) with their ids."""

    chosen: Tensor
    top: Tensor
    top_ids: Tensor


Processor = Callable[[Candidates, Any], Candidates]
LogitsProcessor = Callable[[Tensor, Any], Tensor]
PROCESSORS: dict[str, Processor] = {}  # field of SamplingParams → what applies it


def processor(field: str) -> Callable[[Processor], Processor]:
    """Register a function of candidates and the value of a field of `SamplingParams`."""

    def register(function: Processor) -> Processor:
        PROCESSORS[field] = function
        return function

    return register


def logits_processor(field: str) -> Callable[[LogitsProcessor], LogitsProcessor]:
    """Register a function of logits (B, K) and the value of a field of `SamplingParams` that gives new logits."""

    def register(function: LogitsProcessor) -> LogitsProcessor:
        PROCESSORS[field] = lambda found, value: found._replace(logits=function(found.logits, value))
        return function

    return register


def sample(
    logits: Tensor,
    generators: Sequence[Generator],
    params: SamplingParams,
    context: Tensor | None = None,
    generated: Tensor | None = None,
) -> Tensor:
    """Pick a token for each row from logits (B, V). Return ids (B,). For the arguments and errors see `candidates`.

    Temperature 0 is the most likely token after bias and penalties, and draws nothing from the generators.
    """
    found = candidates(logits, params, context, generated)
    if params.temperature == 0 and found.ids is not None:
        return found.ids[:, 0]
    picked = pick(found.logits, generators)
    return picked if found.ids is None else found.ids.gather(1, picked[:, None])[:, 0]


def candidates(
    logits: Tensor, params: SamplingParams, context: Tensor | None = None, generated: Tensor | None = None
) -> Candidates:
    """Apply every parameter that is on to logits (B, V). A parameter that is None is off.

    context (B, T): ids of prompt and generated tokens, which `repeat_penalty` looks at; generated (B, G): of generated
    tokens, which the OpenAI penalties count. Each is needed only when its penalty is on.
    Raise GencliError for logits that are NaN or infinite, and for a bias outside of the vocabulary.
    """
    found = Candidates(logits.float(), None, context, generated, params.eos_ids, params.max_tokens)
    check(found.logits)
    for name, process in PROCESSORS.items():
        value = getattr(params, name)
        if value is not None and value != OFF[name]:
            found = process(found, value)
        if found.ids is not None and found.ids.shape[-1] == 1:
            break  # nothing is left to choose
    return found


def check(logits: Tensor) -> None:
    """Raises GencliError unless every row has a finite largest logit, which is also false when any is NaN."""
    top = logits.amax(-1)
    if torch.isfinite(top).all():
        return
    if torch.isnan(top).any():
        raise GencliError("the model's logits are NaN", "broken weights, or a precision too low: try --dtype float32")
    if (top == torch.inf).any():
        raise GencliError(
            "the model's logits are infinite", "broken weights, or a precision too low: try --dtype float32"
        )
    hint = "by a --logit-bias of -inf, or by the checkpoint's own suppress_tokens, bad_words_ids and the like"
    raise GencliError("no token is left to pick: every one is excluded", hint)


def tame(value: float) -> float:
    """Return a bias within what float32 can add up; -inf, which bans, stays."""
    return value if value == -torch.inf else min(max(value, -EXTREME), EXTREME)


def tame_factor(value: float) -> float:
    """Return a positive factor by which float32 can multiply and divide."""
    return min(max(value, 1 / EXTREME), EXTREME)


@logits_processor("logit_bias")
def add_bias(logits: Tensor, bias: Sequence[tuple[int, float]]) -> Tensor:
    """Add to the logits of single tokens; of two biases for one token the last counts. -inf bans a token."""
    values = {token: tame(value) for token, value in bias}
    vocab_size = logits.shape[-1]
    if outside := [token for token in values if not 0 <= token < vocab_size]:
        raise GencliError(f"logit bias for token {outside[0]}, but the model's vocabulary has {vocab_size} tokens")
    ids = torch.tensor(list(values), device=logits.device)
    return logits.index_add(1, ids, torch.tensor(list(values.values()), device=logits.device).expand(len(logits), -1))


@processor("sequence_bias")
def bias_sequences(found: Candidates, biases: Sequence[tuple[Sequence[int], float]]) -> Candidates:
    """Add a bias to the last token of a sequence wherever the tokens before it are there; of equals the last counts."""
    rows, vocab_size = len(found.logits), found.logits.shape[-1]
    bias = torch.zeros_like(found.logits)
    for sequence, value in {tuple(sequence): tame(value) for sequence, value in biases}.items():
        if max(sequence) >= vocab_size:
            raise GencliError(
                f"a bias or ban of token {max(sequence)}, but the model's vocabulary has {vocab_size} tokens"
            )
        before = torch.tensor(sequence[:-1], device=bias.device)
        if len(before) == 0:
            bias[:, sequence[-1]] += value
        elif found.context is not None and len(before) <= found.context.shape[1]:
            at = (found.context[:, -len(before) :] == before).all(1)
            bias[:, sequence[-1]] += torch.where(at, torch.full((rows,), float(value), device=bias.device), 0.0)
    return found._replace(logits=found.logits + bias)


@processor("repeat_penalty")
def _repeat_penalty(found: Candidates, penalty: float) -> Candidates:
    if found.context is None:
        return found
    return found._replace(logits=penalize_repetition(found.logits, found.context, penalty))


def penalize_repetition(logits: Tensor, context: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of every token in `context` (B, T) (CTRL, Keskar et al. 2019)."""
    seen, penalty = logits.gather(1, context), tame_factor(penalty)
    return logits.scatter(1, context, torch.where(seen < 0, seen * penalty, seen / penalty))


@processor("frequency_penalty")
def penalize_frequency(found: Candidates, penalty: float) -> Candidates:
    """Subtract the penalty for each time that a token was generated (OpenAI's API)."""
    return found if found.generated is None else found._replace(logits=found.logits - penalty * _counts(found))


@processor("presence_penalty")
def penalize_presence(found: Candidates, penalty: float) -> Candidates:
    """Subtract the penalty once from tokens that were generated (OpenAI's API)."""
    return found if found.generated is None else found._replace(logits=found.logits - penalty * (_counts(found) > 0))


def _counts(found: Candidates) -> Tensor:
    """How often each token (B, V) was generated."""
    logits, generated = found.logits, found.generated
    assert generated is not None
    return torch.zeros_like(logits).scatter_add(1, generated, torch.ones_like(generated, dtype=logits.dtype))


@processor("no_repeat_ngram_size")
def ban_repeated_ngrams(found: Candidates, size: int) -> Candidates:
    """Exclude tokens that would complete n tokens in a row that the text has already (Paulus et al. 2017)."""
    if found.context is None or found.context.shape[1] + 1 < size:
        return found
    length, logits = found.context.shape[1], found.logits.clone()
    for row, ids in enumerate(found.context.tolist()):
        last = ids[length - size + 1 :]
        logits[row, [ids[i + size - 1] for i in range(length - size + 1) if ids[i : i + size - 1] == last]] = -torch.inf
    return found._replace(logits=logits)


@processor("bad_words_ids")
def ban_sequences(found: Candidates, sequences: Sequence[Sequence[int]]) -> Candidates:
    """Exclude the last token of each sequence after the tokens before it. Tokens that end a text are never excluded."""
    kept = [one for one in sequences if not (len(one) == 1 and one[0] in found.eos_ids)]
    return bias_sequences(found, [(one, -torch.inf) for one in kept]) if kept else found


@processor("min_length")
def _min_length(found: Candidates, length: int) -> Candidates:
    return found.without(found.eos_ids) if found.context is not None and found.context.shape[1] < length else found


@processor("min_new_tokens")
def _min_new_tokens(found: Candidates, count: int) -> Candidates:
    return found.without(found.eos_ids) if found.num_generated < count else found


@processor("forced_eos_token_id")
def force_end(found: Candidates, ids: int | Sequence[int]) -> Candidates:
    """Leave only these tokens where the last one is picked."""
    if found.max_tokens is None or found.num_generated != found.max_tokens - 1:
        return found
    only = torch.full_like(found.logits, -torch.inf)
    only[:, [i for i in ([ids] if isinstance(ids, int) else ids) if i < only.shape[-1]]] = 0
    return found._replace(logits=only)


@processor("exponential_decay_length_penalty")
def raise_end(found: Candidates, start_and_factor: tuple[int, float]) -> Candidates:
    """Make the end likelier with each token after the first `start`, exponentially."""
    start, factor = start_and_factor
    ids = [i for i in found.eos_ids if i < found.logits.shape[-1]]
    if found.num_generated <= start or not ids:
        return found
    logits = found.logits.clone()
    ends = logits[:, ids]
    power = min((found.num_generated - start) * math.log(factor), math.log(EXTREME))
    more = ends.abs() * (math.exp(power) - 1)
    logits[:, ids] = ends + more.masked_fill(~torch.isfinite(ends), 0)
    return found._replace(logits=logits)


@processor("suppress_tokens")
def _suppress(found: Candidates, ids: Sequence[int]) -> Candidates:
    return found.without(ids)


@processor("begin_suppress_tokens")
def _suppress_first(found: Candidates, ids: Sequence[int]) -> Candidates:
    return found.without(ids) if found.num_generated == 0 else found


@processor("temperature")
def _temperature(found: Candidates, temperature: float) -> Candidates:
    """At 0 the most likely token is the only one left, the first of equals."""
    if temperature != 0:
        return found._replace(logits=scale(found.logits, temperature))
    check(found.logits)
    best = found.logits.argmax(-1, keepdim=True)
    return found._replace(logits=found.logits.gather(1, best), ids=best)


def scale(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature, the largest logit moved to 0 before: a tiny temperature is greedy and not infinite."""
    return (logits - logits.amax(-1, keepdim=True)) / tame_factor(temperature)


def top_ids(logits: Tensor, k: int) -> Tensor:
    """Ids (B, k) of exactly the k largest logits, in ascending order; of equals the lower id is taken."""
    values, ids = logits.topk(min(k + 1, logits.shape[-1]))
    if values.shape[-1] <= k or not (values[:, k] == values[:, k - 1]).any():
        return ids[:, :k].sort(-1).values
    border = values[:, k - 1 : k]  # a tie at the border, common in bfloat16, which topk breaks anyhow
    above, at = logits > border, logits == border
    keep = above | (at & (at.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
    return keep.nonzero()[:, 1].view(-1, k)


@processor("top_k")
def _top_k(found: Candidates, k: int) -> Candidates:
    if k >= found.logits.shape[-1]:
        return found
    ids = top_ids(found.logits, k)
    return found._replace(logits=found.logits.gather(1, ids), ids=ids)


@processor("top_p")
def _top_p(found: Candidates, p: float) -> Candidates:
    logits, ids = found.logits, found.ids
    total = _mass(logits).sum(-1, keepdim=True)
    if ids is None and logits.shape[-1] > 4 * HEAD:
        head = top_ids(logits, HEAD)
        if (_mass(logits.gather(1, head)).sum(-1, keepdim=True) >= p * total).all():
            logits, ids = logits.gather(1, head), head
    return found._replace(logits=keep_top_p(logits, p, total), ids=ids)


def keep_top_p(logits: Tensor, p: float, total: Tensor | None = None) -> Tensor:
    """Keep the smallest set of most likely tokens that has the mass p, at least one (Holtzman et al. 2019).

    Of equals the lower id is kept first. total (B, 1): the mass that p is a part of, when `logits` are only the most
    likely ones of more, in units of the largest: sum of exp(logit - largest logit).
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    mass = _mass(ordered)
    before = mass.cumsum(-1) - mass  # of all tokens that are more likely
    drop = before >= p * (mass.sum(-1, keepdim=True) if total is None else total)
    drop[:, 0] = False
    return logits.masked_fill(torch.empty_like(drop).scatter_(1, order, drop), -torch.inf)


def _mass(logits: Tensor) -> Tensor:
    """Probabilities in units of the largest, in float64 for exact sums."""
    return (logits - logits.amax(-1, keepdim=True)).exp().double()


@logits_processor("min_p")
def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as likely as the most likely one (Nguyen et al. 2024)."""
    probs = logits.softmax(-1)
    return logits.masked_fill(probs < p * probs.amax(-1, keepdim=True), -torch.inf)


@logits_processor("typical_p")
def keep_typical_p(logits: Tensor, p: float) -> Tensor:
    """Keep the mass p of tokens whose surprise is nearest to the entropy, equals with them (Meister et al. 2022)."""
    logprobs = logits.log_softmax(-1)
    probs = logprobs.exp()
    entropy = -(logprobs * probs).nansum(-1, keepdim=True)  # 0 · -inf is 0 here
    distance = (-logprobs - entropy).abs()
    nearest, order = distance.sort(dim=-1, stable=True)
    last = (probs.gather(1, order).cumsum(-1) < p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(distance > nearest.gather(1, last), -torch.inf)


def pick(logits: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Draw one index (B,) from the softmax of each row (B, K), with the row's own CPU generator.

    One number is drawn a row, so a row's picks depend neither on the other rows nor on the device.
    Raises GencliError when a row has NaN, an infinite logit or nothing to pick from.
    """
    check(logits)
    draws = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    mass = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = mass[:, -1:]
    # Below the total even where the product rounds up: the first place above it then has a probability.
    point = torch.minimum(draws.to(mass.device)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(mass, point, right=True)[:, 0]


def logprobs(logits: Tensor, chosen: Tensor, n: int = 0) -> Logprobs:
    """Log-probabilities of the chosen tokens (B,) and of the n most likely, under the model's own logits (B, V).

    Give the logits before any processing: as in OpenAI's API, the report is on the model and not on the settings.
    """
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    ids = top_ids(logits, n) if n else chosen.new_empty((len(logits), 0))
    top, order = (logits.gather(1, ids) - total).sort(dim=-1, descending=True, stable=True)
    return Logprobs((logits.gather(1, chosen[:, None]) - total)[:, 0], top, ids.gather(1, order))

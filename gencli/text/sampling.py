"""Logits → token: pure functions over float32 logits (B, V), composed in the order of transformers' processors.

A filter sets what it excludes to -inf. After top-k only the k candidates are carried on, in the order of their ids,
so that the filters behind it sort k numbers and not the vocabulary. B: rows, V: vocabulary, K: candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from gencli.errors import GencliError

HEAD = 1024  # candidates that top-p looks at before it sorts a whole vocabulary


class Candidates(NamedTuple):
    """What may still be picked: logits (B, K) and the token ids (B, K) they belong to; ids None: all V, in order."""

    logits: Tensor
    ids: Tensor | None


class Logprobs(NamedTuple):
    """Natural log-probabilities: of the chosen tokens (B,); of the n most likely, best first, (B, n) with their ids."""

    chosen: Tensor
    top: Tensor
    top_ids: Tensor


def sample(logits: Tensor, generators: Sequence[Generator], *, temperature: float = 1.0, **settings) -> Tensor:
    """Pick a token for each row: `process`, then `pick`. Returns ids (B,). Arguments and errors as theirs.

    Temperature 0 is the most likely token after bias and penalties, and draws nothing from the generators.
    """
    found = candidates(logits, temperature=temperature, **settings)
    if temperature == 0 and found.ids is not None:
        return found.ids[:, 0]
    picked = pick(found.logits, generators)
    return picked if found.ids is None else found.ids.gather(1, picked[:, None])[:, 0]


def process(logits: Tensor, **settings) -> Tensor:
    """Logits (B, V) after everything that `candidates` does, excluded tokens at -inf; their softmax is sampled from."""
    found = candidates(logits, **settings)
    if found.ids is None:
        return found.logits
    return torch.full_like(logits, -torch.inf, dtype=torch.float32).scatter(1, found.ids, found.logits)


def candidates(
    logits: Tensor,
    *,
    context: Tensor | None = None,
    generated: Tensor | None = None,
    logit_bias: Sequence[tuple[int, float]] = (),
    repeat_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
) -> Candidates:
    """Bias, penalties, temperature, top-k, top-p, min-p, typical-p, in this order; the defaults leave all as it is.

    context (B, T): ids of prompt and generated tokens, which `repeat_penalty` looks at; generated (B, G): of generated
    tokens, which the OpenAI penalties count. Each is needed only when its penalty is on.
    Raises GencliError for logits that are NaN or infinite, and for a bias outside of the vocabulary.
    """
    logits = logits.float()
    check(logits)
    if logit_bias:
        logits = add_bias(logits, logit_bias)
    if repeat_penalty != 1 and context is not None:
        logits = penalize_repetition(logits, context, repeat_penalty)
    if (presence_penalty or frequency_penalty) and generated is not None:
        logits = penalize_presence(logits, generated, presence_penalty, frequency_penalty)
    if temperature == 0:
        check(logits)
        best = logits.argmax(-1, keepdim=True)  # the first of equals
        return Candidates(logits.gather(1, best), best)
    if temperature != 1:
        logits = scale(logits, temperature)
    ids = None
    if 0 < top_k < logits.shape[-1]:
        ids = top_ids(logits, top_k)
        logits = logits.gather(1, ids)
    if top_p < 1:
        total = _mass(logits).sum(-1, keepdim=True)
        if ids is None and logits.shape[-1] > 4 * HEAD:
            head = top_ids(logits, HEAD)
            if (_mass(logits.gather(1, head)).sum(-1, keepdim=True) >= top_p * total).all():
                logits, ids = logits.gather(1, head), head
        logits = keep_top_p(logits, top_p, total)
    if min_p > 0:
        logits = keep_min_p(logits, min_p)
    if typical_p < 1:
        logits = keep_typical_p(logits, typical_p)
    return Candidates(logits, ids)


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
    raise GencliError("no token is left to pick: every one is excluded", "is it a --logit-bias of -inf for all?")


def add_bias(logits: Tensor, bias: Sequence[tuple[int, float]]) -> Tensor:
    """Add to the logits of single tokens; of two biases for one token the last counts. -inf bans a token."""
    values = dict(bias)
    vocab_size = logits.shape[-1]
    if outside := [token for token in values if not 0 <= token < vocab_size]:
        raise GencliError(f"logit bias for token {outside[0]}, but the model's vocabulary has {vocab_size} tokens")
    ids = torch.tensor(list(values), device=logits.device)
    return logits.index_add(1, ids, torch.tensor(list(values.values()), device=logits.device).expand(len(logits), -1))


def penalize_repetition(logits: Tensor, context: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of every token in `context` (B, T) (CTRL, Keskar et al. 2019)."""
    seen = logits.gather(1, context)
    return logits.scatter(1, context, torch.where(seen < 0, seen * penalty, seen / penalty))


def penalize_presence(logits: Tensor, generated: Tensor, presence: float, frequency: float) -> Tensor:
    """Subtract `presence` once and `frequency` for each time that a token is in `generated` (B, G) (OpenAI's API)."""
    counts = torch.zeros_like(logits).scatter_add(1, generated, torch.ones_like(generated, dtype=logits.dtype))
    return logits - frequency * counts - presence * (counts > 0)


def scale(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature, the largest logit moved to 0 before: a tiny temperature is greedy and not infinite."""
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def top_ids(logits: Tensor, k: int) -> Tensor:
    """Ids (B, k) of exactly the k largest logits, in ascending order; of equals the lower id is taken."""
    values, ids = logits.topk(min(k + 1, logits.shape[-1]))
    if values.shape[-1] <= k or not (values[:, k] == values[:, k - 1]).any():
        return ids[:, :k].sort(-1).values
    border = values[:, k - 1 : k]  # a tie at the border, common in bfloat16, which topk breaks anyhow
    above, at = logits > border, logits == border
    keep = above | (at & (at.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
    return keep.nonzero()[:, 1].view(-1, k)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep exactly the k largest logits; of equals the lower id is kept."""
    if not 0 < k < logits.shape[-1]:
        return logits
    ids = top_ids(logits, k)
    return torch.full_like(logits, -torch.inf).scatter(1, ids, logits.gather(1, ids))


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


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as likely as the most likely one (Nguyen et al. 2024)."""
    probs = logits.softmax(-1)
    return logits.masked_fill(probs < p * probs.amax(-1, keepdim=True), -torch.inf)


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

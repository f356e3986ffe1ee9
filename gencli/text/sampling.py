"""Logits → token, over float32 logits (B, V), in the order of transformers' processors.

Every field of `SamplingParams` is applied by one function, which is registered under the field's name: those of
`gencli.text.penalties` first, then those of this file, in their order. A filter sets what it excludes to -inf. After
top-k, which no temperature changes, only the k candidates are carried on, in the order of their ids, so that what comes
behind it works on k numbers and not the vocabulary. B: rows, V: vocabulary, K: candidates.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

import gencli.text.penalties  # noqa: F401 (registers what comes first)
from gencli.errors import GencliError
from gencli.kernels import library
from gencli.options import rows
from gencli.text.candidates import PROCESSORS, Candidates, logits_processor, processor, tame_factor
from gencli.text.request import SamplingParams

OFF = {name: option.off for name, option in rows(SamplingParams)}  # values that change nothing
DOUBT = "the weights or a LoRA may be broken; or half precision may have overflowed, which float32 does not (--dtype)"
# what needs the logits alone, and so is the same for several rows at once
ALONE = {"logit_bias", "suppress_tokens", "top_k", "temperature", "top_p", "min_p", "typical_p"}
QUICK, MOST = {"top_k", "temperature", "top_p", "min_p"}, 1024  # what the C library samples by, and its most candidates
HEAD = 1024  # candidates that top-p looks at before it sorts a whole vocabulary


class Logprobs(NamedTuple):
    """Natural log-probabilities: of the chosen tokens (B,); of the n most likely, best first, (B, n) with their ids."""

    chosen: Tensor
    top: Tensor
    top_ids: Tensor


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
    if (quick := _by_library(logits, generators, params)) is not None:
        return quick
    found = candidates(logits, params, context, generated)
    if params.temperature == 0 and found.ids is not None:
        return found.ids[:, 0]
    picked = pick(found.logits, generators)
    return picked if found.ids is None else found.ids.gather(1, picked[:, None])[:, 0]


def _by_library(logits: Tensor, generators: Sequence[Generator], params: SamplingParams) -> Tensor | None:
    """As `sample`, by the C library, equal but for the rounding of float32. None where a parameter is on that it does
    not know, or a row has nothing to pick from: then nothing was drawn."""
    kernels, some = library(), _quick(logits, params)
    if kernels is None or some is None:
        return None
    greedy = params.temperature == 0
    states = [one.get_state() for one in generators] if len(generators) > 1 and not greedy else []
    tokens, address, size = list[int](), logits.data_ptr(), logits.shape[-1]
    for row, generator in enumerate(generators):
        draw = 0.0 if greedy else torch.rand((), generator=generator, dtype=torch.float64).item()
        tokens.append(kernels.sample(address + 4 * size * row, size, *some, draw))
        if tokens[-1] < 0:
            for one, state in zip(generators, states, strict=False):
                one.set_state(state)
            return None
    return torch.tensor(tokens)


def masses(logits: Tensor, params: SamplingParams) -> dict[int, float] | None:
    """Return the tokens that may be picked from logits (1, V), in order, and how likely each is in units of the
    likeliest, by the C library. None as in `_by_library`."""
    kernels, some = library(), _quick(logits, params)
    if kernels is None or some is None:
        return None
    ids, found = (ctypes.c_int64 * some[0])(), (ctypes.c_double * some[0])()
    count = kernels.candidates(logits.data_ptr(), logits.shape[-1], *some, ids, found)
    return None if count < 0 else {id: mass for id, mass in zip(ids[:count], found[:count], strict=True) if mass > 0}


def _quick(logits: Tensor, params: SamplingParams) -> tuple[int, float, float, float] | None:
    """Return top-k, temperature, top-p and min-p as the library has them. None where it does not know a parameter that
    is on, or cannot read the logits."""
    greedy, k = params.temperature == 0, params.top_k or 0
    read = logits.is_cpu and logits.dtype is torch.float32 and logits.is_contiguous()
    if not read or not (greedy or 0 < k <= MOST) or _needs_more(params):
        return None
    temperature = 1.0 if greedy or params.temperature is None else tame_factor(params.temperature)
    return (1, 1.0, 1.0, 0.0) if greedy else (k, temperature, _or(params.top_p, 1.0), params.min_p or 0.0)


def _or(value: float | None, usual: float) -> float:
    return usual if value is None else value


_last: tuple[SamplingParams | None, bool] = (None, False)


def _needs_more(params: SamplingParams) -> bool:
    """Return whether a parameter is on that the library's `sample` does not know."""
    global _last
    known, needs = _last
    if known is not params:
        needs = not QUICK.issuperset(_given(params))
        _last = (params, needs)
    return needs


def _given(params: SamplingParams) -> Iterator[str]:
    """Yield the names of the parameters that are on."""
    return (name for name in PROCESSORS if getattr(params, name) not in (None, OFF[name]))


def looks_back(params: SamplingParams) -> bool:
    """Return whether a parameter is on that looks at the tokens before, or at their number."""
    return any(name not in ALONE for name in _given(params))


def candidates(
    logits: Tensor, params: SamplingParams, context: Tensor | None = None, generated: Tensor | None = None
) -> Candidates:
    """Apply every parameter that is on to logits (B, V). A parameter that is None is off.

    context (B, T): ids of prompt and generated tokens, which `repeat_penalty` looks at; generated (B, G): of generated
    tokens, which the OpenAI penalties count. Each is needed only when its penalty is on.
    Raise GencliError for a bias outside of the vocabulary, and for logits that are NaN or infinite, as far as these are
    looked at here: `pick` looks at what is left.
    """
    found = Candidates(logits.float(), None, context, generated, params.eos_ids, params.max_tokens)
    for name, process in PROCESSORS.items():
        value = getattr(params, name)
        if name == "top_k" and params.temperature == 0:  # the likeliest alone is enough
            continue
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
        raise GencliError("the model's logits are NaN", DOUBT)
    if (top == torch.inf).any():
        raise GencliError("the model's logits are infinite", DOUBT)
    hint = "by a --logit-bias of -inf, or by the model's own suppress_tokens, bad_words_ids and the like"
    raise GencliError("no token is left to pick: every one is excluded", hint)


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


@processor("temperature")
def _temperature(found: Candidates, temperature: float) -> Candidates:
    """At 0 the most likely token is the only one left, the first of equals."""
    if temperature != 0:
        check(found.logits)
        return found._replace(logits=scale(found.logits, temperature))
    if found.logits.is_cpu:  # NumPy's is ten times as quick over a vocabulary
        best = torch.from_numpy(found.logits.numpy().argmax(-1, keepdims=True))
    else:
        best = found.logits.argmax(-1, keepdim=True)
    value = found.logits.gather(-1, best)
    check(value)
    return found._replace(logits=value, ids=best)


def scale(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature, the largest logit moved to 0 before: a tiny temperature is greedy and not infinite."""
    return (logits - logits.amax(-1, keepdim=True)) / tame_factor(temperature)


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

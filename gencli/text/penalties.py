"""Biases, penalties and bans: what changes logits before the temperature, in the order of transformers' processors."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.text.candidates import EXTREME, Candidates, logits_processor, processor, tame, tame_factor


@logits_processor("logit_bias")
def add_bias(logits: Tensor, bias: Sequence[tuple[int, float]]) -> Tensor:
    """Add to the logits of single tokens; of two biases for one token the last counts. -inf bans a token."""
    ids, values = _as_tensors(tuple(bias), logits.shape[-1], logits.device)
    return logits.index_add(1, ids, values.expand(len(logits), -1))


@functools.lru_cache(maxsize=8)
def _as_tensors(bias: tuple[tuple[int, float], ...], vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tokens (N,) of a bias and what is added to them, which are the same for every step."""
    values = {token: tame(value) for token, value in bias}
    if outside := [token for token in values if not 0 <= token < vocab_size]:
        raise GencliError(f"logit bias for token {outside[0]}, but the model's vocabulary has {vocab_size} tokens")
    return torch.tensor(list(values), device=device), torch.tensor(list(values.values()), device=device)


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

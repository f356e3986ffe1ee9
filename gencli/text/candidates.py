"""What may still be picked, and the functions that change it, one per field of `SamplingParams`.

B: rows, V: vocabulary, K: candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor

EXTREME = 1e30  # factors and biases beyond it act as it does; float32 would make infinities and NaN of them


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


# What applies a field, whose value is of a type of its own.
Processor = Callable[[Candidates, NoReturn], Candidates]
LogitsProcessor = Callable[[Tensor, NoReturn], Tensor]
P = TypeVar("P", bound=Processor)
L = TypeVar("L", bound=LogitsProcessor)
PROCESSORS: dict[str, Processor] = {}  # field of SamplingParams → what applies it


def processor(field: str) -> Callable[[P], P]:
    """Register a function of candidates and the value of a field of `SamplingParams`."""

    def register(function: P) -> P:
        PROCESSORS[field] = function
        return function

    return register


def logits_processor(field: str) -> Callable[[L], L]:
    """Register a function of logits (B, K) and the value of a field of `SamplingParams` that gives new logits."""

    def register(function: L) -> L:
        PROCESSORS[field] = lambda found, value: found._replace(logits=function(found.logits, value))
        return function

    return register


def tame(value: float) -> float:
    """Return a bias within what float32 can add up; -inf, which bans, stays."""
    return value if value == -torch.inf else min(max(value, -EXTREME), EXTREME)


def tame_factor(value: float) -> float:
    """Return a positive factor by which float32 can multiply and divide."""
    return min(max(value, 1 / EXTREME), EXTREME)

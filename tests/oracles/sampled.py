"""Sampling parameters by name, and what is sampled from over the whole vocabulary."""

from __future__ import annotations

import torch

from gencli.text import sampling
from gencli.text.request import SamplingParams


def process(logits, context=None, generated=None, **params) -> torch.Tensor:
    """Logits (B, V) whose softmax is sampled from: excluded tokens are at -inf."""
    found = sampling.candidates(logits, SamplingParams(**params), context, generated)
    if found.ids is None:
        return found.logits
    return torch.full_like(logits, -torch.inf, dtype=torch.float32).scatter(1, found.ids, found.logits)


def sample(logits, generators, context=None, generated=None, **params) -> torch.Tensor:
    return sampling.sample(logits, generators, SamplingParams(**params), context, generated)

"""A mixture of experts in place of a layer's feed-forward network, as Mixtral, Qwen 3 and gpt-oss have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import EXPERT_LIMIT, check_ints
from gencli.models.decoder_blocks import MLP


class Mixed(Protocol):
    """The keys of a config that say how experts are chosen, whatever they are called in config.json."""

    @property
    def expert_count(self) -> int: ...

    @property
    def num_experts_per_tok(self) -> int: ...


class Experts(nn.Module):
    """y = Σ p_e · expert_e(x) over the experts of which the router thinks most (Shazeer et al. 2017, arXiv 1701.06538;
    Jiang et al. 2024, arXiv 2401.04088).

    p is the softmax of the router's logits, in float32. hidden: C. experts: networks of one shape. chosen: how many
    of them compute for a position. normalised: whether the shares of these sum to one. bias: of the router.
    """

    STEP = ("gate",)

    def __init__(self, hidden: int, experts: Sequence[MLP], chosen: int, *, normalised: bool, bias: bool = False):
        super().__init__()
        self.chosen, self.normalised = chosen, normalised
        self.gate = nn.Linear(hidden, len(experts), bias=bias)
        self.experts = nn.ModuleList(experts)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        shares, chosen = self.gate(flat).float().softmax(-1).topk(self.chosen, dim=-1)
        if self.normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        y = torch.zeros_like(flat)
        for number in chosen.unique().tolist():
            rows, places = torch.where(chosen == number)
            found = self.experts[number](flat[rows]) * shares[rows, places, None]
            y = y.index_add(0, rows, found.to(y.dtype))
        return y.view_as(x)


def check_experts(config: Mixed, count: str) -> None:
    """Raise GencliError for numbers of experts that no model has. count: the key of how many there are."""
    check_ints(config, {count: EXPERT_LIMIT, "num_experts_per_tok": EXPERT_LIMIT})
    if config.num_experts_per_tok > config.expert_count:
        raise GencliError(
            f"config.json: num_experts_per_tok = {config.num_experts_per_tok} of {count} = {config.expert_count}"
        )

"""A mixture of experts in place of a layer's feed-forward network, as Mixtral, Qwen 3 and gpt-oss have it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import EXPERT_LIMIT, check_ints
from gencli.models.decoder_blocks import MLP


class Experts(nn.Module):
    """y = Σ p_e · expert_e(x) over the experts of which the router thinks most (Shazeer et al. 2017, arXiv 1701.06538;
    Jiang et al. 2024, arXiv 2401.04088).

    p is the softmax of the router's logits, in float32. hidden: C. experts: networks of one shape. chosen: how many
    of them compute for a position. normalised: whether the shares of these sum to one. bias: of the router.
    """

    STEP: tuple[str, ...] = ("gate",)

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
        return mixed(self.experts, flat, shares, chosen).view_as(x)


def mixed(experts: nn.ModuleList, x: Tensor, shares: Tensor, chosen: Tensor) -> Tensor:
    """Return Σ share · expert(x) of each row of x (N, C), over its chosen experts. shares, chosen: (N, experts)."""
    y = torch.zeros_like(x)
    for number in chosen.unique().tolist():
        rows, places = torch.where(chosen == number)
        found = experts[number](x[rows]) * shares[rows, places, None]
        y = y.index_add(0, rows, found.to(y.dtype))
    return y


def check_experts(config: object, count: str, chosen: str = "num_experts_per_tok") -> None:
    """Raise GencliError for numbers of experts that no model has. count, chosen: the keys of how many there are, and of
    how many compute."""
    check_ints(config, {count: EXPERT_LIMIT, chosen: EXPERT_LIMIT})
    if getattr(config, chosen) > getattr(config, count):
        raise GencliError(f"config.json: {chosen} = {getattr(config, chosen)} of {count} = {getattr(config, count)}")

"""Qwen 3.5 with experts, such as 35B-A3B (Qwen Team 2026): in every layer many small ones and one for all positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from gencli.models import qwen3_5
from gencli.models.base import check_ints
from gencli.models.decoder_blocks import MLP
from gencli.models.decoder_config import DecoderConfig
from gencli.models.experts import Experts, check_experts
from gencli.models.qwen3_5 import Qwen35, Qwen35Config


@dataclass(frozen=True, kw_only=True)
class Qwen35MoeConfig(Qwen35Config):
    """config.json of a Qwen 3.5 checkpoint with experts, which have no other feed-forward networks."""

    ONLY: ClassVar = {**Qwen35Config.ONLY, "norm_topk_prob": (True,), "decoder_sparse_step": (1,)}

    hidden_size: int = 2048
    num_hidden_layers: int = 40
    num_key_value_heads: int | None = 2
    intermediate_size: int = 1  # of nothing here
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    num_experts: int = 256
    num_experts_per_tok: int = 8

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        return {key: value for key, value in super().prepare(raw).items() if key != "intermediate_size"}

    @property
    def expert_count(self) -> int:
        return self.num_experts

    def check(self) -> None:
        super().check()
        check_ints(self, {"moe_intermediate_size": 2**20, "shared_expert_intermediate_size": 2**20})
        check_experts(self, "num_experts")


class MixtureSizes(Protocol):
    """The keys of a config about experts."""

    @property
    def num_experts(self) -> int: ...
    @property
    def num_experts_per_tok(self) -> int: ...
    @property
    def moe_intermediate_size(self) -> int: ...
    @property
    def shared_expert_intermediate_size(self) -> int: ...


class Mixture(Experts):
    """Experts, and one that computes for every position, whose share is a gate of its own."""

    STEP = ("gate", "shared_expert", "shared_expert_gate")

    def __init__(self, config: DecoderConfig, sizes: MixtureSizes, *, normalised: bool = True):
        experts = [MLP(config, inner=sizes.moe_intermediate_size) for _ in range(sizes.num_experts)]
        super().__init__(config.hidden_size, experts, sizes.num_experts_per_tok, normalised=normalised)
        self.shared_expert = MLP(config, inner=sizes.shared_expert_intermediate_size)
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shared_expert_gate(x).sigmoid() * self.shared_expert(x)


class Qwen35Moe(Qwen35):
    """The decoder with its language-model head."""

    def __init__(self, config: Qwen35MoeConfig):
        super().__init__(config, lambda: Mixture(config, config))


LAYOUT = dataclasses.replace(
    qwen3_5.LAYOUT, stacked={"experts.gate_up_proj": ("gate_proj", "up_proj"), "experts.down_proj": ("down_proj",)}
)
Config, Model = Qwen35MoeConfig, Qwen35Moe

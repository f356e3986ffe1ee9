"""DeepSeek V3 and R1 (DeepSeek-AI 2024, arXiv 2412.19437; 2501.12948): V2 whose experts are chosen by a sigmoid with a
bias for each, and have shares without it. Layers that predict further tokens are not read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models import deepseek_v2
from gencli.models.base import check_ints
from gencli.models.deepseek_v2 import DeepseekV2, DeepseekV2Config

AHEAD = ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head")


@dataclass(frozen=True, kw_only=True)
class DeepseekV3Config(DeepseekV2Config):
    """config.json of a DeepSeek V3 checkpoint. rope_interleave: whether pairs that are rotated lie side by side."""

    ONLY: ClassVar = {"moe_layer_freq": (1,), "scoring_func": ("sigmoid",)}
    METHODS: ClassVar[tuple[str, ...]] = ("noaux_tc",)

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    num_hidden_layers: int = 61
    num_attention_heads: int = 128
    num_key_value_heads: int | None = 128
    max_position_embeddings: int = 4096
    first_k_dense_replace: int = 3
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    num_experts_per_tok: int | None = 8
    moe_intermediate_size: int = 2048
    routed_scaling_factor: float = 2.5
    topk_method: str | None = "noaux_tc"
    n_group: int | None = 8
    topk_group: int | None = 4
    norm_topk_prob: bool = True
    rope_interleave: bool = True
    num_nextn_predict_layers: int = 1

    @property
    def grouped(self) -> bool:
        return True

    def check(self) -> None:
        super().check()
        check_ints(self, {"num_nextn_predict_layers": 64}, least=0)
        if self.n_routed_experts < 2 * (self.n_group or 1):
            raise GencliError(f"config.json: n_group = {self.n_group} of n_routed_experts = {self.n_routed_experts}")


class Router(deepseek_v2.Router):
    """A group's score is that of its two best experts. e_score_correction_bias: what scores have more, where experts
    are chosen."""

    def __init__(self, config: DeepseekV2Config):
        super().__init__(config)
        self.e_score_correction_bias = nn.Parameter(torch.zeros(config.n_routed_experts))
        self.normalised = isinstance(config, DeepseekV3Config) and config.norm_topk_prob

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.scores(x).sigmoid()
        wanted = scores + self.e_score_correction_bias.float()
        groups = wanted.unflatten(-1, (self.groups, -1)).topk(2, dim=-1).values.sum(-1)
        chosen = self.without_others(wanted, groups, float("-inf")).topk(self.chosen, dim=-1).indices
        shares = scores.gather(1, chosen)
        if self.normalised:
            shares = shares / (shares.sum(-1, keepdim=True) + 1e-20)
        return shares * self.factor, chosen


class DeepseekV3(DeepseekV2):
    """The decoder with its language-model head."""

    config: DeepseekV3Config

    def __init__(self, config: DeepseekV3Config):
        super().__init__(config, Router, interleaved=config.rope_interleave)
        last, ahead = config.num_hidden_layers - 1, config.num_nextn_predict_layers
        own = [name for name in self.state_dict() if name.startswith(f"model.layers.{last}.")]
        names = [name.replace(f".{last}.", ".{}.", 1) for name in own]
        names += [f"model.layers.{{}}.{name}.weight" for name in AHEAD]
        self.unread: Collection[str] = {name.format(last + 1 + i) for name in names for i in range(ahead)}


LAYOUT = deepseek_v2.LAYOUT
Config, Model = DeepseekV3Config, DeepseekV3

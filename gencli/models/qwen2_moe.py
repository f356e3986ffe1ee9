"""Qwen 1.5 and 2 with experts, such as 57B-A14B (Yang et al. 2024, arXiv 2407.10671): and one that computes for every
position."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from gencli.errors import GencliError
from gencli.models import qwen3_5_moe
from gencli.models.base import check_ints
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, Attention, PreNormLayer
from gencli.models.qwen3_5_moe import Mixture
from gencli.models.qwen3_moe import Qwen3MoeConfig


@dataclass(frozen=True, kw_only=True)
class Qwen2MoeConfig(Qwen3MoeConfig):
    """config.json of a Qwen2-MoE checkpoint; which layers have experts is said as in Qwen3-MoE's. qkv_bias: of q, k
    and v."""

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    moe_intermediate_size: int = 1408
    shared_expert_intermediate_size: int = 5632
    num_experts: int = 60
    num_experts_per_tok: int = 4
    qkv_bias: bool = True

    def check(self) -> None:
        super().check()
        check_ints(self, {"shared_expert_intermediate_size": 2**20})
        if self.use_sliding_window:  # which the reference has in other layers than Qwen 2
            raise GencliError("config.json: use_sliding_window = True is not supported")


class Qwen2Moe(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: Qwen2MoeConfig):
        def make_layer(layer: int) -> PreNormLayer:
            normalised = config.norm_topk_prob
            mlp = Mixture(config, config, normalised=normalised) if config.has_experts(layer) else MLP(config)
            return PreNormLayer(config, Attention(config, layer, bias=config.qkv_bias), mlp)

        super().__init__(config, make_layer)


LAYOUT = dataclasses.replace(qwen3_5_moe.LAYOUT, renames=())
Config, Model = Qwen2MoeConfig, Qwen2Moe

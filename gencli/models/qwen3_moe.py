"""Qwen 3 with experts, such as 30B-A3B (Yang et al. 2025, arXiv 2505.09388): 128 small ones, of which eight compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from gencli.errors import GencliError
from gencli.models import decoder
from gencli.models.base import check_ints
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, PreNormLayer
from gencli.models.decoder_config import DECODER_INERT
from gencli.models.experts import Experts, check_experts
from gencli.models.qwen3 import Attention, Qwen3Config


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(Qwen3Config):
    """config.json of a Qwen3-MoE checkpoint.

    Each `decoder_sparse_step`th layer has experts, unless `mlp_only_layers` names it; the others have a feed-forward
    network of `intermediate_size`.
    """

    INERT = DECODER_INERT | {"output_router_logits", "router_aux_loss_coef"}  # of training
    ONLY: ClassVar = {}

    head_dim: int | None = None
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] | None = None
    moe_intermediate_size: int = 768
    num_experts: int = 128
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        """Return the values with the number of experts under its old name, which transformers 5 writes anew."""
        raw = dict(super().prepare(raw))
        if (count := raw.pop("num_local_experts", None)) is not None:
            raw.setdefault("num_experts", count)
        return raw

    @property
    def expert_count(self) -> int:
        return self.num_experts

    def check(self) -> None:
        super().check()
        check_ints(self, {"moe_intermediate_size": 2**20, "decoder_sparse_step": 1024})
        check_experts(self, "num_experts")
        only = self.mlp_only_layers
        if only is not None and (not isinstance(only, tuple) or any(type(layer) is not int for layer in only)):
            raise GencliError(f"config.json: mlp_only_layers = {only!r:.80} is no list of layers")

    def has_experts(self, layer: int) -> bool:
        """Return whether a layer has experts."""
        return layer not in (self.mlp_only_layers or ()) and (layer + 1) % self.decoder_sparse_step == 0


def make_experts(config: Qwen3MoeConfig) -> Experts:
    """Return a layer's experts."""
    experts = [MLP(config, inner=config.moe_intermediate_size) for _ in range(config.num_experts)]
    return Experts(config.hidden_size, experts, config.num_experts_per_tok, normalised=config.norm_topk_prob)


class Qwen3Moe(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: Qwen3MoeConfig):
        def make_layer(layer: int) -> PreNormLayer:
            mlp = make_experts(config) if config.has_experts(layer) else MLP(config)
            return PreNormLayer(config, Attention(config, layer), mlp)

        super().__init__(config, make_layer)


LAYOUT = decoder.LAYOUT
Config, Model = Qwen3MoeConfig, Qwen3Moe

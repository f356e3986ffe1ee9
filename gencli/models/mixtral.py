"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from gencli.models import decoder
from gencli.models.base import Rename
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, Attention, PreNormLayer
from gencli.models.decoder_config import DECODER_INERT
from gencli.models.experts import Experts, check_experts
from gencli.models.mistral import MistralConfig


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(MistralConfig):
    """config.json of a Mixtral checkpoint."""

    INERT = DECODER_INERT | {"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"}  # of training
    ONLY: ClassVar = MistralConfig.ONLY

    sliding_window: int | None = None
    rms_norm_eps: float = 1e-5
    num_local_experts: int = 8
    num_experts_per_tok: int = 2

    @property
    def expert_count(self) -> int:
        return self.num_local_experts

    def check(self) -> None:
        super().check()
        check_experts(self, "num_local_experts")


class Mixtral(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: MixtralConfig):
        def make_layer(layer: int) -> PreNormLayer:
            count, chosen = config.num_local_experts, config.num_experts_per_tok
            experts = Experts(config.hidden_size, [MLP(config) for _ in range(count)], chosen, normalised=True)
            return PreNormLayer(config, Attention(config, layer), experts)

        super().__init__(config, make_layer)


FILE = r"(model\.layers\.\d+)\.block_sparse_moe"
LAYOUT = replace(
    decoder.LAYOUT,
    renames=(
        Rename(rf"{FILE}\.gate\.weight", r"\1.mlp.gate.weight"),
        Rename(rf"{FILE}\.experts\.(\d+)\.w1\.weight", r"\1.mlp.experts.\2.gate_proj.weight"),
        Rename(rf"{FILE}\.experts\.(\d+)\.w2\.weight", r"\1.mlp.experts.\2.down_proj.weight"),
        Rename(rf"{FILE}\.experts\.(\d+)\.w3\.weight", r"\1.mlp.experts.\2.up_proj.weight"),
    ),
)
Config, Model = MixtralConfig, Mixtral

"""gpt-oss (OpenAI 2025, arXiv 2508.10925): experts with a clamped activation, windows in every other layer, sinks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models import decoder, decoder_blocks, step
from gencli.models.base import Rename, check_numbers
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, PreNormLayer
from gencli.models.decoder_config import DECODER_INERT, WindowedConfig
from gencli.models.experts import Experts, check_experts
from gencli.models.gemma4 import RMSNorm
from gencli.models.rope import with_rope

YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GptOssConfig(WindowedConfig):
    """config.json of a gpt-oss checkpoint. Without `layer_types` every other layer has the window, from the first on.

    swiglu_alpha: factor in the sigmoid of the experts' activation. swiglu_limit: where gate and up projection end.
    """

    INERT = DECODER_INERT | {
        "output_router_logits", "router_aux_loss_coef",  # of training
        "experts_per_token", "initial_context_length",  # said by other keys too
    }  # fmt: skip
    ONLY: ClassVar = {}

    vocab_size: int = 201088
    hidden_size: int = 2880
    intermediate_size: int = 2880
    num_hidden_layers: int = 36
    num_attention_heads: int = 64
    num_key_value_heads: int | None = 8
    head_dim: int | None = 64
    sliding_window: int | None = 128
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    attention_bias: bool = True
    num_local_experts: int = 128
    num_experts_per_tok: int = 4
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        """Return the values without what says that experts are packed in MXFP4, which their tensors say too."""
        raw = {**raw}
        packed = raw.pop("quantization_config", None)
        if packed is not None and not (isinstance(packed, dict) and packed.get("quant_method") == "mxfp4"):
            raise GencliError(
                f"config.json: quantization_config = {packed!r:.80} is not supported", "gencli knows mxfp4 alone"
            )
        if not (raw.get("rope_parameters") or raw.get("rope_scaling")):
            raw["rope_scaling"] = YARN
        return with_rope(raw, ("default", "linear", "yarn"), theta=150000.0)

    @property
    def expert_count(self) -> int:
        return self.num_local_experts

    def slides(self, layer: int) -> bool:
        return layer % 2 == 0

    def check(self) -> None:
        super().check()
        check_experts(self, "num_local_experts")
        check_numbers(self, {"swiglu_alpha": (-1e3, 1e3), "swiglu_limit": (0.0, 1e6)})


class Attention(decoder_blocks.Attention):
    """Each head has a sink: a score that takes its share of the attention and gives no value (Xiao et al. 2023, arXiv
    2309.17453)."""

    def __init__(self, config: GptOssConfig, layer: int):
        super().__init__(config, layer, bias=config.attention_bias, out_bias=config.attention_bias)
        self.sinks = nn.Parameter(torch.zeros(self.heads))


class Expert(MLP):
    """down((up + 1) · gate · sigmoid(alpha · gate)), of a gate of at most `limit` and an `up` within ± `limit`."""

    STEP, gated = MLP.STEP, True

    def __init__(self, config: GptOssConfig):
        super().__init__(config, bias=True)
        self.alpha, self.limit = config.swiglu_alpha, config.swiglu_limit
        self.step_activation = step.CLAMPED_SILU

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x).clamp(max=self.limit)
        up = self.up_proj(x).clamp(-self.limit, self.limit)
        return self.down_proj((up + 1) * (gate * torch.sigmoid(gate * self.alpha)))


class Layer(PreNormLayer):
    """A layer with norms that are rounded once."""

    def __init__(self, config: GptOssConfig, layer: int):
        count, chosen = config.num_local_experts, config.num_experts_per_tok
        experts = Experts(
            config.hidden_size, [Expert(config) for _ in range(count)], chosen, normalised=True, bias=True
        )
        super().__init__(config, Attention(config, layer), experts)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class GptOss(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: GptOssConfig):
        super().__init__(config, lambda layer: Layer(config, layer), RMSNorm)


LAYOUT = replace(
    decoder.LAYOUT,
    stacked={"experts.gate_up_proj": ("gate_proj", "up_proj"), "experts.down_proj": ("down_proj",)},
    in_turns=True,
    renames=(Rename(r"(model\.layers\.\d+\.mlp)\.router\.(weight|bias)", r"\1.gate.\2"),),
)
Config, Model = GptOssConfig, GptOss

"""Granite 3 (IBM 2024, "Granite 3.0 Language Models"): Llama with factors of embeddings, scores, residual branches and
logits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from gencli.models import decoder, decoder_blocks, step
from gencli.models.base import check_numbers
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, Attention, PreNormLayer
from gencli.models.kv_cache import KeyValueCache
from gencli.models.llama import LlamaConfig
from gencli.models.rope import CosSin

MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")


@dataclass(frozen=True, kw_only=True)
class GraniteConfig(LlamaConfig):
    """config.json of a Granite checkpoint. attention_multiplier: the factor of scores, in place of D^-½.
    logits_scaling: what logits are divided by."""

    embedding_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0

    def check(self) -> None:
        super().check()
        check_numbers(self, dict.fromkeys(MULTIPLIERS, (1e-6, 1e6)))


class RMSNorm(decoder_blocks.RMSNorm):
    """For a step of the C library x is divided by the residual multiplier m, so that branches are added as they are:
    the norm of x / m is that of x, with eps / m²."""

    def __init__(self, size: int, eps: float, multiplier: float):
        super().__init__(size, eps)
        self.multiplier = multiplier

    def norm_weights(self) -> tuple[Tensor, Tensor | None, float, bool]:
        return self.weight.float(), None, self.eps / self.multiplier**2, False


class Layer(PreNormLayer):
    """What attention and feed-forward give is multiplied before it is added."""

    STEP, NORMS = PreNormLayer.STEP, PreNormLayer.NORMS

    def __init__(self, config: GraniteConfig, layer: int):
        attention = Attention(config, layer, bias=config.attention_bias, out_bias=config.attention_bias)
        attention.scale = config.attention_multiplier
        super().__init__(config, attention, MLP(config, bias=config.mlp_bias))
        self.multiplier = config.residual_multiplier
        norm = config.hidden_size, config.rms_norm_eps, config.residual_multiplier
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(*norm), RMSNorm(*norm)

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos_sin, cache) * self.multiplier
        return x + self.mlp(self.post_attention_layernorm(x)) * self.multiplier


class Granite(Decoder):
    """The decoder with its language-model head."""

    config: GraniteConfig

    def __init__(self, config: GraniteConfig):
        def norm(size: int, eps: float) -> RMSNorm:
            return RMSNorm(size, eps, config.residual_multiplier)

        super().__init__(config, lambda layer: Layer(config, layer), norm)
        self.embedding_scale = config.embedding_multiplier
        self.logit_scale = 1 / config.logits_scaling

    def step_parts(self) -> step.Parts:
        parts, by = super().step_parts(), self.config.residual_multiplier
        return replace(parts, scale=parts.scale / by, divided=by)


LAYOUT = decoder.LAYOUT
Config, Model = GraniteConfig, Granite

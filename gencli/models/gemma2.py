"""Gemma 2 (Gemma Team 2024, arXiv 2408.00118): norms around every block, soft-capped scores and logits,
windows in every other layer, embeddings scaled by sqrt(C)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models import decoder, decoder_blocks
from gencli.models.activations import check_activation
from gencli.models.base import check_numbers
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, Attention
from gencli.models.decoder_config import DecoderConfig, WindowedConfig
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import COMMON_KINDS, CosSin, with_rope


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(WindowedConfig):
    """config.json of a Gemma 2 checkpoint. Without `layer_types` the even layers have the window."""

    ONLY: ClassVar = {"use_bidirectional_attention": (None, False)}

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    hidden_act: str = "gelu_pytorch_tanh"  # the file's `hidden_activation`; its own `hidden_act` is not read
    max_position_embeddings: int = 8192
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        size, window = raw.get("sliding_window_size"), raw.get("sliding_window")
        if size not in (None, window):
            raise GencliError(
                f"config.json: sliding_window_size = {size!r:.80} is not supported",
                f"gencli knows sliding_window_size = {window!r}",
            )
        raw = {key: value for key, value in raw.items() if key != "sliding_window_size"}
        return with_rope(with_activation(raw), COMMON_KINDS)

    def check(self) -> None:
        super().check()
        check_numbers(self, {"query_pre_attn_scalar": (1e-6, 1e6)})
        caps = [key for key in ("attn_logit_softcapping", "final_logit_softcapping") if getattr(self, key) is not None]
        check_numbers(self, dict.fromkeys(caps, (1e-6, 1e6)))

    def slides(self, layer: int) -> bool:
        return layer % 2 == 0


def with_activation(raw: Mapping[str, object]) -> dict[str, object]:
    """Return the values with Gemma's `hidden_activation` as `hidden_act`, which in the first files is a left-over."""
    rest = {key: value for key, value in raw.items() if key not in ("hidden_act", "hidden_activation")}
    activation = raw.get("hidden_activation") or "gelu_pytorch_tanh"
    check_activation("hidden_activation", activation)
    return {**rest, "hidden_act": activation}


class RMSNorm(decoder_blocks.RMSNorm):
    """The weight is stored as its difference from one, and applied before rounding to a half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, 1 + self.weight.float(), self.eps).to(x.dtype)

    def norm_weights(self) -> tuple[Tensor, Tensor | None, float, bool]:
        return 1 + self.weight.float(), None, self.eps, False


class Layer(nn.Module):
    """Norms before and after attention and feed-forward, inside the residual branches."""

    STEP = ("self_attn", "mlp")
    NORMS = (
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
    )  # fmt: skip

    def __init__(self, config: DecoderConfig, self_attn: nn.Module):
        super().__init__()
        self.self_attn = self_attn
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), cos_sin, cache))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Gemma2(Decoder):
    """The decoder with its language-model head."""

    config: Gemma2Config

    def __init__(self, config: Gemma2Config):
        def make_layer(layer: int) -> Layer:
            attention = Attention(config, layer, bias=config.attention_bias, out_bias=config.attention_bias)
            attention.scale = config.query_pre_attn_scalar**-0.5
            attention.softcap = config.attn_logit_softcapping
            return Layer(config, attention)

        super().__init__(config, make_layer, RMSNorm)
        self.embedding_scale, self.logit_cap = config.hidden_size**0.5, config.final_logit_softcapping


LAYOUT = decoder.LAYOUT
Config, Model = Gemma2Config, Gemma2

"""DeepSeek V2 (DeepSeek-AI 2024, arXiv 2405.04434): attention whose keys and values come of one short vector for each
position (multi-head latent attention), and experts of which some compute for every position.

What is cached are keys and values, and not the vector that they come of: a step then multiplies with matrices as files
hold them, packed ones too, and for its own positions alone, at the price of more memory (V2-Lite: 0.55 MB a token in
float32).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models import decoder
from gencli.models.base import check_ints, check_multiple, check_numbers
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, PreNormLayer, ProjectedAttention, RMSNorm
from gencli.models.decoder_config import DECODER_INERT, DecoderConfig
from gencli.models.experts import Experts, check_experts, mixed
from gencli.models.kv_cache import KeyValueCache, zeros
from gencli.models.rope import Rope, halves

LATENT_EPS = 1e-6  # of the norms of short vectors, which no config says


@dataclass(frozen=True, kw_only=True)
class DeepseekV2Config(DecoderConfig):
    """config.json of a DeepSeek V2 checkpoint.

    The first `first_k_dense_replace` layers have a feed-forward network, the others experts. kv_lora_rank: the size of
    the vector that keys and values come of; q_lora_rank: that of queries, None: they come of x. topk_method: how
    experts are chosen; `group_limited_greedy`: from `topk_group` of `n_group` groups of them.
    """

    INERT = DECODER_INERT | {
        "aux_loss_alpha", "seq_aux", "router_aux_loss_coef", "output_router_logits", "ep_size", "head_dim",
    }  # fmt: skip
    ONLY: ClassVar = {
        "moe_layer_freq": (1,), "scoring_func": ("softmax",), "norm_topk_prob": (False,), "mlp_bias": (False,),
    }  # fmt: skip
    METHODS: ClassVar[tuple[str, ...]] = ("greedy", "group_limited_greedy")

    vocab_size: int = 102400
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 2048
    attention_bias: bool = False
    first_k_dense_replace: int = 0
    kv_lora_rank: int = 512
    q_lora_rank: int | None = 1536
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    n_routed_experts: int = 64
    n_shared_experts: int = 2
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int = 1407
    routed_scaling_factor: float = 1.0
    topk_method: str | None = "greedy"
    n_group: int | None = None
    topk_group: int | None = None

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        """Return the values with RoPE's; `head_dim` is another name of `qk_rope_head_dim`."""
        raw = super().prepare(raw)
        counts = {"num_local_experts": "n_routed_experts", "num_experts": "n_routed_experts"}
        named = {counts.get(key, key): value for key, value in raw.items() if counts.get(key) not in raw}
        return {key: value for key, value in named.items() if key != "head_dim"}

    @property
    def head_size(self) -> int:
        """How many numbers of a head are rotated."""
        return self.qk_rope_head_dim

    @property
    def expert_count(self) -> int:
        return self.n_routed_experts

    @property
    def grouped(self) -> bool:
        """Whether experts are chosen from some groups alone."""
        return self.topk_method == "group_limited_greedy"

    def check(self) -> None:
        sizes = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "moe_intermediate_size")
        check_ints(self, dict.fromkeys(sizes if self.q_lora_rank is None else (*sizes, "q_lora_rank"), 2**16))
        super().check()
        check_ints(self, {"first_k_dense_replace": 1024, "n_shared_experts": 1024}, least=0)
        check_numbers(self, {"routed_scaling_factor": (1e-6, 1e6)})
        check_experts(self, "n_routed_experts")
        if self.kv_heads != self.num_attention_heads:
            raise GencliError(f"config.json: num_key_value_heads = {self.kv_heads} is not supported")
        if self.topk_method not in self.METHODS:
            known = f"gencli knows {' or '.join(self.METHODS)}"
            raise GencliError(f"config.json: topk_method = {self.topk_method!r:.80} is not supported", known)
        if self.grouped:
            check_ints(self, {"n_group": 1024, "topk_group": 1024})
            check_multiple(self, "n_routed_experts", "n_group")
            assert self.n_group and self.topk_group and self.num_experts_per_tok
            if not self.topk_group <= self.n_group or (
                self.topk_group * (self.n_routed_experts // self.n_group) < self.num_experts_per_tok
            ):
                raise GencliError(f"config.json: topk_group = {self.topk_group} of n_group = {self.n_group}")


def score_scale(rope: Rope, size: int) -> float:
    """Return the factor of scores of heads of a size, which YaRN changes with `mscale_all_dim`."""
    scale = size**-0.5
    if rope.rope_type != "default" and rope.mscale_all_dim and (rope.factor or 1) > 1:
        scale *= (0.1 * rope.mscale_all_dim * math.log(rope.factor or 1) + 1) ** 2
    return scale


class Attention(ProjectedAttention):
    """Multi-head latent attention. A head's keys are one part that is rotated, which all heads share, and one that
    comes of the short vector, as values do."""

    def __init__(self, config: DeepseekV2Config, layer: int, *, interleaved: bool = True):
        super().__init__(config, layer)
        hidden, bias, rank = config.hidden_size, config.attention_bias, config.kv_lora_rank
        self.rank, self.rope = rank, config.qk_rope_head_dim
        self.nope, self.v = config.qk_nope_head_dim, config.v_head_dim
        self.interleaved = interleaved
        self.scale = score_scale(config.rope_parameters, self.nope + self.rope)
        queries = self.heads * (self.nope + self.rope)
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, queries, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, queries, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, rank + self.rope, bias=bias)
        self.kv_a_layernorm = RMSNorm(rank, LATENT_EPS)
        self.kv_b_proj = nn.Linear(rank, self.heads * (self.nope + self.v), bias=False)
        self.o_proj = nn.Linear(self.heads * self.v, hidden, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys (B, T, H, D) and values (B, T, H, V) of x (B, T, C), the rotated part first."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if hasattr(self, "q_a_proj") else self.q_proj(x)
        q_nope, q_rope = q.unflatten(-1, (self.heads, -1)).split((self.nope, self.rope), dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((self.rank, self.rope), dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (self.heads, -1))
        k_nope, v = kv.split((self.nope, self.v), dim=-1)
        k_rope = k_rope.unsqueeze(2)
        if self.interleaved:
            q_rope, k_rope = halves(q_rope, self.rope), halves(k_rope, self.rope)
        k_rope = k_rope.expand(-1, -1, self.heads, -1)
        return torch.cat((q_rope, q_nope), -1), torch.cat((k_rope, k_nope), -1), v


class Router(nn.Linear):
    """Says which experts compute for a position, and their shares."""

    def __init__(self, config: DeepseekV2Config):
        super().__init__(config.hidden_size, config.n_routed_experts, bias=False)
        assert config.num_experts_per_tok is not None
        self.chosen, self.factor = config.num_experts_per_tok, config.routed_scaling_factor
        self.groups, self.kept = (config.n_group or 1, config.topk_group or 1) if config.grouped else (1, 1)

    def scores(self, x: Tensor) -> Tensor:
        """Return the outputs (N, experts) of x (N, C), in float32."""
        return F.linear(x.float(), self.weight.float())

    def without_others(self, scores: Tensor, of_group: Tensor, value: float) -> Tensor:
        """Return scores (N, experts) with a value for those outside of the groups whose scores (N, groups) are best."""
        best = torch.zeros_like(of_group, dtype=torch.bool).scatter(1, of_group.topk(self.kept, dim=-1).indices, True)
        others = ~best.repeat_interleave(scores.shape[-1] // self.groups, dim=-1)
        return scores.masked_fill(others, value)

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shares (N, chosen) and the numbers of the experts of x (N, C)."""
        scores = self.scores(x).softmax(-1)
        if self.groups > 1:
            scores = self.without_others(scores, scores.unflatten(-1, (self.groups, -1)).amax(-1), 0.0)
        shares, chosen = scores.topk(self.chosen, dim=-1)
        return shares * self.factor, chosen


class Mixture(Experts):
    """Experts that a router chooses, and `shared_experts` that compute for every position."""

    gate: Router

    def __init__(self, config: DeepseekV2Config, router: type[Router] = Router):
        experts = [MLP(config, inner=config.moe_intermediate_size) for _ in range(config.n_routed_experts)]
        super().__init__(config.hidden_size, experts, config.num_experts_per_tok or 0, normalised=False)
        self.gate = router(config)
        if config.n_shared_experts:
            self.shared_experts = MLP(config, inner=config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = mixed(self.experts, flat, *self.gate.choose(flat)).view_as(x)
        return y + self.shared_experts(x) if hasattr(self, "shared_experts") else y


class DeepseekV2(Decoder):
    """The decoder with its language-model head."""

    config: DeepseekV2Config

    def __init__(self, config: DeepseekV2Config, router: type[Router] = Router, *, interleaved: bool = True):
        def make_layer(layer: int) -> PreNormLayer:
            mlp = MLP(config) if layer < config.first_k_dense_replace else Mixture(config, router)
            return PreNormLayer(config, Attention(config, layer, interleaved=interleaved), mlp)

        super().__init__(config, make_layer)

    def new_cache(self, batch: int, positions: int) -> KeyValueCache:
        config = self.config
        size = config.qk_nope_head_dim + config.qk_rope_head_dim
        heads, layers = config.num_attention_heads, config.num_hidden_layers
        cache = KeyValueCache(
            layers, batch, heads, positions, size, device=self.device, dtype=self.compute_dtype
        )  # values are of another size
        shape = (batch, heads, positions, config.v_head_dim)
        cache.values = [zeros(shape, self.device, self.compute_dtype) for _ in range(layers)]
        return cache


LAYOUT = replace(
    decoder.LAYOUT,
    stacked={"experts.gate_up_proj": ("gate_proj", "up_proj"), "experts.down_proj": ("down_proj",)},
)
Config, Model = DeepseekV2Config, DeepseekV2

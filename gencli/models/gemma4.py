"""Gemma 4 (Google 2026), the text model: Gemma 3's layers with heads of two sizes, a norm of values too, a scale of
each layer and, as the size has it, an embedding for each layer, layers that reuse the keys and values of earlier ones,
or experts beside the feed-forward network.

Of files with towers for images and sounds (`model_type` gemma4) only the text model is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models import decoder, decoder_blocks, experts, gemma2, gemma3, step, step_more
from gencli.models.activations import ACTIVATIONS
from gencli.models.base import Layout
from gencli.models.decoder import TwoRopes, rounded
from gencli.models.decoder_blocks import MLP, AttentionCore
from gencli.models.gemma4_config import FULL, SLIDING, Gemma4Config
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import CosSin, Rotary, apply_rotary_emb

Shared = dict[str, tuple[Tensor, Tensor]]  # kind of a layer → keys and values (B, K, S, D) of the last that has its own


class RMSNorm(decoder_blocks.RMSNorm):
    """The weight is applied before rounding to a half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Unweighted(nn.Module):
    """x / sqrt(mean(x²) + eps) over the last axis, by way of float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.size, self.eps = size, eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (self.size,), eps=self.eps).to(x.dtype)

    def norm_weights(self) -> tuple[Tensor, Tensor | None, float, bool]:
        return torch.ones(self.size), None, self.eps, False


class Attention(AttentionCore):
    """q, k and v are normed head by head, the first two before RoPE; v may be k as it was before its norm."""

    STEP = ("q_proj", "k_proj", "v_proj", "o_proj")
    k_norm: RMSNorm
    k_proj: nn.Linear | None  # None: keys and values are those of the layer `cached`
    v_proj: nn.Linear | None  # None: values are keys

    def __init__(self, config: Gemma4Config, layer: int):
        super().__init__(config, layer)
        self.kind, eps, self.cached = config.types[layer], config.rms_norm_eps, config.cached(layer)
        self.head_dim, self.kv_heads, self.scale = config.head_size_of(layer), config.kv_heads_of(layer), 1.0
        self.rotated = (config.sliding_rope if self.kind == SLIDING else config.rope_parameters).width(self.head_dim)
        hidden, bias = config.hidden_size, config.attention_bias
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(hidden, queries, bias=bias)
        self.q_norm = RMSNorm(self.head_dim, eps)
        self.k_proj = self.v_proj = None
        if self.cached == layer:
            self.k_proj = nn.Linear(hidden, keys, bias=bias)
            self.k_norm, self.v_norm = RMSNorm(self.head_dim, eps), Unweighted(self.head_dim, eps)
            if not (config.attention_k_eq_v and self.kind == FULL):
                self.v_proj = nn.Linear(hidden, keys, bias=bias)
        self.o_proj = nn.Linear(queries, hidden, bias=bias)

    def keys_and_values(
        self, x: Tensor, k_proj: nn.Linear, cos_sin: CosSin, cache: KeyValueCache | None
    ) -> tuple[Tensor, Tensor]:
        """Return all keys and values so far (B, K, S, D), of which x (B, T, C) has the last."""
        shape = (*x.shape[:2], -1, self.head_dim)
        k = k_proj(x).view(shape)
        v = k if self.v_proj is None else self.v_proj(x).view(shape)
        k, v = apply_rotary_emb(self.k_norm(k), cos_sin).transpose(1, 2), self.v_norm(v).transpose(1, 2)
        return (k, v) if cache is None else cache.append(self.layer, k, v)

    def forward(self, x: Tensor, cos_sin: CosSin, cache: KeyValueCache | None, shared: Shared) -> Tensor:
        q = self.q_norm(self.q_proj(x).view(*x.shape[:2], -1, self.head_dim))
        if self.k_proj is not None:
            shared[self.kind] = self.keys_and_values(x, self.k_proj, cos_sin, cache)
        return self.attended(apply_rotary_emb(q, cos_sin), *shared[self.kind], cache)


class Router(nn.Module):
    """Chooses experts: by a softmax of products with the normed state. Shares sum to one before each one's scale."""

    def __init__(self, config: Gemma4Config):
        super().__init__()
        self.norm, self.chosen = Unweighted(config.hidden_size, config.rms_norm_eps), config.num_experts_per_tok
        self.proj = nn.Linear(config.hidden_size, config.expert_count, bias=False)
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(config.expert_count))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return shares and numbers of the chosen experts, (N, chosen) each, of states x (N, C)."""
        logits = self.proj(self.norm(x) * self.scale * x.shape[-1] ** -0.5)
        shares, chosen = logits.softmax(-1, dtype=torch.float32).topk(self.chosen, dim=-1)
        return shares / shares.sum(-1, keepdim=True) * self.per_expert_scale[chosen], chosen

    def norm_weights(self) -> tuple[Tensor, Tensor | None, float, bool]:
        """Return those of what `proj` reads, for `models.step`."""
        return self.scale.float() * self.norm.size**-0.5, None, self.norm.eps, False


class Layer(nn.Module):
    """Norms before and after each of its parts, and a scale of what comes out."""

    STEP, NORMS = gemma2.Layer.STEP, gemma2.Layer.NORMS

    def __init__(self, config: Gemma4Config, layer: int):
        super().__init__()
        hidden, eps, own = config.hidden_size, config.rms_norm_eps, config.hidden_size_per_layer_input
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config, inner=config.inner(layer))
        self.input_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.pre_feedforward_layernorm = RMSNorm(hidden, eps)
        self.post_feedforward_layernorm = RMSNorm(hidden, eps)
        self.layer_scalar = nn.Buffer(torch.ones(1))
        self.activation = ACTIVATIONS[config.hidden_act]
        self.has_own = own > 0
        if own:
            self.per_layer_input_gate = nn.Linear(hidden, own, bias=False)
            self.per_layer_projection = nn.Linear(own, hidden, bias=False)
            self.post_per_layer_input_norm = RMSNorm(hidden, eps)
        self.has_experts = config.enable_moe_block
        if self.has_experts:
            self.router, self.chosen = Router(config), config.num_experts_per_tok
            inner = config.moe_intermediate_size
            self.experts = nn.ModuleList(MLP(config, inner=inner) for _ in range(config.expert_count))
            self.post_feedforward_layernorm_1 = RMSNorm(hidden, eps)
            self.pre_feedforward_layernorm_2 = RMSNorm(hidden, eps)
            self.post_feedforward_layernorm_2 = RMSNorm(hidden, eps)

    def forward(
        self, x: Tensor, cos_sin: CosSin, cache: KeyValueCache | None, shared: Shared, own: Tensor | None
    ) -> Tensor:
        """own (B, T, P): what the model's embeddings per layer have for this one."""
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), cos_sin, cache, shared))
        x = x + self.post_feedforward_layernorm(self.fed_forward(x))
        if own is not None:
            gate = self.activation(self.per_layer_input_gate(x))
            x = x + self.post_per_layer_input_norm(self.per_layer_projection(gate * own))
        return x * self.layer_scalar.to(x.dtype)

    def step_more(self) -> step_more.More:
        """What `models.step` needs to know beside STEP and NORMS."""
        own = beside = None
        if self.has_own:
            own = step_more.Own(self.per_layer_input_gate, self.per_layer_projection, self.post_per_layer_input_norm)
        if self.has_experts:
            norms = (
                self.pre_feedforward_layernorm_2,
                self.post_feedforward_layernorm_2,
                self.post_feedforward_layernorm_1,
            )
            router = self.router, self.router.proj, self.router.per_expert_scale
            beside = step_more.Beside(*router, self.experts, self.chosen, *norms)
        return step_more.More(own, beside, "layer_scalar")

    def fed_forward(self, x: Tensor) -> Tensor:
        """Return what the feed-forward network says of x (B, T, C), and the experts beside it."""
        y: Tensor = self.mlp(self.pre_feedforward_layernorm(x))
        if not self.has_experts:
            return y
        flat = x.reshape(-1, x.shape[-1])
        found = experts.mixed(self.experts, self.pre_feedforward_layernorm_2(flat), *self.router(flat)).view_as(x)
        return self.post_feedforward_layernorm_1(y) + self.post_feedforward_layernorm_2(found)


class Gemma4(TwoRopes):
    """The decoder with its language-model head."""

    config: Gemma4Config

    def __init__(self, config: Gemma4Config):
        super().__init__(config, lambda layer: Layer(config, layer), RMSNorm)
        limit, own = config.max_position_embeddings, config.hidden_size_per_layer_input
        self.rotary = Rotary(config.rope_parameters, config.global_head_dim, limit)
        self.sliding_rotary, self.types = Rotary(config.sliding_rope, config.head_size, limit), config.types
        self.embedding_scale, self.logit_cap = config.hidden_size**0.5, config.final_logit_softcapping
        if own:
            width = config.num_hidden_layers * own
            self.model.embed_tokens_per_layer = nn.Embedding(config.vocab_size_per_layer_input, width)
            self.model.per_layer_model_projection = nn.Linear(config.hidden_size, width, bias=False)
            self.model.per_layer_projection_norm = RMSNorm(own, config.rms_norm_eps)
        reuse = range(config.own_layers, config.num_hidden_layers)
        names = ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias", "k_norm.weight", "v_norm.weight")
        self.unread = {f"model.layers.{layer}.self_attn.{name}" for layer in reuse for name in names}

    def new_cache(self, batch: int, positions: int) -> KeyValueCache:
        config, layers = self.config, range(self.config.own_layers)
        heads, sizes = ([size(layer) for layer in layers] for size in (config.kv_heads_of, config.head_size_of))
        shape = (len(layers), batch, heads, positions, sizes)
        return KeyValueCache(*shape, device=self.device, dtype=self.compute_dtype)

    def step_parts(self) -> step.Parts:
        parts = super().step_parts()
        if not (own := self.config.hidden_size_per_layer_input):
            return parts
        embedding, projection, norm = self.makers_of_inputs()
        return replace(parts, inputs=step_more.Inputs(embedding, projection, norm, own))

    def makers_of_inputs(self) -> Iterator[nn.Module]:
        """The embedding, the projection and the norm of what each layer gets of its own."""
        names = ("embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm")
        return map(self.model.get_submodule, names)

    def embed_per_layer(self, ids: Tensor, x: Tensor) -> Tensor | None:
        """Return what each layer gets of its own, (B, T, layers, P), of ids (B, T) with embeddings x (B, T, C); None
        where there is nothing of that."""
        if not (own := self.config.hidden_size_per_layer_input):
            return None
        embedding, projection, norm = self.makers_of_inputs()
        shape = (*ids.shape, -1, own)
        embedded = embedding(ids).view(shape) * rounded(own**0.5, x.dtype)
        y: Tensor = (norm(projection(x).view(shape) * x.shape[-1] ** -0.5) + embedded) * 2**-0.5
        return y

    def through_layers(
        self,
        ids: Tensor,
        x: Tensor,
        per_layer: Sequence[CosSin | None],
        cache: KeyValueCache | None,
        *,
        last_only: bool = False,
    ) -> Iterator[Tensor]:
        own, shared = self.embed_per_layer(ids, x), Shared()
        for number, (layer, cos_sin) in enumerate(zip(self.model.layers, per_layer, strict=True)):
            if last_only and number >= self.config.own_layers and cos_sin is not None:
                x, cos_sin = x[:, -1:], (cos_sin[0][..., -1:, :, :], cos_sin[1][..., -1:, :, :])
                own = None if own is None else own[:, -1:]
            x = layer(x, cos_sin, cache, shared, None if own is None else own[:, :, number])
            yield x


LAYOUT = Layout(
    renames=gemma3.LAYOUT.renames,
    drops=(*decoder.LAYOUT.drops, r"(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio|vision_embedder)\..*"),
    tied=decoder.LAYOUT.tied,
    stacked={"experts.gate_up_proj": ("gate_proj", "up_proj"), "experts.down_proj": ("down_proj",)},
)
Config, Model = Gemma4Config, Gemma4

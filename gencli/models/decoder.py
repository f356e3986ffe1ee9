"""What the decoders of the Llama line share: the forward pass through layers of `decoder_blocks`.

Each family has a file of its own that combines these and holds what only it does. Attributes are named as the
checkpoints name them. B: batch, T: new positions, C: hidden_size, V: vocab_size.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from gencli.models import step
from gencli.models.base import Layout
from gencli.models.decoder_blocks import RMSNorm
from gencli.models.decoder_config import DecoderConfig
from gencli.models.kv_cache import KeyValueCache
from gencli.models.module import LanguageModel
from gencli.models.rope import CosSin, Rotary, of_rows

LAYOUT = Layout(
    drops=(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
    tied={"lm_head.weight": "model.embed_tokens.weight"},
)


class Stack(nn.Module):
    """What checkpoints call `model`: everything except the head."""

    def __init__(self, config: DecoderConfig, layers: Sequence[nn.Module], norm: nn.Module):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = norm


@functools.cache
def rounded(value: float, dtype: torch.dtype) -> float:
    """Round a number to a dtype: sqrt(3072) = 55.4256 is 55.5 in bfloat16."""
    return torch.tensor(value, device="cpu").to(dtype).item()


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """Return cap * tanh(x / cap), which keeps the order and every value within ± cap; x itself without a cap."""
    return x if cap is None else torch.tanh(x / cap) * cap


class Decoder(LanguageModel):
    """ids → embeddings * embedding_scale → layers → norm → head * logit_scale, with the cap `logit_cap`. Families set
    these, or override `embed`, `cos_sin_per_layer` and `head`."""

    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None

    def __init__(
        self,
        config: DecoderConfig,
        make_layer: Callable[[int], nn.Module],
        norm: Callable[[int, float], nn.Module] = RMSNorm,
    ):
        """make_layer: number of a layer → the layer. norm: (size, eps) → the norm before the head."""
        super().__init__()
        self.config = config
        layers = [make_layer(layer) for layer in range(config.num_hidden_layers)]
        self.model = Stack(config, layers, norm(config.hidden_size, config.rms_norm_eps))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.rotary = Rotary(config.rope_parameters, config.head_size, config.max_position_embeddings)

    @property
    def max_length(self) -> int:
        return self.config.rope_parameters.max_length(self.config.max_position_embeddings)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def new_cache(self, batch: int, positions: int) -> KeyValueCache:
        config = self.config
        shape = (config.num_hidden_layers, batch, config.kv_heads, positions, config.head_size)
        return KeyValueCache(*shape, device=self.device, dtype=self.compute_dtype)

    def rope_regime(self, length: int) -> int:
        return self.rotary.regime(length)

    def embed(self, ids: Tensor) -> Tensor:
        """Return embeddings (B, T, C) of token ids (B, T)."""
        x: Tensor = self.model.embed_tokens(ids)
        return x if self.embedding_scale == 1 else x * rounded(self.embedding_scale, x.dtype)

    def cos_sin_per_layer(self, start: int, stop: int, like: Tensor) -> Sequence[CosSin | None]:
        """Return, for each layer, the cos and sin of positions start … stop - 1; None for a layer without RoPE."""
        return [self.rotary(start, stop, like)] * len(self.model.layers)

    def head(self, x: Tensor) -> Tensor:
        """Return logits (B, T, V) of hidden states (B, T, C) after the last norm."""
        return self.scaled(self.lm_head(x))

    def scaled(self, logits: Tensor) -> Tensor:
        """Return logits of what the matrix of the head gives."""
        return soft_cap(logits if self.logit_scale == 1 else logits * self.logit_scale, self.logit_cap)

    def step_parts(self) -> step.Parts:
        """What `models.step` makes a step of."""
        own, model = type(self), self.model
        embedding = model.embed_tokens if own.embed is Decoder.embed else None
        head = self.lm_head if own.head is Decoder.head else None
        return step.Parts(model.layers, embedding, None, self.embedding_scale, model.norm, head, rotary=True)

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None, *, last_only: bool = False) -> Tensor:
        """Return logits (B, T, V) of ids (B, T) that follow those in `cache`; (B, 1, V) if `last_only`."""
        if (done := step.run(self, ids, cache, last_only)) is not None:
            x = done.result
            if done.are_logits:
                return self.scaled(x)
        else:
            x, (B, T) = self.embed(ids), ids.shape
            starts = [0] if cache is None else cache.starts(B)
            per_layer = of_rows([self.cos_sin_per_layer(start, start + T, x) for start in starts])
            for after in self.through_layers(ids, x, per_layer, cache, last_only=last_only):
                x = after  # and no list of them: a long prompt's states take as much as a layer's weights
            if cache is not None:
                cache.lengths[:B] += T
        if last_only:
            x = x[:, -1:]
        return self.head(self.model.norm(x))

    def through_layers(
        self,
        ids: Tensor,
        x: Tensor,
        per_layer: Sequence[CosSin | None],
        cache: KeyValueCache | None,
        *,
        last_only: bool = False,
    ) -> Iterator[Tensor]:
        """Yield the states (B, T, C) after each layer, of token ids (B, T) with embeddings x (B, T, C).

        per_layer: as of `cos_sin_per_layer`. last_only: states of the last position alone, (B, 1, C), do after layers
        whose other ones no later layer needs.
        """
        for layer, cos_sin in zip(self.model.layers, per_layer, strict=True):
            x = layer(x, cos_sin, cache)
            yield x

    def states(self, ids: Tensor, layers: Sequence[int], length: int | None = None) -> list[Tensor]:
        """Return the states (B, T, C) after so many layers, each, of token ids (B, T); no further layer is run.

        length: how many tokens there are before those that pad, which no token attends to.
        """
        cache = None if length is None else self.new_cache(*ids.shape)
        if cache is not None:
            cache.seen = length
        x = self.embed(ids)
        found = {0: x}
        per_layer = self.cos_sin_per_layer(0, ids.shape[1], x)
        after = self.through_layers(ids, x, per_layer, cache)
        for number, x in enumerate(itertools.islice(after, max(layers)), 1):
            if number in layers:
                found[number] = x
        return [found[number] for number in layers]


class TwoRopes(Decoder):
    """A decoder whose windowed layers are rotated by `sliding_rotary`, the others by `rotary`. types: of the layers."""

    sliding_rotary: Rotary
    types: Sequence[str]

    @property
    def max_length(self) -> int:
        """The longest sequence that the model can read, in tokens: here the config says it after scaling."""
        return self.config.max_position_embeddings

    def cos_sin_per_layer(self, start: int, stop: int, like: Tensor) -> Sequence[CosSin | None]:
        full, sliding = self.rotary(start, stop, like), self.sliding_rotary(start, stop, like)
        return [sliding if kind == "sliding_attention" else full for kind in self.types]

"""DALL·E mini and mega (Dayma et al. 2021), as min-dalle has them: a BART that reads a text and draws an image.

Attributes are named as the files of min-dalle name them; the names of encoder.pt and decoder.pt have their file's name
in front here. B: batch, T: positions, S: tokens of a text, C: width, K: image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import BaseConfig, Layout, check_ints
from gencli.models.kv_cache import KeyValueCache
from gencli.models.module import BaseModel, LanguageModel

HEAD = 64  # width of a head of attention
PAD = 1  # the token that fills a text up, which nothing looks at


@dataclass(frozen=True)
class DalleBartConfig(BaseConfig):
    """What the shapes of the tensors say. image_tokens: those that are drawn; the embedding knows image_ids."""

    INERT = frozenset({"model_type"})

    layers: int = 24
    width: int = 2048
    inner: int = 4096
    text_ids: int = 50272
    text_length: int = 64
    image_ids: int = 16416
    image_length: int = 256
    image_tokens: int = 16384

    def check(self) -> None:
        check_ints(self, {"layers": 1024, "width": 2**16, "inner": 2**20, "text_ids": 2**22, "text_length": 2**16})
        check_ints(self, {"image_ids": 2**22, "image_length": 2**16, "image_tokens": self.image_ids})
        if self.width % HEAD:
            raise GencliError(f"a width of {self.width} is no multiple of {HEAD}, which a head has")


class GLU(nn.Module):
    """A gated feed-forward network (Shazeer 2020) with a norm before each product."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.ln0, self.ln1 = nn.LayerNorm(width), nn.LayerNorm(inner)
        self.fc0, self.fc1 = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.fc2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln0(x)
        return self.fc2(self.ln1(F.gelu(self.fc0(x)) * self.fc1(x)))


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, H, T, D) of x (B, T, C)."""
        return _heads(self.k_proj(x)), _heads(self.v_proj(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        q = _heads(self.q_proj(x))
        return self.out_proj(F.scaled_dot_product_attention(q, keys, values, mask).transpose(1, 2).flatten(2))


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(2, (-1, HEAD)).transpose(1, 2)


class EncoderLayer(nn.Module):
    def __init__(self, config: DalleBartConfig):
        super().__init__()
        self.pre_self_attn_layer_norm = nn.LayerNorm(config.width)
        self.self_attn = Attention(config.width)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.glu = GLU(config.width, config.inner)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.pre_self_attn_layer_norm(x)
        x = x + self.self_attn_layer_norm(self.self_attn(y, *self.self_attn.read(y), mask))
        return x + self.glu(x)


class DecoderLayer(nn.Module):
    def __init__(self, config: DalleBartConfig):
        super().__init__()
        self.pre_self_attn_layer_norm = nn.LayerNorm(config.width)
        self.self_attn = Attention(config.width)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.pre_encoder_attn_layer_norm = nn.LayerNorm(config.width)
        self.encoder_attn = Attention(config.width)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.width)
        self.glu = GLU(config.width, config.inner)

    def forward(self, x: Tensor, layer: int, cache: KeyValueCache, text: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """text: keys, values and mask of the text, for all rows."""
        (B, T, _), y = x.shape, self.pre_self_attn_layer_norm(x)
        keys, values = cache.append(layer, *self.self_attn.read(y))
        seen = cache.visible(B)
        if seen is None:
            S = keys.shape[2]
            seen = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
        x = x + self.self_attn_layer_norm(self.self_attn(y, keys, values, seen))
        y = self.pre_encoder_attn_layer_norm(x)
        x = x + self.encoder_attn_layer_norm(self.encoder_attn(y, *(one.expand(B, -1, -1, -1) for one in text)))
        return x + self.glu(x)


class Half(nn.Module):
    """What encoder and decoder share: embeddings, layers and norms."""

    def __init__(self, config: DalleBartConfig, ids: int, length: int, layer: type[nn.Module]):
        super().__init__()
        self.embed_tokens, self.embed_positions = nn.Embedding(ids, config.width), nn.Embedding(length, config.width)
        self.layernorm_embedding = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(layer(config) for _ in range(config.layers))
        self.final_ln = nn.LayerNorm(config.width)

    def embed(self, ids: Tensor, starts: Sequence[int] = (0,)) -> Tensor:
        """Return embeddings (B, T, C) of ids (B, T) behind so many positions, one number or one for each row."""
        positions = torch.tensor(starts, device=ids.device)[:, None] + torch.arange(ids.shape[1], device=ids.device)
        return self.layernorm_embedding(self.embed_tokens(ids) + self.embed_positions(positions))


class Drawing(Half):
    """The decoder, with its head over image tokens."""

    def __init__(self, config: DalleBartConfig, ids: int, length: int, layer: type[nn.Module]):
        super().__init__(config, ids, length, layer)
        self.lm_head = nn.Linear(config.width, ids, bias=False)


class DalleBart(BaseModel):
    """Texts → a decoder of their images: `reading`."""

    def __init__(self, config: DalleBartConfig):
        super().__init__()
        self.config = config
        self.encoder = Half(config, config.text_ids, config.text_length, EncoderLayer)
        self.decoder = Drawing(config, config.image_ids, config.image_length, DecoderLayer)

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return states (B, S, C) of texts (B, S), and where they may be looked at (B, 1, 1, S)."""
        x, mask = self.encoder.embed(ids), (ids != PAD)[:, None, None]
        for layer in self.encoder.layers:
            x = layer(x, mask)
        return self.encoder.final_ln(x), mask

    def reading(self, ids: Tensor) -> Reading:
        """Return the decoder for a text (1, S)."""
        return Reading(self, ids)


class Reading(LanguageModel):
    """A decoder of image tokens, after a certain text."""

    def __init__(self, model: DalleBart, ids: Tensor):
        super().__init__()
        self.model, self.compute_dtype = model, model.compute_dtype
        with torch.inference_mode():
            states, mask = model.encode(ids)
            layers = (cast(DecoderLayer, layer) for layer in model.decoder.layers)
            self.texts = [(*layer.encoder_attn.read(states), mask) for layer in layers]

    @property
    def max_length(self) -> int:
        return self.model.config.image_length

    @property
    def vocab_size(self) -> int:
        return self.model.config.image_tokens

    def new_cache(self, batch: int, positions: int) -> KeyValueCache:
        config = self.model.config
        shape = (config.layers, batch, config.width // HEAD, positions, HEAD)
        return KeyValueCache(*shape, device=self.device, dtype=self.compute_dtype)

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None, *, last_only: bool = False) -> Tensor:
        """Return logits (B, T, K) of image tokens (B, T), which are added to the cache."""
        assert cache is not None
        (B, T), decoder = ids.shape, self.model.decoder
        x = decoder.embed(ids, cache.starts(B))
        for i, layer in enumerate(decoder.layers):
            x = layer(x, i, cache, self.texts[i])
        cache.lengths[:B] += T
        x = x[:, -1:] if last_only else x
        return decoder.lm_head(decoder.final_ln(x))[..., : self.vocab_size]


LAYOUT = Layout()
Config, Model = DalleBartConfig, DalleBart

"""The text encoder of CLIP (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language …").

Attributes are named as the files of today's transformers name them. B: batch, T: tokens, C: hidden_size, H: heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gencli.models.activations import ACTIVATIONS, check_activation
from gencli.models.attention import multi_head_attention
from gencli.models.base import TRANSFORMERS_INERT, BaseConfig, Layout, Rename, check_ints, check_multiple, check_numbers
from gencli.models.module import BaseModel


class EncoderConfig(Protocol):
    """What the layers of an encoder read of its config, of texts or of images."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def layer_norm_eps(self) -> float: ...


def check_encoder(config: EncoderConfig) -> None:
    """Check bounds that any real encoder keeps, so that a hostile config allocates nothing. Raises GencliError."""
    bounds = {"hidden_size": 2**14, "intermediate_size": 2**16, "num_hidden_layers": 128, "num_attention_heads": 1024}
    check_ints(config, bounds)
    check_numbers(config, {"layer_norm_eps": (0.0, 1.0)})
    check_multiple(config, "hidden_size", "num_attention_heads")
    check_activation("hidden_act", config.hidden_act)


@dataclass(frozen=True)
class CLIPTextConfig(BaseConfig):
    """config.json of a text encoder; defaults are those of the class in transformers.

    `architectures` says whether a projection to `projection_dim` follows.
    """

    INERT = TRANSFORMERS_INERT

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    projection_dim: int = 512
    architectures: tuple[str, ...] | None = None

    def check(self) -> None:
        check_encoder(self)
        check_ints(self, {"vocab_size": 2**22, "max_position_embeddings": 2**16})
        check_ints(self, {"eos_token_id": 2**22}, least=0)
        if self.projects:
            check_ints(self, {"projection_dim": 2**14})

    @property
    def projects(self) -> bool:
        """Whether the pooled vector is projected, as for a comparison with images."""
        return self.architectures == ("CLIPTextModelWithProjection",)


@dataclass(frozen=True)
class CLIPTextOutput:
    """last_hidden_state (B, T, C): normed. pooled (B, C): its vector at the end of the text. text_embeds (B, P): that
    vector projected, if the model has a projection.

    hidden_states: the input of the first layer and the output of each, (B, T, C) and not normed. The penultimate layer
    is `model.final_layer_norm(hidden_states[-2])`.
    """

    last_hidden_state: Tensor
    hidden_states: list[Tensor]
    pooled: Tensor
    text_embeds: Tensor | None = None


class CLIPTextEmbeddings(nn.Module):
    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Return embeddings (B, T, C) of token ids (B, T), with those of their positions."""
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class CLIPAttention(nn.Module):
    def __init__(self, config: EncoderConfig, *, causal: bool):
        super().__init__()
        self.causal = causal
        self.heads = config.num_attention_heads
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention of x (B, T, C) to itself."""
        q, k, v = (projection(x) for projection in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(multi_head_attention(q, k, v, self.heads, causal=self.causal))


class CLIPMLP(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, C) for x (B, T, C)."""
        return self.fc2(self.activation(self.fc1(x)))


class CLIPEncoderLayer(nn.Module):
    def __init__(self, config: EncoderConfig, *, causal: bool):
        super().__init__()
        self.self_attn = CLIPAttention(config, causal=causal)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next states (B, T, C) of x (B, T, C)."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Module):
    """The layers of an encoder. causal: a position sees only those before it, as in texts; otherwise all."""

    def __init__(self, config: EncoderConfig, *, causal: bool = True):
        super().__init__()
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(CLIPEncoderLayer(config, causal=causal) for _ in layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the input of the first layer and the output of each."""
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states


class CLIPTextModel(BaseModel):
    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.config = config
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.projects:
            self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    @property
    def max_length(self) -> int:
        """The longest text that the model can read, in tokens."""
        return self.config.max_position_embeddings

    def forward(self, ids: Tensor) -> CLIPTextOutput:
        """Encode token ids (B, T), T at most `max_length`. A token sees those before it; padding is not masked."""
        hidden_states = self.encoder(self.embeddings(ids))
        x = self.final_layer_norm(hidden_states[-1])
        pooled = x[torch.arange(len(ids), device=ids.device), self._end(ids)]
        return CLIPTextOutput(x, hidden_states, pooled, self.text_projection(pooled) if self.config.projects else None)

    def _end(self, ids: Tensor) -> Tensor:
        """Return the position of the end of each text, (B,).

        Early configs have a wrong `eos_token_id` of 2; their end token is the largest id (transformers issue 24773).
        Otherwise it is the first end token, as padding may repeat it.
        """
        if self.config.eos_token_id == 2:
            return ids.argmax(dim=-1)
        return (ids == self.config.eos_token_id).int().argmax(dim=-1)


LAYOUT = Layout(
    # Most files on the hub have the prefix; those that transformers 5 saves do not.
    renames=(Rename(r"text_model\.(.*)", r"\1"),),
    drops=(r"(text_model\.)?embeddings\.position_ids",),  # 0, 1, 2, …
)
Config, Model = CLIPTextConfig, CLIPTextModel

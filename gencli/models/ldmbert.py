"""The text encoder of Latent Diffusion (Rombach et al. 2022): a transformer over WordPiece tokens, without masks.

Attributes are named as the checkpoints of diffusers (LDMBertModel) name them.
B: batch, T: tokens, C: d_model, H: heads, D: head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gencli.models.activations import ACTIVATIONS, check_activation
from gencli.models.attention import multi_head_attention
from gencli.models.base import TRANSFORMERS_INERT, BaseConfig, Layout, check_ints
from gencli.models.module import BaseModel


@dataclass(frozen=True)
class LDMBertConfig(BaseConfig):
    """config.json of a text encoder; defaults are those of the class in diffusers."""

    # For training or other uses; the class in diffusers reads scale_embedding, but does not scale.
    INERT = TRANSFORMERS_INERT | {
        "activation_dropout", "classifier_dropout", "encoder_layerdrop", "init_std", "num_hidden_layers",
        "scale_embedding",
    }  # fmt: skip

    vocab_size: int = 30522
    max_position_embeddings: int = 77
    encoder_layers: int = 32
    encoder_ffn_dim: int = 5120
    encoder_attention_heads: int = 8
    head_dim: int = 64
    activation_function: str = "gelu"
    d_model: int = 1280

    def check(self) -> None:
        check_ints(self, {"vocab_size": 2**22, "d_model": 2**14, "encoder_ffn_dim": 2**16, "encoder_layers": 128})
        check_ints(self, {"encoder_attention_heads": 1024, "head_dim": 2**12, "max_position_embeddings": 2**16})
        check_activation("activation_function", self.activation_function)


class LDMBertAttention(nn.Module):
    """Every token attends to every other; H · D need not be C."""

    def __init__(self, config: LDMBertConfig):
        super().__init__()
        self.heads = config.encoder_attention_heads
        inner = self.heads * config.head_dim
        self.k_proj = nn.Linear(config.d_model, inner, bias=False)
        self.v_proj = nn.Linear(config.d_model, inner, bias=False)
        self.q_proj = nn.Linear(config.d_model, inner, bias=False)
        self.out_proj = nn.Linear(inner, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (projection(x) for projection in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(multi_head_attention(q, k, v, self.heads))


class LDMBertEncoderLayer(nn.Module):
    def __init__(self, config: LDMBertConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation_function]
        self.self_attn = LDMBertAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next states (B, T, C) of x (B, T, C)."""
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(self.activation(self.fc1(self.final_layer_norm(x))))


class LDMBertEncoder(nn.Module):
    def __init__(self, config: LDMBertConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.layers = nn.ModuleList(LDMBertEncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, ids: Tensor) -> Tensor:
        """Return states (B, T, C), normed, of token ids (B, T)."""
        x = self.embed_tokens(ids) + self.embed_positions.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)


class LDMBertModel(BaseModel):
    def __init__(self, config: LDMBertConfig):
        super().__init__()
        self.config = config
        self.model = LDMBertEncoder(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the last hidden states (B, T, C), normed, of token ids (B, T). Padding is read like other tokens."""
        return self.model(ids)


# The head that predicts words, a fifteenth of the file, was for training only.
LAYOUT = Layout(drops=(r"to_logits\.(weight|bias)",))
Config, Model = LDMBertConfig, LDMBertModel

"""How unCLIP's decoder reads the embedding of an image and a text (Ramesh et al. 2022, arXiv 2204.06125, section 2.1),
as UnCLIPTextProjModel of diffusers.

Attributes are named as the checkpoint names them. B: batch, L: tokens of the text, E: clip_embeddings_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gencli.models.base import BaseConfig, Layout, check_ints
from gencli.models.module import BaseModel


@dataclass(frozen=True)
class UnCLIPTextProjConfig(BaseConfig):
    clip_extra_context_tokens: int = 4
    clip_embeddings_dim: int = 768
    time_embed_dim: int = 1280
    cross_attention_dim: int = 1536

    def check(self) -> None:
        check_ints(self, {"clip_extra_context_tokens": 64, "clip_embeddings_dim": 2**14})
        check_ints(self, {"time_embed_dim": 2**14, "cross_attention_dim": 2**14})


class UnCLIPTextProjModel(BaseModel):
    """learned_classifier_free_guidance_embeddings: of no image, which guidance leads away from."""

    def __init__(self, config: UnCLIPTextProjConfig):
        super().__init__()
        self.config = config
        clip, context = config.clip_embeddings_dim, config.cross_attention_dim
        self.learned_classifier_free_guidance_embeddings = nn.Parameter(torch.empty(clip))
        self.embedding_proj = nn.Linear(clip, config.time_embed_dim)
        self.clip_image_embeddings_project_to_time_embeddings = nn.Linear(clip, config.time_embed_dim)
        self.clip_extra_context_tokens_proj = nn.Linear(clip, config.clip_extra_context_tokens * context)
        self.encoder_hidden_states_proj = nn.Linear(clip, context)
        self.text_encoder_hidden_states_norm = nn.LayerNorm(context)

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the context (B, tokens + L, D) and what is added to the time embedding (B, T) for embeddings of images
        and texts (B, E) and the states of the texts (B, L, E)."""
        added = self.clip_image_embeddings_project_to_time_embeddings(image_embeds) + self.embedding_proj(text_embeds)
        tokens = self.clip_extra_context_tokens_proj(image_embeds)
        tokens = tokens.unflatten(1, (-1, self.config.clip_extra_context_tokens)).transpose(1, 2)
        context = self.text_encoder_hidden_states_norm(self.encoder_hidden_states_proj(states))
        return torch.cat([tokens, context], dim=1), added


LAYOUT = Layout()
Config, Model = UnCLIPTextProjConfig, UnCLIPTextProjModel

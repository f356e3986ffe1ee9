"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): one CLIP text encoder, whose last states the UNet attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from gencli.image.conditioning import Conditioning
from gencli.image.prompts import weighting
from gencli.image.prompts.base import Loader, PromptParts, pad_prompt
from gencli.image.request import ImageRequest
from gencli.models.clip_text import CLIPTextModel
from gencli.tokens import Tokenizer


def load(checkpoint: PromptParts, loader: Loader) -> ClipPrompts:
    """Load the text encoder and its tokenizer."""
    return ClipPrompts(checkpoint.tokenizer(), cast(CLIPTextModel, loader("text_encoder")))


@dataclass(frozen=True)
class ClipPrompts:
    """Prompts → `encoder_hidden_states` (B, L, D), the text encoder's last hidden states."""

    tokenizer: Tokenizer
    text_encoder: CLIPTextModel

    @property
    def text_encoders(self) -> list[tuple[Tokenizer, CLIPTextModel]]:
        return [(self.tokenizer, self.text_encoder)]

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long. Weighted prompts may be of any length: L is 77 a chunk."""
        if request.weighted:
            joined, _ = weighting.encode(self.tokenizer, self.text_encoder, prompts, lambda out: out.last_hidden_state)
            return Conditioning({"encoder_hidden_states": joined})
        ids = token_ids(self.tokenizer, self.text_encoder, prompts, request.truncate)
        return Conditioning({"encoder_hidden_states": self.text_encoder(ids).last_hidden_state})

    def negative(self, request: ImageRequest) -> Conditioning:
        return self.encode([request.negative or ""], request)


def token_ids(tokenizer: Tokenizer, encoder: CLIPTextModel, prompts: Sequence[str], truncate: str | None) -> Tensor:
    """Token ids (B, L) of prompts, padded (see `pad_prompt`), on the encoder's device."""
    positions, words = encoder.config.max_position_embeddings, encoder.config.vocab_size
    ids = [pad_prompt(tokenizer, prompt, positions, words, truncate) for prompt in prompts]
    return torch.tensor(ids, device=encoder.device)

"""Prompts of GLIDE (Nichol et al. 2021): GPT-2's tokens of the text in lower case, through a transformer of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from gencli.errors import GencliError
from gencli.image.conditioning import Conditioning
from gencli.image.prompts.base import Loader, PromptParts, prompt_ids
from gencli.image.request import ImageRequest
from gencli.models.glide_text import GlideTextModel
from gencli.tokens import Tokenizer


def load(checkpoint: PromptParts, loader: Loader) -> GlidePrompts:
    """Load the text transformer and its tokenizer."""
    return GlidePrompts(checkpoint.tokenizer(), cast(GlideTextModel, loader("text_encoder")))


@dataclass(frozen=True)
class GlidePrompts:
    """Prompts → `encoder_hidden_states` (B, T, W) and `text_embeds` (B, E), which is added to the time embedding. No
    text at all is what guidance leads away from."""

    tokenizer: Tokenizer
    text_encoder: GlideTextModel

    @property
    def text_encoders(self) -> list[tuple[Tokenizer, GlideTextModel]]:
        return [(self.tokenizer, self.text_encoder)]

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long."""
        config, device = self.text_encoder.config, self.text_encoder.device
        ids = [prompt_ids(self.tokenizer, prompt.lower(), config.text_ctx, request.truncate) for prompt in prompts]
        if max((max(one) for one in ids if one), default=0) >= config.vocab_size:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer knows more tokens than the text encoder")
        padded = torch.tensor([[*one, *[0] * (config.text_ctx - len(one))] for one in ids], device=device)
        lengths = torch.tensor([[len(one)] for one in ids], device=device)
        states, embeds = self.text_encoder(padded, torch.arange(config.text_ctx, device=device) < lengths)
        return Conditioning({"encoder_hidden_states": states, "text_embeds": embeds})

    def negative(self, request: ImageRequest) -> Conditioning:
        return self.encode([request.negative or ""], request)

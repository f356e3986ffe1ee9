"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): one CLIP text encoder, whose last states the UNet attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gencli.image import weighted
from gencli.image.checkpoint import Checkpoint
from gencli.image.families.base import Conditioning, Loader, frame
from gencli.image.request import ImageRequest
from gencli.tokens import Tokenizer


def load(checkpoint: Checkpoint, loader: Loader) -> ClipPrompts:
    """The text encoder with its tokenizer."""
    return ClipPrompts(checkpoint.tokenizer(), loader("text_encoder"))


@dataclass(frozen=True)
class ClipPrompts:
    """Prompts → `encoder_hidden_states` (B, L, D), the text encoder's last hidden states."""

    tokenizer: Tokenizer
    text_encoder: Any

    @property
    def modules(self) -> list[Any]:
        return [self.text_encoder]

    @property
    def towers(self) -> list[tuple[Tokenizer, Any]]:
        """Text encoders, each with its tokenizer."""
        return [(self.tokenizer, self.text_encoder)]

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long, but for weighted ones, whose L is 77 for each chunk."""
        if request.weighted:
            joined, _ = weighted.encode(self.tokenizer, self.text_encoder, prompts, lambda out: out.last_hidden_state)
            return {"encoder_hidden_states": joined}
        device = next(self.text_encoder.parameters()).device
        ids = torch.tensor([self.tokenize(prompt, request.truncate) for prompt in prompts], device=device)
        states: Tensor = self.text_encoder(ids).last_hidden_state
        return {"encoder_hidden_states": states}

    def negative(self, request: ImageRequest) -> Conditioning:
        return self.encode([request.negative or ""], request)

    def tokenize(self, prompt: str, truncate: str | None = None) -> list[int]:
        """Ids of a prompt, framed and padded (see `frame`)."""
        config = self.text_encoder.config
        return frame(self.tokenizer, prompt, config.max_position_embeddings, config.vocab_size, truncate)

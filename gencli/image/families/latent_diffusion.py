"""Latent diffusion before Stable Diffusion (Rombach et al. 2022): without a prompt, or with a text encoder of its own.

That encoder, LDMBert, reads WordPiece tokens padded to 77 and attends to the padding too, as it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gencli.image.checkpoint import Checkpoint
from gencli.image.families import classes
from gencli.image.families.base import Conditioning, Loader, frame
from gencli.image.request import ImageRequest
from gencli.tokens import Tokenizer


def load(checkpoint: Checkpoint, loader: Loader) -> BertPrompts | classes.ClassPrompts | None:
    """The text encoder with its tokenizer; where there is none the classes of the UNet, if it is told any."""
    if "bert" not in checkpoint.parts:
        return classes.load(checkpoint, loader)
    return BertPrompts(checkpoint.tokenizer(), loader("bert"))


@dataclass(frozen=True)
class BertPrompts:
    """Prompts → `encoder_hidden_states` (B, 77, C), the text encoder's last states."""

    tokenizer: Tokenizer
    bert: Any

    @property
    def modules(self) -> list[Any]:
        return [self.bert]

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long."""
        device = next(self.bert.parameters()).device
        config = self.bert.config
        fits = (config.max_position_embeddings, config.vocab_size, request.truncate)
        framed = [frame(self.tokenizer, prompt, *fits, chunks=False) for prompt in prompts]
        return {"encoder_hidden_states": self.bert(torch.tensor(framed, device=device))}

    def negative(self, request: ImageRequest) -> Conditioning:
        return self.encode([request.negative or ""], request)

"""Latent diffusion before Stable Diffusion (Rombach et al. 2022): without a prompt, or with a text encoder of its own.

That encoder, LDMBert, reads WordPiece tokens padded to 77 and attends to the padding too, as it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from gencli.image.conditioning import Conditioning
from gencli.image.prompts import classes
from gencli.image.prompts.base import Loader, PromptParts, pad_prompt
from gencli.image.request import ImageRequest
from gencli.models.ldmbert import LDMBertModel
from gencli.tokens import Tokenizer


def load(checkpoint: PromptParts, loader: Loader) -> BertPrompts | classes.ClassPrompts | None:
    """Load the text encoder and its tokenizer; without one, the classes of the UNet, if it takes any."""
    if "bert" not in checkpoint.parts:
        return classes.load(checkpoint, loader)
    return BertPrompts(checkpoint.tokenizer(), cast(LDMBertModel, loader("bert")))


@dataclass(frozen=True)
class BertPrompts:
    """Prompts → `encoder_hidden_states` (B, 77, C), the text encoder's last states."""

    tokenizer: Tokenizer
    bert: LDMBertModel

    @property
    def text_encoders(self) -> list[tuple[Tokenizer, LDMBertModel]]:
        return [(self.tokenizer, self.bert)]

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long."""
        device = self.bert.device
        config = self.bert.config
        fits = (config.max_position_embeddings, config.vocab_size, request.truncate)
        padded = [pad_prompt(self.tokenizer, prompt, *fits, chunks=False) for prompt in prompts]
        return Conditioning({"encoder_hidden_states": self.bert(torch.tensor(padded, device=device))})

    def negative(self, request: ImageRequest) -> Conditioning:
        return self.encode([request.negative or ""], request)

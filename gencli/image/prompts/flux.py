"""Prompts of FLUX.1: the last states of T5, of padding too, and CLIP's pooled text, of the prompt's first 77 tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from gencli.image.conditioning import Conditioning
from gencli.image.prompts.base import Loader, PromptParts
from gencli.image.prompts.stable_diffusion import token_ids
from gencli.image.prompts.t5 import T5Prompts
from gencli.image.request import ImageRequest
from gencli.models.clip_text import CLIPTextModel
from gencli.models.module import BaseModel
from gencli.models.t5 import T5EncoderModel
from gencli.tokens import Tokenizer

LENGTH, SCHNELL_LENGTH = 512, 256  # tokens that FLUX.1 dev and schnell were made with


@dataclass(frozen=True)
class FluxPrompts:
    """Prompts → `encoder_hidden_states` (B, length, E) and `text_embeds` (B, P)."""

    tokenizer: Tokenizer
    clip: CLIPTextModel
    t5: T5Prompts

    @property
    def text_encoders(self) -> list[tuple[Tokenizer, BaseModel]]:
        return [(self.tokenizer, self.clip), *self.t5.text_encoders]

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long for T5."""
        ids, _ = self.t5.padded(prompts, request)
        states = self.t5.t5(ids, torch.ones_like(ids, dtype=torch.bool))
        pooled = self.clip(token_ids(self.tokenizer, self.clip, prompts, request.truncate or "right")).pooled
        return Conditioning({"encoder_hidden_states": states, "text_embeds": pooled})

    def negative(self, request: ImageRequest) -> Conditioning:
        return self.encode([request.negative or ""], request)


def load(checkpoint: PromptParts, loader: Loader) -> FluxPrompts:
    """Load both text encoders and their tokenizers."""
    told = checkpoint.configs["transformer"].get("guidance_embeds", False)
    t5 = cast(T5EncoderModel, loader("text_encoder_2"))
    states = T5Prompts(checkpoint.tokenizer("tokenizer_2"), t5, LENGTH if told else SCHNELL_LENGTH)
    return FluxPrompts(checkpoint.tokenizer(), cast(CLIPTextModel, loader("text_encoder")), states)

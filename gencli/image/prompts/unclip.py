"""Prompts of unCLIP (Ramesh et al. 2022): CLIP's last states, its projected pooled text, and which tokens count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from gencli.image.conditioning import Conditioning
from gencli.image.prompts.base import Loader, PromptParts
from gencli.image.prompts.stable_diffusion import token_ids
from gencli.image.request import ImageRequest
from gencli.models.clip_text import CLIPTextModel
from gencli.tokens import Tokenizer


def load(checkpoint: PromptParts, loader: Loader) -> UnCLIPPrompts:
    """Load the text encoder and its tokenizer."""
    return UnCLIPPrompts(checkpoint.tokenizer(), cast(CLIPTextModel, loader("text_encoder")))


def load_prior(checkpoint: PromptParts, loader: Loader) -> UnCLIPPrompts:
    """Load those that only the prior reads, and which no negative prompt reaches: Stable unCLIP's."""
    text_encoder = cast(CLIPTextModel, loader("prior_text_encoder"))
    return UnCLIPPrompts(checkpoint.tokenizer("prior_tokenizer"), text_encoder, reads_negative=False)


@dataclass(frozen=True)
class UnCLIPPrompts:
    """Prompts → the inputs of a prior: `encoder_hidden_states` (B, 77, C), `proj_embedding` (B, E), `attention_mask`
    (B, 77), false after the end of a text."""

    tokenizer: Tokenizer
    text_encoder: CLIPTextModel
    reads_negative: bool = True

    @property
    def text_encoders(self) -> list[tuple[Tokenizer, CLIPTextModel]]:
        return [(self.tokenizer, self.text_encoder)]

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long."""
        ids = token_ids(self.tokenizer, self.text_encoder, prompts, request.truncate)
        output = self.text_encoder(ids)
        assert output.text_embeds is not None
        # by the place of the end: what pads may be a word too
        ends = (ids == next(iter(self.tokenizer.eos_ids))).int().argmax(dim=1, keepdim=True)
        mask = torch.arange(ids.shape[1], device=ids.device) <= ends
        states = {"encoder_hidden_states": output.last_hidden_state, "proj_embedding": output.text_embeds}
        return Conditioning({**states, "attention_mask": mask})

    def negative(self, request: ImageRequest) -> Conditioning:
        return self.encode([(request.negative or "") if self.reads_negative else ""], request)

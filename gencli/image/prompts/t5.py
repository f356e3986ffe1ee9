"""Prompts as the last states of T5: of Imagen's form (Saharia et al. 2022), whose padding only T5 itself leaves out,
and of PixArt's, which leaves it out too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.image.conditioning import Conditioning
from gencli.image.prompts.base import Loader, PromptParts, prompt_ids
from gencli.image.request import ImageRequest
from gencli.models.t5 import T5EncoderModel
from gencli.tokens import Tokenizer

LENGTH, ALPHA_LENGTH, SIGMA_LENGTH = 77, 120, 300  # tokens that DeepFloyd IF and PixArt-α and Σ were trained with


def load(checkpoint: PromptParts, loader: Loader) -> T5Prompts:
    """Load the text encoder and its tokenizer."""
    return T5Prompts(checkpoint.tokenizer(), cast(T5EncoderModel, loader("text_encoder")))


def load_alpha(checkpoint: PromptParts, loader: Loader) -> PixArtPrompts:
    """Load the text encoder and its tokenizer."""
    return PixArtPrompts(checkpoint.tokenizer(), cast(T5EncoderModel, loader("text_encoder")), ALPHA_LENGTH)


def load_sigma(checkpoint: PromptParts, loader: Loader) -> PixArtPrompts:
    """Load the text encoder and its tokenizer."""
    return PixArtPrompts(checkpoint.tokenizer(), cast(T5EncoderModel, loader("text_encoder")), SIGMA_LENGTH)


@dataclass(frozen=True)
class T5Prompts:
    """Prompts, in lower case, → `encoder_hidden_states` (B, length, C)."""

    tokenizer: Tokenizer
    t5: T5EncoderModel
    length: int = LENGTH

    @property
    def text_encoders(self) -> list[tuple[Tokenizer, T5EncoderModel]]:
        return [(self.tokenizer, self.t5)]

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long."""
        padded, mask = self.padded([one.lower().strip() for one in prompts], request)
        return Conditioning({"encoder_hidden_states": self.t5(padded, mask)})

    def negative(self, request: ImageRequest) -> Conditioning:
        return self.encode([request.negative or ""], request)

    def padded(self, texts: Sequence[str], request: ImageRequest) -> tuple[Tensor, Tensor]:
        """Token ids (B, length) and their mask, false for padding. Raises GencliError for a text that is too long."""
        ids = [self._ids(text, request.truncate) for text in texts]
        padded = torch.tensor([[*one, *[0] * (self.length - len(one))] for one in ids], device=self.t5.device)
        mask = torch.arange(self.length, device=self.t5.device) < torch.tensor([[len(one)] for one in ids]).to(padded)
        return padded, mask

    def _ids(self, prompt: str, truncate: str | None) -> list[int]:
        end = next(iter(self.tokenizer.eos_ids), None)
        if end is None:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer names no end token")
        ids = prompt_ids(self.tokenizer, prompt, self.length - 1, truncate)
        if max([*ids, end]) >= self.t5.config.vocab_size:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer knows more tokens than the text encoder")
        return [*ids, end]


class PixArtPrompts(T5Prompts):
    """The same with their mask, and the size of the image, which some of the networks read."""

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        padded, mask = self.padded([one.lower().strip() for one in prompts], request)
        size = torch.tensor([[float(request.height or 0), float(request.width or 0)]], device=self.t5.device)
        states = self.t5(padded, mask)
        return Conditioning({"encoder_hidden_states": states, "encoder_attention_mask": mask, "size": size})

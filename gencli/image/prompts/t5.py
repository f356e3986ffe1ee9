"""Prompts of Imagen's form (Saharia et al. 2022): the last states of T5, whose padding only T5 itself leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from gencli.errors import GencliError
from gencli.image.conditioning import Conditioning
from gencli.image.prompts.base import Loader, PromptParts
from gencli.image.request import ImageRequest
from gencli.models.t5 import T5EncoderModel
from gencli.tokens import Tokenizer

LENGTH = 77  # tokens that DeepFloyd IF was trained with


def load(checkpoint: PromptParts, loader: Loader) -> T5Prompts:
    """Load the text encoder and its tokenizer."""
    return T5Prompts(checkpoint.tokenizer(), cast(T5EncoderModel, loader("text_encoder")))


@dataclass(frozen=True)
class T5Prompts:
    """Prompts, in lower case, → `encoder_hidden_states` (B, 77, C)."""

    tokenizer: Tokenizer
    t5: T5EncoderModel

    @property
    def text_encoders(self) -> list[tuple[Tokenizer, T5EncoderModel]]:
        return [(self.tokenizer, self.t5)]

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long."""
        ids = [self._ids(prompt.lower().strip(), request.truncate) for prompt in prompts]
        padded = torch.tensor([[*one, *[0] * (LENGTH - len(one))] for one in ids], device=self.t5.device)
        mask = torch.arange(LENGTH, device=self.t5.device) < torch.tensor([[len(one)] for one in ids]).to(padded)
        return Conditioning({"encoder_hidden_states": self.t5(padded, mask)})

    def negative(self, request: ImageRequest) -> Conditioning:
        return self.encode([request.negative or ""], request)

    def _ids(self, prompt: str, truncate: str | None) -> list[int]:
        end = next(iter(self.tokenizer.eos_ids), None)
        if end is None:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer names no end token")
        ids = self.tokenizer.encode(prompt, add_special_tokens=False)
        if len(ids) >= LENGTH and truncate is None:
            raise GencliError(
                f"the prompt has {len(ids)} tokens, and this model reads at most {LENGTH - 1}: {prompt[:40]!r}…",
                "--truncate right leaves out its end, --truncate left its beginning",
            )
        ids = ids[1 - LENGTH :] if truncate == "left" else ids[: LENGTH - 1]
        if max([*ids, end]) >= self.t5.config.vocab_size:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer knows more tokens than the text encoder")
        return [*ids, end]

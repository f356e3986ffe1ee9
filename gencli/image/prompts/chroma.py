"""Prompts of Chroma: the last states of T5 for a prompt and one token of padding, the others left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from gencli.image.conditioning import Conditioning
from gencli.image.prompts.base import Loader, PromptParts
from gencli.image.prompts.t5 import T5Prompts
from gencli.image.request import ImageRequest
from gencli.models.t5 import T5EncoderModel

LENGTH = 512  # tokens that the model was trained with


class ChromaPrompts(T5Prompts):
    """Prompts → `caption` (B, 512, E), and `lengths` (B,): how many tokens of each the network reads."""

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long."""
        ids, mask = self.padded(prompts, request)
        lengths = (mask.sum(dim=1) + 1).clamp(max=self.length)
        return Conditioning({"caption": self.t5(ids, mask), "lengths": lengths.to(torch.device("cpu"))})


def load(checkpoint: PromptParts, loader: Loader) -> ChromaPrompts:
    """Load the text encoder and its tokenizer."""
    return ChromaPrompts(checkpoint.tokenizer(), cast(T5EncoderModel, loader("text_encoder")), LENGTH)

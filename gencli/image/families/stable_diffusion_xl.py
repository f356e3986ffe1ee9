"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952): two CLIP text encoders, and sizes told as numbers."""

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


def load(checkpoint: Checkpoint, loader: Loader) -> XLPrompts:
    """Both text encoders with their tokenizers."""
    towers = [(checkpoint.tokenizer(f"tokenizer{suffix}"), loader(f"text_encoder{suffix}")) for suffix in ("", "_2")]
    return XLPrompts(towers, zero_negative=checkpoint.index.get("force_zeros_for_empty_prompt", True) is not False)


@dataclass(frozen=True)
class XLPrompts:
    """Prompts → `encoder_hidden_states` (B, L, D1 + D2), `text_embeds` (B, P), `time_ids` (1, 6).

    The states are those of each encoder's last layer but one, not normed; the pooled text is the second's, projected.
    The numbers are height and width of the picture before cropping, top and left of the crop, height and width wanted:
    here the picture's own size, uncropped. zero_negative: no negative prompt means zeros, an empty one does not.
    """

    towers: Sequence[tuple[Tokenizer, Any]]
    zero_negative: bool = True

    @property
    def modules(self) -> list[Any]:
        return [encoder for _, encoder in self.towers]

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long, but for weighted ones, whose L is 77 for each chunk."""
        states, outputs = [], []
        for tokenizer, encoder in self.towers:
            if request.weighted:
                found, output = weighted.encode(tokenizer, encoder, prompts, _penultimate)
            else:
                output = encoder(self._ids(tokenizer, encoder, prompts, request.truncate))
                found = _penultimate(output)
            states.append(found)
            outputs.append(output)
        size = (float(request.height or 0), float(request.width or 0))
        return {
            "encoder_hidden_states": torch.cat(states, dim=-1),
            "text_embeds": outputs[1].text_embeds,
            "time_ids": torch.tensor([[*size, 0.0, 0.0, *size]], device=states[0].device),
        }

    def negative(self, request: ImageRequest) -> Conditioning:
        told = self.encode([request.negative or ""], request)
        if request.negative is None and self.zero_negative:
            zeros = {name: torch.zeros_like(told[name]) for name in ("encoder_hidden_states", "text_embeds")}
            return {**told, **zeros}
        return told

    def _ids(self, tokenizer: Tokenizer, encoder: Any, prompts: Sequence[str], truncate: str | None) -> Tensor:
        """Ids of prompts (B, L), framed and padded (see `frame`)."""
        positions, words = encoder.config.max_position_embeddings, encoder.config.vocab_size
        device = next(encoder.parameters()).device
        return torch.tensor([frame(tokenizer, prompt, positions, words, truncate) for prompt in prompts], device=device)


def _penultimate(output: Any) -> Tensor:
    return output.hidden_states[-2]

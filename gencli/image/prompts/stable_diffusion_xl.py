"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952): two CLIP text encoders, and sizes as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from gencli.image.conditioning import Conditioning
from gencli.image.prompts import weighting
from gencli.image.prompts.base import Loader, PromptParts
from gencli.image.prompts.stable_diffusion import token_ids
from gencli.image.request import ImageRequest
from gencli.models.clip_text import CLIPTextModel
from gencli.tokens import Tokenizer

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5  # diffusers' defaults


def load(checkpoint: PromptParts, loader: Loader) -> XLPrompts:
    """Load the text encoders and their tokenizers: two, or the refiner's one."""
    suffixes = [suffix for suffix in ("", "_2") if f"text_encoder{suffix}" in checkpoint.parts]
    return XLPrompts(
        [(checkpoint.tokenizer(f"tokenizer{s}"), cast(CLIPTextModel, loader(f"text_encoder{s}"))) for s in suffixes],
        zero_negative=checkpoint.index.get("force_zeros_for_empty_prompt", True) is not False,
        reads_score=bool(checkpoint.index.get("requires_aesthetics_score")),
    )


@dataclass(frozen=True)
class XLPrompts:
    """Prompts → `encoder_hidden_states` (B, L, ΣD), `text_embeds` (B, P), `time_ids` (1, 6 or 5).

    The states are those of each encoder's last layer but one, without the final norm; the pooled text is the last's,
    projected. The numbers are height and width of the image before cropping, top and left of the crop, height and width
    wanted: here the image's own size, uncropped. zero_negative: no negative prompt means zeros; an empty one does not.
    reads_score: an aesthetic score stands in place of the size wanted.
    """

    text_encoders: Sequence[tuple[Tokenizer, CLIPTextModel]]
    zero_negative: bool = True
    reads_score: bool = False

    def encode(self, prompts: Sequence[str], request: ImageRequest, score: float = AESTHETIC_SCORE) -> Conditioning:
        """Raises GencliError for a prompt that is too long. Weighted prompts may be of any length: L is 77 a chunk."""
        states, pooled = [], None
        for tokenizer, encoder in self.text_encoders:
            if request.weighted:
                penultimate, output = weighting.encode(tokenizer, encoder, prompts, _penultimate)
            else:
                output = encoder(token_ids(tokenizer, encoder, prompts, request.truncate))
                penultimate = _penultimate(output)
            states.append(penultimate)
            pooled = output.text_embeds  # the last encoder's
        assert pooled is not None
        size = (float(request.height or 0), float(request.width or 0))
        numbers = [*size, 0.0, 0.0, *((score,) if self.reads_score else size)]
        return Conditioning(
            {
                "encoder_hidden_states": torch.cat(states, dim=-1),
                "text_embeds": pooled,
                "time_ids": torch.tensor([numbers], device=states[0].device),
            }
        )

    def negative(self, request: ImageRequest) -> Conditioning:
        negative = self.encode([request.negative or ""], request, NEGATIVE_AESTHETIC_SCORE)
        if request.negative is None and self.zero_negative:
            zeros = {name: torch.zeros_like(negative[name]) for name in ("encoder_hidden_states", "text_embeds")}
            return negative.with_inputs(**zeros)
        return negative


def _penultimate(output: Any) -> Tensor:
    return output.hidden_states[-2]

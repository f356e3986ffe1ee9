"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): one CLIP text encoder, whose last states the UNet attends to.

Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952): two of them, or the refiner's one, and sizes as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from gencli.image.conditioning import Conditioning
from gencli.image.prompts import weighting
from gencli.image.prompts.base import Loader, PromptParts, pad_prompt
from gencli.image.request import ImageRequest
from gencli.models.clip_text import CLIPTextModel, CLIPTextOutput
from gencli.tokens import Tokenizer

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5  # diffusers' defaults
TextEncoders = Sequence[tuple[Tokenizer, CLIPTextModel]]


def load(checkpoint: PromptParts, loader: Loader) -> ClipPrompts:
    """Load the text encoder and its tokenizer."""
    return ClipPrompts(_load_encoders(checkpoint, loader))


def load_xl(checkpoint: PromptParts, loader: Loader) -> XLPrompts:
    """Load the text encoders and their tokenizers."""
    return XLPrompts(
        _load_encoders(checkpoint, loader),
        zero_negative=checkpoint.index.get("force_zeros_for_empty_prompt", True) is not False,
        reads_score=bool(checkpoint.index.get("requires_aesthetics_score")),
    )


def _load_encoders(checkpoint: PromptParts, loader: Loader) -> TextEncoders:
    suffixes = [suffix for suffix in ("", "_2") if f"text_encoder{suffix}" in checkpoint.parts]
    return [(checkpoint.tokenizer(f"tokenizer{s}"), cast(CLIPTextModel, loader(f"text_encoder{s}"))) for s in suffixes]


@dataclass(frozen=True)
class ClipPrompts:
    """Prompts → `encoder_hidden_states` (B, L, D), the text encoder's last hidden states."""

    text_encoders: TextEncoders

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long. Weighted prompts may be of any length: L is 77 a chunk."""
        [(states, _)] = _encode(self.text_encoders, prompts, request, partial(_layer, request.clip_skip or 1))
        return Conditioning({"encoder_hidden_states": states})

    def negative(self, request: ImageRequest) -> Conditioning:
        # As in diffusers, the layers that are skipped are those of the prompt alone.
        return self.encode([request.negative or ""], request.replace(clip_skip=None))


@dataclass(frozen=True)
class XLPrompts:
    """Prompts → `encoder_hidden_states` (B, L, ΣD), `text_embeds` (B, P), `time_ids` (1, 6 or 5).

    The states are those of each encoder's last layer but one, without the final norm; the pooled text is the last's,
    projected. The numbers are height and width of the image before cropping, top and left of the crop, height and width
    wanted: here the image's own size, uncropped. zero_negative: no negative prompt means zeros; an empty one does not.
    reads_score: an aesthetic score stands in place of the size wanted.
    """

    text_encoders: TextEncoders
    zero_negative: bool = True
    reads_score: bool = False

    def encode(self, prompts: Sequence[str], request: ImageRequest, score: float = AESTHETIC_SCORE) -> Conditioning:
        """Raises GencliError for a prompt that is too long. Weighted prompts may be of any length: L is 77 a chunk."""
        layer = max(request.clip_skip or 2, 2)  # the last one is not for SDXL, as in the web UI
        encoded = _encode(self.text_encoders, prompts, request, lambda encoder, output: output.hidden_states[-layer])
        states, pooled = torch.cat([states for states, _ in encoded], dim=-1), encoded[-1][1].text_embeds
        assert pooled is not None
        size = (float(request.height or 0), float(request.width or 0))
        time_ids = torch.tensor([[*size, 0.0, 0.0, *((score,) if self.reads_score else size)]], device=states.device)
        return Conditioning({"encoder_hidden_states": states, "text_embeds": pooled, "time_ids": time_ids})

    def negative(self, request: ImageRequest) -> Conditioning:
        plain = request.replace(clip_skip=None)
        negative = self.encode([request.negative or ""], plain, NEGATIVE_AESTHETIC_SCORE)
        if request.negative is None and self.zero_negative:
            zeros = {name: torch.zeros_like(negative[name]) for name in ("encoder_hidden_states", "text_embeds")}
            return negative.with_inputs(**zeros)
        return negative


def _encode(
    text_encoders: TextEncoders,
    prompts: Sequence[str],
    request: ImageRequest,
    states: Callable[[CLIPTextModel, CLIPTextOutput], Tensor],
) -> list[tuple[Tensor, CLIPTextOutput]]:
    """The states (B, L, D) of each encoder, and its output for the first chunk."""
    if request.weighted:
        return [
            weighting.encode(tokenizer, encoder, prompts, partial(states, encoder))
            for tokenizer, encoder in text_encoders
        ]
    outputs = [
        encoder(token_ids(tokenizer, encoder, prompts, request.truncate)) for tokenizer, encoder in text_encoders
    ]
    return [(states(encoder, output), output) for (_, encoder), output in zip(text_encoders, outputs, strict=True)]


def _layer(number: int, encoder: CLIPTextModel, output: CLIPTextOutput) -> Tensor:
    """The states of a layer, counted from the end, normed as the last ones are."""
    return output.last_hidden_state if number == 1 else encoder.final_layer_norm(output.hidden_states[-number])


def token_ids(tokenizer: Tokenizer, encoder: CLIPTextModel, prompts: Sequence[str], truncate: str | None) -> Tensor:
    """Token ids (B, L) of prompts, padded (see `pad_prompt`), on the encoder's device."""
    positions, words = encoder.config.max_position_embeddings, encoder.config.vocab_size
    ids = [pad_prompt(tokenizer, prompt, positions, words, truncate) for prompt in prompts]
    return torch.tensor(ids, device=next(encoder.parameters()).device)

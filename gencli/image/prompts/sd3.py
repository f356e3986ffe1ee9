"""Prompts of Stable Diffusion 3: the states of two CLIPs before their last layer beside each other, then those of T5,
of padding too, if there is one; and both pooled texts, projected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F

from gencli.image.conditioning import Conditioning
from gencli.image.prompts.base import Loader, PromptParts
from gencli.image.prompts.stable_diffusion import TextEncoders, token_ids
from gencli.image.prompts.t5 import T5Prompts
from gencli.image.request import ImageRequest
from gencli.models.clip_text import CLIPTextModel
from gencli.models.module import BaseModel
from gencli.models.t5 import T5EncoderModel
from gencli.tokens import Tokenizer

LENGTH = 256  # tokens of T5


@dataclass(frozen=True)
class SD3Prompts:
    """Prompts → `encoder_hidden_states` (B, 77 + 256, E) and `text_embeds` (B, P). width: E."""

    clips: TextEncoders
    t5: T5Prompts | None
    width: int

    @property
    def text_encoders(self) -> list[tuple[Tokenizer, BaseModel]]:
        return [*self.clips, *([] if self.t5 is None else self.t5.text_encoders)]

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long for T5, or without that for CLIP."""
        side = request.truncate or (None if self.t5 is None else "right")
        outputs = [encoder(token_ids(tokenizer, encoder, prompts, side)) for tokenizer, encoder in self.clips]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        states = F.pad(states, (0, self.width - states.shape[-1]))
        if self.t5 is None:
            after = states.new_zeros(len(prompts), LENGTH, self.width)
        else:
            ids, _ = self.t5.padded(prompts, request)
            after = self.t5.t5(ids, torch.ones_like(ids, dtype=torch.bool)).to(states)
        pooled = torch.cat([output.text_embeds for output in outputs if output.text_embeds is not None], dim=-1)
        return Conditioning({"encoder_hidden_states": torch.cat([states, after], dim=1), "text_embeds": pooled})

    def negative(self, request: ImageRequest) -> Conditioning:
        return self.encode([request.negative or ""], request)


def load(checkpoint: PromptParts, loader: Loader) -> SD3Prompts:
    """Load the text encoders that there are, and their tokenizers."""
    clips = [
        (checkpoint.tokenizer(f"tokenizer{s}"), cast(CLIPTextModel, loader(f"text_encoder{s}"))) for s in ("", "_2")
    ]
    t5 = None
    if "text_encoder_3" in checkpoint.parts:
        t5 = T5Prompts(checkpoint.tokenizer("tokenizer_3"), cast(T5EncoderModel, loader("text_encoder_3")), LENGTH)
    width = checkpoint.configs["transformer"].get("joint_attention_dim", 4096)
    assert isinstance(width, int)  # as its config has been read
    return SD3Prompts(clips, t5, width)

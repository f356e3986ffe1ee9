"""Prompts of Kandinsky 2.2: its prior reads all texts that are mixed, and the negative prompt; its decoder none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from gencli.image.conditioning import Conditioning
from gencli.image.mix import texts_of
from gencli.image.prompts.base import Loader, PromptParts
from gencli.image.prompts.unclip import UnCLIPPrompts
from gencli.image.request import ImageRequest
from gencli.models.clip_text import CLIPTextModel
from gencli.models.module import BaseModel
from gencli.tokens import Tokenizer


def load(checkpoint: PromptParts, loader: Loader) -> KandinskyPrompts:
    """Load the text encoder and its tokenizer, of a prior alone or of a pipeline with one."""
    prefix = "prior_" if "prior_text_encoder" in checkpoint.parts else ""
    text_encoder = cast(CLIPTextModel, loader(f"{prefix}text_encoder"))
    return KandinskyPrompts(checkpoint.tokenizer(f"{prefix}tokenizer"), text_encoder)


def load_nothing(checkpoint: PromptParts, loader: Loader) -> NoPrompts:
    """Load nothing."""
    return NoPrompts()


class KandinskyPrompts(UnCLIPPrompts):
    """T texts an image → the inputs of a prior, (B, T, …): those that are mixed, and the negative prompt if there is
    one, whose embedding the decoder is led away from."""

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        each = [self._texts(request.replace(prompt="" if request.mix else prompt)) for prompt in prompts]
        flat = super().encode([text for texts in each for text in texts], request)
        shape = (len(prompts), len(each[0]))
        return Conditioning({name: tensor.unflatten(0, shape) for name, tensor in flat.inputs.items()})

    def negative(self, request: ImageRequest) -> Conditioning:
        one, count = super().encode([request.negative or ""], request), len(self._texts(request))
        return Conditioning(
            {name: tensor[None].expand(-1, count, *tensor.shape[1:]) for name, tensor in one.inputs.items()}
        )

    def _texts(self, request: ImageRequest) -> list[str]:
        return [*(one.name for one in texts_of(request)), *([request.negative] if request.negative else [])]


@dataclass(frozen=True)
class NoPrompts:
    """What a decoder is told comes from the stage before."""

    @property
    def text_encoders(self) -> list[tuple[Tokenizer, BaseModel]]:
        return []

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        return Conditioning()

    def negative(self, request: ImageRequest) -> Conditioning:
        return Conditioning()

"""Prompts of Z-Image and FLUX.2 klein: states of Qwen 3 inside of its layers, for one message of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.image.conditioning import Conditioning
from gencli.image.prompts.base import Loader, PromptParts
from gencli.image.request import ImageRequest
from gencli.models.qwen3 import Qwen3
from gencli.tokens import Tokenizer

LENGTH = 512  # tokens, with those around the prompt
# What Qwen 3's chat template writes around a message; the second is that of an answer without reasoning.
MESSAGE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
NO_REASONING = MESSAGE + "<think>\n\n</think>\n\n"
KLEIN_LAYERS = (9, 18, 27)


@dataclass(frozen=True)
class Encoder:
    """Qwen 3 with its tokenizer."""

    tokenizer: Tokenizer
    qwen: Qwen3

    @property
    def text_encoders(self) -> list[tuple[Tokenizer, Qwen3]]:
        return [(self.tokenizer, self.qwen)]

    def ids(self, prompt: str, template: str, truncate: str | None) -> list[int]:
        """Raises GencliError for a prompt that is too long, and for a tokenizer that is not Qwen's."""
        encode = self.tokenizer.encode
        begin = encode(template.partition("{}")[0], add_special_tokens=False)
        if len(begin) >= len("<|im_start|>"):
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer does not know <|im_start|>, as Qwen's does")
        ids = encode(template.format(prompt), add_special_tokens=False)
        if len(ids) > LENGTH and truncate is None:
            raise GencliError(
                f"the prompt has {len(ids)} tokens, and this model reads at most {LENGTH}: {prompt[:40]!r}…",
                "--truncate right leaves out its end, --truncate left its beginning",
            )
        over = max(len(ids) - LENGTH, 0)
        ids = [*ids[: len(begin)], *ids[len(begin) + over :]] if truncate == "left" else ids[:LENGTH]
        if max(ids) >= self.qwen.config.vocab_size:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer knows more tokens than the text encoder")
        return ids

    def padded(self, ids: list[int]) -> Tensor:
        """Token ids (1, 512), padded at the end."""
        pad = self.tokenizer.pad_id if self.tokenizer.pad_id is not None else next(iter(self.tokenizer.eos_ids))
        return torch.tensor([[*ids, *[pad] * (LENGTH - len(ids))]], device=self.qwen.device)


class ZImagePrompts(Encoder):
    """Prompts → `caption` (B, 512, D), the states before the last layer, and their `lengths` (B,)."""

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long."""
        ids = [self.ids(prompt, MESSAGE, request.truncate) for prompt in prompts]
        captions = []
        for one in ids:
            layer = self.qwen.config.num_hidden_layers - 1
            [states] = self.qwen.states(torch.tensor([one], device=self.qwen.device), [layer])
            captions.append(torch.nn.functional.pad(states, (0, 0, 0, LENGTH - len(one))))
        return Conditioning({"caption": torch.cat(captions), "lengths": torch.tensor([len(one) for one in ids])})

    def negative(self, request: ImageRequest) -> Conditioning:
        return self.encode([request.negative or ""], request)


class Flux2Prompts(Encoder):
    """Prompts → `encoder_hidden_states` (B, 512, 3 D), of three layers beside each other, padding and all."""

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long."""
        states = []
        for prompt in prompts:
            ids = self.ids(prompt, NO_REASONING, request.truncate)
            states.append(torch.cat(self.qwen.states(self.padded(ids), KLEIN_LAYERS, len(ids)), dim=-1))
        return Conditioning({"encoder_hidden_states": torch.cat(states)})

    def negative(self, request: ImageRequest) -> Conditioning:
        return self.encode([request.negative or ""], request)


def load_z_image(checkpoint: PromptParts, loader: Loader) -> ZImagePrompts:
    """Load the text encoder and its tokenizer."""
    return ZImagePrompts(checkpoint.tokenizer(), cast(Qwen3, loader("text_encoder")))


def load_flux2(checkpoint: PromptParts, loader: Loader) -> Flux2Prompts:
    """Load the text encoder and its tokenizer."""
    return Flux2Prompts(checkpoint.tokenizer(), cast(Qwen3, loader("text_encoder")))

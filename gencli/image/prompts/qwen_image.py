"""Prompts of Qwen-Image: the last states of Qwen 2.5 VL's text model for a message that asks for a description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.errors import GencliError
from gencli.image.conditioning import Conditioning
from gencli.image.prompts.base import Loader, PromptParts
from gencli.image.request import ImageRequest
from gencli.models.qwen2_5_vl import Qwen25VL
from gencli.tokens import Tokenizer

# As the model was trained: its first 34 tokens, up to the prompt, are the same for all and are left out.
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
BEGIN, LENGTH = 34, 1024  # tokens before the prompt, and the most from there on


@dataclass(frozen=True)
class QwenImagePrompts:
    """Prompts → `caption` (B, L, E), the states after the last norm, and their `lengths` (B,)."""

    tokenizer: Tokenizer
    qwen: Qwen25VL

    @property
    def text_encoders(self) -> list[tuple[Tokenizer, Qwen25VL]]:
        return [(self.tokenizer, self.qwen)]

    def ids(self, prompt: str, truncate: str | None) -> list[int]:
        """Token ids of the message. Raises GencliError for a prompt that is too long, and for a tokenizer that is not
        Qwen's."""
        encode = self.tokenizer.encode
        if len(encode("<|im_start|>", add_special_tokens=False)) != 1:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer does not know <|im_start|>, as Qwen's does")
        ids = encode(TEMPLATE.format(prompt), add_special_tokens=False)
        over = max(len(ids) - BEGIN - LENGTH, 0)
        if over and truncate is None:
            raise GencliError(
                f"the prompt has {len(ids) - BEGIN} tokens, and this model reads at most {LENGTH}: {prompt[:40]!r}…",
                "--truncate right leaves out its end, --truncate left its beginning",
            )
        ids = [*ids[:BEGIN], *ids[BEGIN + over :]] if truncate == "left" else ids[: BEGIN + LENGTH]
        if max(ids) >= self.qwen.config.vocab_size:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer knows more tokens than the text encoder")
        return ids

    def states(self, ids: list[int]) -> Tensor:
        """States (1, L, E) of the tokens from the prompt on."""
        layers = self.qwen.config.num_hidden_layers
        [states] = self.qwen.states(torch.tensor([ids], device=self.qwen.device), [layers])
        return self.qwen.model.norm(states[:, BEGIN:])

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises GencliError for a prompt that is too long."""
        found = [self.states(self.ids(prompt, request.truncate)) for prompt in prompts]
        lengths = [one.shape[1] for one in found]
        captions = [F.pad(one, (0, 0, 0, self.longest - length)) for one, length in zip(found, lengths, strict=True)]
        return Conditioning({"caption": torch.cat(captions), "lengths": torch.tensor(lengths)})

    def negative(self, request: ImageRequest) -> Conditioning:
        return self.encode([request.negative or ""], request)

    @property
    def longest(self) -> int:
        """The most states that a prompt has here, to which all are padded."""
        return LENGTH


def load(checkpoint: PromptParts, loader: Loader) -> QwenImagePrompts:
    """Load the text encoder and its tokenizer."""
    return QwenImagePrompts(checkpoint.tokenizer(), cast(Qwen25VL, loader("text_encoder")))

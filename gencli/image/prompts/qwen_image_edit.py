"""Prompts of Qwen-Image-Edit: the last states of Qwen 2.5 VL for a message with the images that are to be edited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gencli.errors import GencliError
from gencli.image.families.base import of_area
from gencli.image.prompts.base import Loader, PromptParts
from gencli.image.prompts.qwen_image import LENGTH, QwenImagePrompts
from gencli.models.qwen2_5_vl_reader import Qwen25VLReader

# As the model was trained: its first 64 tokens, up to the images, are the same for all and are left out.
TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
BEGIN = 64
PATCH, PICTURE = "<|image_pad|>", "<|vision_start|>{}<|vision_end|>"
AREA, SMALL_AREA = 1024 * 1024, 384 * 384  # pixels that the text encoder sees of an image
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's images


@dataclass(frozen=True)
class QwenImageEditPrompts(QwenImagePrompts):
    """Prompts → `caption` (B, L, E), the states after the last norm of images and prompt, and their `lengths` (B,).

    picture: makes what stands for an image, of its number from 1 on and its tokens. area: pixels that an image is
    brought to before.
    """

    picture: Callable[[int, str], str]
    area: int
    images: tuple[Image.Image, ...] = ()

    def seeing(self, images: Sequence[Image.Image]) -> QwenImageEditPrompts:
        """The same for prompts about these images, in their order."""
        return replace(self, images=tuple(images))

    @property
    def reader(self) -> Qwen25VLReader:
        return cast(Qwen25VLReader, self.qwen)

    @cached_property
    def seen(self) -> list[Tensor]:
        """The images, (3, H, W) each, as the vision tower reads them."""
        factor = self.reader.config.vision_config.factor
        return [
            pixels(one.convert("RGB").resize(of_area(one.size, self.area), Image.Resampling.LANCZOS), factor)
            for one in self.images
        ]

    @cached_property
    def states_of_images(self) -> list[Tensor]:
        """The states (N, E) that stand for the images."""
        return [self.reader.look(one) for one in self.seen]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of those states."""
        factor = self.reader.config.vision_config.factor
        return [(one.shape[1] // factor, one.shape[2] // factor) for one in self.seen]

    @property
    def longest(self) -> int:
        return LENGTH + sum(rows * columns for rows, columns in self.shapes)

    def ids(self, prompt: str, truncate: str | None) -> list[int]:
        """Token ids of the message. Raises GencliError for a prompt that is too long or has an image's token, and for a
        tokenizer that is not Qwen's."""
        encode, patch = self.tokenizer.encode, self.reader.config.image_token_id
        if encode(PATCH, add_special_tokens=False) != [patch]:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer does not know {PATCH}, as Qwen's does")
        if patch in encode(prompt, add_special_tokens=False):
            raise GencliError(f"the prompt has {PATCH} in it, which stands for images")
        shown = [self.picture(i, PATCH * rows * columns) for i, (rows, columns) in enumerate(self.shapes, 1)]
        before, after = TEMPLATE.split("{}")
        about = "".join([before, *shown])
        ids = encode(about + prompt + after, add_special_tokens=False)
        over = max(len(ids) - BEGIN - self.longest, 0)
        if over and truncate is None:
            raise GencliError(
                f"the prompt has {len(ids) - BEGIN - self.longest + LENGTH} tokens, and this model reads at most "
                f"{LENGTH}: {prompt[:40]!r}…",
                "--truncate right leaves out its end, --truncate left its beginning",
            )
        if max(ids) >= self.qwen.config.vocab_size:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer knows more tokens than the text encoder")
        start = len(encode(about, add_special_tokens=False))
        return [*ids[:start], *ids[start + over :]] if truncate == "left" else ids[: BEGIN + self.longest]

    def states(self, ids: list[int]) -> Tensor:
        """States (1, L, E) of the tokens from the images on."""
        tokens = torch.tensor([ids], device=self.qwen.device)
        return self.reader.read(tokens, self.states_of_images, self.shapes)[:, BEGIN:]


def pixels(image: Image.Image, factor: int) -> Tensor:
    """Return an image as Qwen 2.5 VL's processor makes it: (3, H, W), whose sides are whole multiples of `factor`."""
    width, height = (max(round(side / factor), 1) * factor for side in image.size)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    normed = (torch.from_numpy(resized) - torch.tensor(MEAN)) / torch.tensor(STD)
    return normed.permute(2, 0, 1)


def one_picture(number: int, tokens: str) -> str:
    return PICTURE.format(tokens)


def numbered_picture(number: int, tokens: str) -> str:
    return f"Picture {number}: {PICTURE.format(tokens)}"


def load(checkpoint: PromptParts, loader: Loader) -> QwenImageEditPrompts:
    """Load the text encoder, with its vision tower, and its tokenizer."""
    reader = cast(Qwen25VLReader, loader("text_encoder"))
    return QwenImageEditPrompts(checkpoint.tokenizer(), reader, one_picture, AREA)


def load_plus(checkpoint: PromptParts, loader: Loader) -> QwenImageEditPrompts:
    """The same for several images, which are told apart by their numbers and seen smaller."""
    return replace(load(checkpoint, loader), picture=numbered_picture, area=SMALL_AREA)

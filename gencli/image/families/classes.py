"""Pictures of a class: DiT (Peebles & Xie 2023), guided-diffusion (Dhariwal & Nichol 2021), UNet2DModels with classes.

Of these DiT alone knows a class for "none", and can be guided away from it: ε̂ = ε(∅) + s · (ε(y) − ε(∅)) in all four
channels, as diffusers' DiTPipeline does. (DiT's own code guides three of the four, so that its published figures come
out again.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gencli.image.checkpoint import Checkpoint
from gencli.image.classes import Classes
from gencli.image.families.base import Conditioning, Loader
from gencli.image.request import ImageRequest


def load(checkpoint: Checkpoint, loader: Loader) -> ClassPrompts | None:
    """None for a network that is told no class."""
    classes = checkpoint.network_classes
    return None if classes is None else ClassPrompts(classes)


@dataclass(frozen=True)
class ClassPrompts:
    """Names or numbers of classes → `class_labels` (B,)."""

    classes: Classes

    @property
    def modules(self) -> list[nn.Module]:
        return []

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises UsageError for a class that there is not."""
        return {"class_labels": torch.tensor([self.classes.find(prompt) for prompt in prompts])}

    def negative(self, request: ImageRequest) -> Conditioning:
        """The class for none, unless another is named."""
        return self.encode([request.negative or ""], request)

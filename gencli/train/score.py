"""How good a checkpoint is on data: bits per byte for text, recognised labels for pictures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.checkpoints.find import find
from gencli.image.generate import Picture, generate
from gencli.image.open import open_image_checkpoint
from gencli.image.pipeline import load
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.train.augment import COLORS, augment
from gencli.train.captions import find_captions
from gencli.train.pictures import read_pictures

SMALL = 32  # pixels a side at which pictures are compared


@dataclass(frozen=True)
class Drawn:
    """One label, the seed it was drawn with, and the labels of the pictures nearest to the drawing, nearest first."""

    label: str
    seed: int
    nearest: tuple[str, ...]

    @property
    def recognised(self) -> bool:
        return self.nearest[0] == self.label


def score_pictures(
    model: str,
    pictures: Path,
    captions: Path | None,
    *,
    count: int,
    seed: int = 0,
    steps: int | None = None,
    batch: int = 25,
    unseen_colors: int | None = None,
) -> Iterator[Drawn]:
    """Draw `count` labels, picked by `seed`, at the checkpoint's own settings; the i-th from seed `seed` + i.

    A drawing is recognised when, among all pictures, the one with the smallest squared distance to it is its label's
    own: mean-pooled to 32×32 RGB on white. With `unseen_colors` = N, things are drawn in colours in which neither the
    data nor a training run that repainted N copies of each (from seed 0) shows them, and the pictures to be told apart
    are the data's and all repainted ones.
    """
    rows = find_captions(pictures, captions)
    pixels = read_pictures(pictures, [name for name, _ in rows], 4 * SMALL)
    labels = chosen_from = [caption.label for _, caption in rows]
    if unseen_colors is not None:
        known = [
            (caption, picture.permute(1, 2, 0).numpy()) for (_, caption), picture in zip(rows, pixels, strict=True)
        ]
        every = augment(known, copies=len(COLORS), pairs=0, seed=0)
        shown = {caption.label for caption, _ in augment(known, copies=unseen_colors, pairs=0, seed=0)} | set(labels)
        pixels = torch.cat([pixels, *(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] for _, picture in every)])
        labels = labels + [caption.label for caption, _ in every]
        chosen_from = [caption.label for caption, _ in every if caption.label not in shown]
    known_small = small(pixels)
    chosen = random.Random(seed).sample(chosen_from, min(count, len(chosen_from)))
    checkpoint = open_image_checkpoint(find(model))
    request = resolve(ImageRequest(prompt="", seed=seed, steps=steps, batch=batch), checkpoint)
    for event in generate(load(checkpoint), request, chosen):
        if isinstance(event, Picture):
            drawn_pixels = torch.frombuffer(bytearray(event.image.convert("RGB").tobytes()), dtype=torch.uint8)
            drawn = small(drawn_pixels.view(event.image.height, event.image.width, 3).permute(2, 0, 1)[None])
            nearest = (known_small - drawn).square().sum(1).topk(5, largest=False).indices
            yield Drawn(chosen[event.index], seed + event.index, tuple(labels[i] for i in nearest.tolist()))


def small(pictures: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) → float32 (N, 3·32·32), mean-pooled, 0..1."""
    return F.adaptive_avg_pool2d(pictures.float() / 255, SMALL).flatten(1)


def score_texts(model: str, data: Path, lead: str) -> dict[str, float]:
    """Bits per byte of a language model on texts: those whose source begins with `lead`, and the others."""
    from gencli.text.load import open_model
    from gencli.train.text import evaluate
    from gencli.train.texts import read_texts

    opened = open_model(find(model), dtype="float32")
    return evaluate(opened.module, opened.tokenizer, read_texts(data), lead, None)

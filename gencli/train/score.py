"""How good a checkpoint is on data: bits per byte for text, recognised labels and variety for images."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gencli.checkpoints.find import find
from gencli.errors import GencliError
from gencli.image.events import Picture
from gencli.image.generate import generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.json_files import read_text
from gencli.spec import ModelSpec
from gencli.train.augment import COLORS, is_kept, is_short, recolor, with_article
from gencli.train.captions import find_captions
from gencli.train.pictures import Caption, read_pictures, to_tensor
from gencli.train.variants import may_be_mirrored

SMALL = 32  # pixels a side at which images are compared


@dataclass(frozen=True)
class Task:
    """A prompt, and the labels that it should show: one, or two side by side."""

    prompt: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Drawing:
    """A task, the seed it was drawn with, and for each of its labels those of the nearest images, nearest first.

    difference: mean absolute difference (0..255) to the drawing of the same prompt before this one, if there is one.
    """

    task: Task
    seed: int
    nearest: tuple[tuple[str, ...], ...]
    difference: float | None

    @property
    def recognised(self) -> bool:
        return all(label == names[0] for label, names in zip(self.task.labels, self.nearest, strict=True))


def score_pictures(
    model: str,
    pictures: Path,
    captions: Sequence[Path],
    *,
    count: int,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 25,
    unseen_colors: int | None = None,
    synonyms: Path | None = None,
    pairs: int | None = None,
    seeds: int = 1,
) -> Iterator[Drawing]:
    """Draw `count` labels, chosen by `seed`, at the checkpoint's own settings; drawing i has seed `seed` + i.

    A drawing is recognised if the nearest of all images is its label's own: smallest squared distance, mean-pooled to
    32×32 RGB on white, where images that `variants.may_be_mirrored` count both ways. Each prompt is drawn `seeds` times
    in a row. In place of labels:

    unseen_colors: N; things in colours in which neither the data nor a training run that repainted N copies of each
    (from seed 0) shows them, to be told apart from the data and everything repainted.
    synonyms: a file of lines label, tab, word; the words are drawn.
    pairs: N; prompts "a A and a B" of couples that no training run makes; each half, at half the size, must be nearest
    to its label's own image.
    """
    rows = find_captions(pictures, captions)
    images = read_pictures(pictures, [name for name, _ in rows], 4 * SMALL)
    captions_of = [caption for _, caption in rows]
    labels = [caption.label for caption in captions_of]
    rng = random.Random(seed)
    if synonyms is not None:
        tasks = _sample(rng, read_synonyms(synonyms, labels), count)
    elif pairs is not None:
        tasks = _kept_couples(rng, [caption.label for caption in captions_of if is_short(caption)], pairs)
    elif unseen_colors is not None:
        pixels = (image.permute(1, 2, 0).numpy() for image in images)
        known = list(zip(captions_of, pixels, strict=True))
        repainted, _ = recolor(known, len(COLORS), seed=0)
        shown = {caption.label for caption, _ in recolor(known, unseen_colors, seed=0)[0]} | set(labels)
        images = torch.cat([images, *(to_tensor(image) for _, image in repainted)])
        captions_of += [caption for caption, _ in repainted]
        new = [caption.label for caption, _ in repainted if caption.label not in shown]
        tasks = _sample(rng, [Task(label, (label,)) for label in new], count)
    else:
        tasks = _sample(rng, [Task(label, (label,)) for label in labels], count)
    tasks = [task for task in tasks for _ in range(seeds)]
    checkpoint = open_image_checkpoint(find(model))
    request = resolve(ImageRequest(prompt="", seed=seed, steps=steps, guidance=guidance, batch=batch), checkpoint)
    images, labels = _both_ways(images, captions_of)
    reference, before = small(images), None
    for event in generate(load(checkpoint), request, [task.prompt for task in tasks]):
        if isinstance(event, Picture):
            task, drawn = tasks[event.index], _pixels(event.image)
            difference = None
            if before is not None and event.index % seeds:
                difference = (drawn.float() - before.float()).abs().mean().item()
            before = drawn
            yield Drawing(task, seed + event.index, nearest_labels(drawn, reference, labels, task), difference)


def nearest_labels(drawn: Tensor, reference: Tensor, labels: Sequence[str], task: Task) -> tuple[tuple[str, ...], ...]:
    """Return for each of a task's labels those of the nearest images, nearest first, each label once.

    drawn: uint8 (1, 3, H, W); of two labels each has a half, as `augment.pair_up` lays them out. reference: see
    `small`.
    """
    parts = [drawn]
    if len(task.labels) == 2:
        quarter = drawn.shape[2] // 4
        parts = list(drawn[:, :, quarter : 3 * quarter].chunk(2, dim=3))
    distances = [(reference - small(part)).square().sum(1) for part in parts]
    ordered = (distance.topk(min(20, len(labels)), largest=False).indices.tolist() for distance in distances)
    return tuple(tuple(dict.fromkeys(labels[i] for i in some))[:5] for some in ordered)


def read_synonyms(file: Path, labels: Sequence[str]) -> list[Task]:
    """Read lines label, tab, word. Raise GencliError for other lines, and for a label that no image has."""
    tasks = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        label, tab, word = line.partition("\t")
        if not tab or not word or label not in labels:
            raise GencliError(f"{file}, line {number}: expected a label of the images, a tab, and another word for it")
        tasks.append(Task(word, (label,)))
    return tasks


def small(images: Tensor) -> Tensor:
    """Mean-pool uint8 (N, 3, H, W) to float32 (N, 3·32·32), 0..1."""
    return F.adaptive_avg_pool2d(images.float() / 255, SMALL).flatten(1)


def _both_ways(images: Tensor, captions: Sequence[Caption]) -> tuple[Tensor, list[str]]:
    """Return images and their labels, and after them those in a mirror that may be seen so."""
    chosen = [i for i, caption in enumerate(captions) if may_be_mirrored(caption)]
    labels = [caption.label for caption in captions]
    return torch.cat([images, images[chosen].flip(3)]), labels + [labels[i] for i in chosen]


def _sample(rng: random.Random, tasks: list[Task], count: int) -> list[Task]:
    return rng.sample(tasks, min(count, len(tasks)))


def _kept_couples(rng: random.Random, labels: list[str], count: int) -> list[Task]:
    """Return prompts for couples that no training run makes (see `augment.is_kept`), at most all there are."""
    couples = [(a, b) for a in labels for b in labels if a != b and is_kept(a, b)]
    some = rng.sample(couples, min(count, len(couples)))
    return [Task(f"{with_article(a)} and {with_article(b)}", (a, b)) for a, b in some]


def _pixels(image: Image.Image) -> Tensor:
    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2)


def score_texts(model: str, data: Path, lead: str, note: Callable[[str], None] = lambda text: None) -> dict[str, float]:
    """Return bits per byte of a language model: on texts whose source begins with `lead`, and on the others. note: gets
    what is worth knowing, in words."""
    from gencli.text.load import open_model
    from gencli.train.text import evaluate
    from gencli.train.texts import note_lead, read_texts

    opened = open_model(find(model), ModelSpec(dtype="float32"))
    texts = read_texts(data)
    note_lead(texts, lead, note)
    return evaluate(opened.module, opened.tokenizer, texts, lead, None)

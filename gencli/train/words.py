"""A stage before the second, for a checkpoint: its text encoder learns other names for what it draws, without images.

For any name of an image, every cross-attention of the UNet is to answer a query as it did for the label. The UNet stays
as it is and is not run, so a step costs a small part of a diffusion step, and what the labels give is kept.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Generator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.attention import multi_head_attention
from gencli.models.attention_blocks import Attention
from gencli.train import state
from gencli.train.curve import Curve
from gencli.train.diffusion import LatentDataset, fixed_batch, noised
from gencli.train.phrases import Phrases
from gencli.train.precision import Precision
from gencli.train.recipe import ImageRecipe
from gencli.train.text_to_image import TextToImageModel
from gencli.train.trainer import Progress, Trainer

QUERIES = 48  # of each attention, asked at every step


class CrossAttentions:
    """The cross-attentions of a UNet, and queries that they were asked as it denoised some images."""

    def __init__(self, pipeline: TextToImageModel, dataset: LatentDataset, recipe: ImageRecipe, precision: Precision):
        unet = pipeline.network.unet
        found = [part for name, part in unet.named_modules() if name.endswith("attn2")]
        self.attentions = [part for part in found if isinstance(part, Attention)]
        self.queries: list[Tensor] = []
        hooks = [part.to_q.register_forward_hook(self._record) for part in self.attentions]
        batch = fixed_batch(pipeline, dataset, recipe)
        with torch.no_grad():
            pipeline.network(batch.ids.to(precision.device), *noised(pipeline, batch, precision))
        for hook in hooks:
            hook.remove()

    def _record(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.queries.append(output.flatten(0, -2))

    def answers(self, states: Tensor, picks: list[Tensor]) -> list[Tensor]:
        """Return what each attention answers to the queries `picks` for encoded texts (B, L, C): (B, queries, C')."""
        return [
            multi_head_attention(
                queries[pick].expand(len(states), -1, -1), part.to_k(states), part.to_v(states), part.heads
            )
            for part, queries, pick in zip(self.attentions, self.queries, picks, strict=True)
        ]


def train_words(
    recipe: ImageRecipe,
    dataset: LatentDataset,
    pipeline: TextToImageModel,
    before: TextToImageModel,
    precision: Precision,
    data: str,
) -> Generator[Progress, None, None]:
    """Train the text encoder of `pipeline` in place, or continue from `out`/words.pt; yield after every step.

    before: the model that knows the labels, with the same UNet; its text encoder stays as it is.
    """
    stage, encoder = recipe.words(), pipeline.network.text_encoder
    phrases = Phrases(dataset.captions[: dataset.originals])
    pipeline.network.unet.requires_grad_(False)
    attentions = CrossAttentions(pipeline, dataset, recipe, precision)
    teacher = copy.deepcopy(before.network.text_encoder).requires_grad_(False)
    sizes = {"init": recipe.init, "whole_words": str(recipe.whole_words)}
    trainer = Trainer(
        "words",
        stage,
        "words.pt",
        {"steps": stage.steps, "seed": recipe.seed, "data": data, state.SIZES: sizes},
        encoder,
        Curve(Path(recipe.out) / "words", "captions", [], "squared error of attention"),
        precision,
        names_for_adam=("embedding",),
    )

    def encode(model: nn.Module, reader: TextToImageModel, texts: list[str]) -> Tensor:
        ids = torch.tensor([reader.encode_prompt(text) for text in texts])
        return model(ids.to(precision.device)).last_hidden_state

    def update(step: int) -> tuple[Tensor, int]:
        rng = random.Random(f"{recipe.seed}/words/{step}")
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        some = [dataset.captions[i] for i in dataset.pick(stage, generator).tolist()]
        picks = [torch.randint(len(one), (QUERIES,), generator=generator) for one in attentions.queries]
        texts = [phrases.draw(caption, recipe.drop, rng) for caption in some]
        with torch.no_grad():
            labels = [text and caption.label for text, caption in zip(texts, some, strict=True)]
            expected = attentions.answers(encode(teacher, before, labels), picks)
        answers = attentions.answers(encode(encoder, pipeline, texts), picks)
        errors = [F.mse_loss(one, other) / other.var() for one, other in zip(answers, expected, strict=True)]
        return torch.stack(errors).mean(), stage.batch

    yield from trainer.run(update)
    pipeline.network.unet.requires_grad_(True)

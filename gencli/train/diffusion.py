"""Second stage of the recipe behind `weights/emoji`: a text-conditioned latent UNet and its text encoder, together.

v-prediction (Salimans & Ho 2022) over linear betas (Ho et al. 2020), or whatever the initial checkpoint was trained
with; some captions are dropped, so that classifier-free guidance works (Ho & Salimans 2021); the result is an
exponential moving average of the weights.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.train import state
from gencli.train.coupling import Coupling
from gencli.train.curve import Curve
from gencli.train.phrases import Phrases
from gencli.train.pictures import Caption
from gencli.train.precision import Precision
from gencli.train.recipe import ImageRecipe
from gencli.train.text_to_image import TextToImageModel, TextToLatent
from gencli.train.trainer import Average, Progress, Trainer, ahead

SCHEDULER: dict[str, object] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,  # of no effect in trailing; the pipeline of diffusers insists on it
    "clip_sample": False,
    "set_alpha_to_one": True,
}
UNET: dict[str, object] = {
    "_class_name": "UNet2DConditionModel",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "layers_per_block": 1,
    "attention_head_dim": 4,  # the number of heads, as Stable Diffusion's configs mean it
    "norm_num_groups": 16,
    "act_fn": "silu",
}
TEXT_ENCODER: dict[str, object] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}
ADAM = ("embedding", "conv_in", "conv_out", "time_embedding")  # AdamW's, whatever the optimizer of the others
SIZES = (
    "init", "keep_text_encoder", "whole_words", "optimizer", "size", "widths", "text_width", "text_layers",
    "max_length", "vocabulary",
)  # fmt: skip
LOOSE = (
    "variants", "random_flip", "copies", "pairs", "recolor_share", "pair_share", "hold_out", "batch", "steps", "lr",
    "weight_decay", "warmup", "cooldown", "ema", "drop", "min_snr", "seed",
)  # fmt: skip
FIXED = 64  # images, each at a noise level of its own, by which a run is scored as it goes


@dataclass(frozen=True)
class LatentDataset:
    """Latents to learn from: means and standard deviations (N, C, h, w), with their captions.

    The first `originals` are the data's. groups: how many latents there are in each of the groups that follow each
    other, and its share of a batch. What lies after them is for validation. coupling: of noise with how the latents'
    images were varied; without it noise is drawn apart.
    """

    captions: list[Caption]
    mean: Tensor
    std: Tensor
    originals: int
    groups: tuple[tuple[int, float], ...]
    coupling: Coupling | None = None

    @property
    def validation(self) -> int:
        """The number of latents for validation."""
        return len(self.captions) - sum(count for count, _ in self.groups)

    def pick(self, recipe: ImageRecipe, generator: torch.Generator) -> Tensor:
        """Return the indices (B,) of a batch: of each group its share."""
        counts = torch.tensor([count for count, _ in self.groups])
        shares = torch.tensor([share for _, share in self.groups])
        group = torch.multinomial(shares, recipe.batch, replacement=True, generator=generator)
        inside = (torch.rand(recipe.batch, generator=generator, dtype=torch.float64) * counts[group]).long()
        return (counts.cumsum(0) - counts)[group] + inside

    def sample(self, picks: Tensor, generator: torch.Generator) -> Tensor:
        """Return latents of some images, drawn from the autoencoder's distribution."""
        return self.mean[picks] + self.std[picks] * torch.randn(self.mean[picks].shape, generator=generator)

    def noise(self, picks: Tensor, named: Tensor, generator: torch.Generator) -> Tensor:
        """Return the noise (B, C, h, w) that goes with some images. named (B,): which of them have a caption.

        Without a caption noise tells nothing, so that guidance, which draws away from what is predicted without one,
        strengthens what noise tells.
        """
        noise = torch.randn(self.mean[picks].shape, generator=generator)
        return torch.where(named.view(-1, 1, 1, 1), self.coupling.told(noise, picks), noise) if self.coupling else noise


def configs(recipe: ImageRecipe, latent: int, channels: int) -> dict[str, dict[str, object]]:
    """Return the parts' configs of a new model for latents (channels, latent, latent)."""
    levels = len(recipe.widths)
    cross = ["CrossAttnDownBlock2D"] * (levels - 1), ["CrossAttnUpBlock2D"] * (levels - 1)
    unet = {
        "sample_size": latent,
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ["DownBlock2D", *cross[0]],
        "up_block_types": [*cross[1], "UpBlock2D"],
        "block_out_channels": list(recipe.widths),
        "cross_attention_dim": recipe.text_width,
    }
    text = {
        "hidden_size": recipe.text_width,
        "intermediate_size": 4 * recipe.text_width,
        "projection_dim": recipe.text_width,
        "num_hidden_layers": recipe.text_layers,
        "max_position_embeddings": recipe.max_length,
    }
    return {"unet": {**UNET, **unet}, "text_encoder": {**TEXT_ENCODER, **text}, "scheduler": SCHEDULER}


@dataclass(frozen=True)
class NoisyBatch:
    """Caption ids (B, L), latents x0 and noise (B, C, h, w), and timesteps (B,)."""

    ids: Tensor
    x0: Tensor
    eps: Tensor
    t: Tensor


def draw(
    pipeline: TextToImageModel, dataset: LatentDataset, phrases: Phrases, recipe: ImageRecipe, step: int
) -> NoisyBatch:
    """Return the batch of a step, from CPU generators that depend on nothing but (seed, step)."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    rng = random.Random(f"{recipe.seed}/{step}")
    picks = dataset.pick(recipe, generator)
    texts = [phrases.draw(dataset.captions[i], recipe.drop, rng) for i in picks.tolist()]
    ids, named = torch.tensor([pipeline.encode_prompt(text) for text in texts]), torch.tensor([*map(bool, texts)])
    x0 = dataset.sample(picks, generator)
    # one timestep from each of B equal parts of the range: the same distribution, less variance
    parts = (torch.rand(1, generator=generator) + torch.arange(recipe.batch) / recipe.batch) % 1
    return NoisyBatch(ids, x0, dataset.noise(picks, named, generator), timesteps(pipeline, parts))


def fixed_batch(pipeline: TextToImageModel, dataset: LatentDataset, recipe: ImageRecipe) -> NoisyBatch:
    """Return the batch that a run is scored by: images for validation, else some of those seen, under fixed noise."""
    count = dataset.validation or dataset.originals
    first, number = len(dataset.captions) - count if dataset.validation else 0, min(FIXED, count)
    picks = first + torch.arange(number) * count // number
    generator = torch.Generator().manual_seed(recipe.seed)
    ids = torch.tensor([pipeline.encode_prompt(dataset.captions[i].label) for i in picks.tolist()])
    x0 = dataset.sample(picks, generator)
    parts = (torch.randperm(number, generator=generator) + 0.5) / number
    noise = dataset.noise(picks, torch.ones(number, dtype=torch.bool), generator)
    return NoisyBatch(ids, x0, noise, timesteps(pipeline, parts))


def timesteps(pipeline: TextToImageModel, parts: Tensor) -> Tensor:
    """Map positions (B,) in 0..1 to timesteps."""
    count = pipeline.schedule.num_train_timesteps
    return (parts * count).long().clamp(max=count - 1)


def noised(pipeline: TextToImageModel, batch: NoisyBatch, precision: Precision) -> tuple[Tensor, Tensor]:
    """Return a batch's noisy latents and timesteps, as the UNet reads them."""
    level = _level(pipeline, batch)
    noisy = level.sqrt() * batch.x0 + (1 - level).sqrt() * batch.eps
    return (
        noisy.to(precision.device).contiguous(memory_format=torch.channels_last),
        batch.t.to(precision.device).float(),
    )


def _level(pipeline: TextToImageModel, batch: NoisyBatch) -> Tensor:
    """Return the cumulative alpha (B, 1, 1, 1) of each timestep of a batch."""
    return torch.as_tensor(pipeline.schedule.alphas_cumprod, dtype=torch.float32)[batch.t].view(-1, 1, 1, 1)


def loss_of(
    network: TextToLatent, pipeline: TextToImageModel, batch: NoisyBatch, precision: Precision, min_snr: float = 0.0
) -> Tensor:
    """Return the mean squared error of what the network predicts for a batch that is noised to its timesteps.

    min_snr: weight the errors by noise level (see `TextToImageModel.min_snr_weights`). 0: all equally.
    """
    level = _level(pipeline, batch)
    with precision.autocast():
        predicted = network(batch.ids.to(precision.device), *noised(pipeline, batch, precision))
    target = pipeline.target(batch.x0, batch.eps, level).to(precision.device)
    if not min_snr:
        return F.mse_loss(predicted.float(), target)
    errors = F.mse_loss(predicted.float(), target, reduction="none").mean((1, 2, 3))
    return (pipeline.min_snr_weights(level.flatten(), min_snr).to(precision.device) * errors).mean()


def train(
    recipe: ImageRecipe, dataset: LatentDataset, pipeline: TextToImageModel, precision: Precision, data: str
) -> Generator[Progress, None, TextToLatent]:
    """Train, or continue from `out`/diffusion.pt; yield after every step, and return the averaged network.

    data: a digest of images and captions.
    """
    network, average = pipeline.network, Average(pipeline.network, recipe.ema)
    score = "held_out" if dataset.validation else "seen"
    sizes = {name: str(getattr(recipe, name)) for name in SIZES}
    identity = {name: getattr(recipe, name) for name in LOOSE}
    trainer = Trainer(
        "diffusion",
        recipe,
        "diffusion.pt",
        {**identity, "data": data, "dtype": precision.name, state.SIZES: sizes},
        network,
        Curve(Path(recipe.out) / "loss", "pictures", [score], "mean squared error"),
        precision,
        names_for_adam=ADAM,
        average=average,
    )
    phrases = Phrases(dataset.captions[: dataset.originals])
    fixed = fixed_batch(pipeline, dataset, recipe)
    batches = ahead(partial(draw, pipeline, dataset, phrases, recipe), recipe.steps, precision)

    def update(step: int) -> tuple[Tensor, int]:
        return loss_of(network, pipeline, batches(step), precision, recipe.min_snr), recipe.batch

    @torch.no_grad()
    def validate(done: int) -> dict[str, float] | None:
        if done % recipe.evaluate_every and done != recipe.steps:
            return None
        return {score: loss_of(average.average, pipeline, fixed, precision).item()}

    yield from trainer.run(update, validate)
    return average.average.cpu()

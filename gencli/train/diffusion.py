"""Second stage of the recipe behind `weights/emoji`: a text-conditioned latent UNet and its text encoder, together.

v-prediction (Salimans & Ho 2022) over linear betas (Ho et al. 2020), or whatever a checkpoint that goes on was trained
with; captions are dropped now and then, so that classifier-free guidance works (Ho & Salimans 2021); what is kept is an
exponential moving average of the weights.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Generator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.train import state
from gencli.train.curve import Curve
from gencli.train.optim import Optimizers, learning_rate_factor
from gencli.train.painter import Painter, TextToLatent
from gencli.train.phrases import Phrases
from gencli.train.pictures import Caption
from gencli.train.place import Place
from gencli.train.trainer import Average, Progress, Trainer

SCHEDULER: dict[str, Any] = {
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
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "layers_per_block": 1,
    "attention_head_dim": 4,  # the number of heads, as Stable Diffusion's configs mean it
    "norm_num_groups": 16,
    "act_fn": "silu",
}
TEXT_ENCODER: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}
ADAM = ("embedding", "conv_in", "conv_out", "time_embedding")  # AdamW's, whatever the optimizer of the others
SIZES = (
    "init", "keep_text_encoder", "optimizer", "size", "widths", "text_width", "text_layers", "max_length", "vocabulary"
)  # fmt: skip
FREE = ("out", "device", "save_every", "evaluate_every")  # what may differ when a run goes on
FIXED = 64  # pictures, each at a noise level of its own, by which a run is scored as it goes


@dataclass(frozen=True)
class DiffusionRecipe:
    """`drop`: share of captions left out. `variants`: see `augment.varied`, of each picture. `copies`, `pairs`: see
    `augment`; what that makes is `extra_share` of what is seen. `hold_out`: share of the pictures that is never trained
    on, only scored.

    `init`: a checkpoint to go on from, which keeps its autoencoder, tokenizer, sizes and noise schedule; with
    `keep_text_encoder` also that. `min_snr`: γ of the loss's weights, 0 for none. `widths`: the UNet's channels, a
    level each, multiples of 16.
    """

    out: str
    init: str = ""
    keep_text_encoder: bool = False
    size: int | None = None  # pixels a side, of `init`; by default what it was trained with
    widths: tuple[int, ...] = (64, 128, 112)
    text_width: int = 128
    text_layers: int = 2
    max_length: int = 32  # tokens a caption is padded to
    vocabulary: int = 4096
    variants: int = 0
    copies: int = 0
    pairs: int = 0
    extra_share: float = 0.3
    hold_out: float = 0.0
    batch: int = 64
    steps: int = 4000
    lr: float = 1.5e-3
    optimizer: str = "muon"
    weight_decay: float = 0.01
    warmup: int = 50
    cooldown: float = 0.4
    ema: float = 0.999
    drop: float = 0.1
    min_snr: float = 0.0
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    save_every: float = 180.0  # seconds
    evaluate_every: int = 200  # steps


@dataclass(frozen=True)
class Pictures:
    """Latents to learn from: means and standard deviations (N, C, h, w), with their captions.

    Of N, the first `own` are the data's, then come `variants` times as many that show the same, in the same order,
    then others that were made from them, and last those that are held out.
    """

    captions: list[Caption]
    mean: Tensor
    deviation: Tensor
    own: int
    held: int = 0
    variants: int = 0

    @cached_property
    def phrases(self) -> Phrases:
        """What the captions have in common."""
        return Phrases(self.captions[: self.own])

    def pick(self, recipe: DiffusionRecipe, generator: torch.Generator) -> Tensor:
        """Which a batch has: of the data's, but for a share of those that were made from them."""
        first, last = self.own * (1 + self.variants), len(self.captions) - self.held
        picks = torch.randint(first, (recipe.batch,), generator=generator)
        if last == first:
            return picks
        extra = torch.randint(first, last, (recipe.batch,), generator=generator)
        return torch.where(torch.rand(recipe.batch, generator=generator) < recipe.extra_share, extra, picks)

    def sample(self, picks: Tensor, generator: torch.Generator) -> Tensor:
        """Latents of some pictures, drawn from what the autoencoder says of them."""
        return self.mean[picks] + self.deviation[picks] * torch.randn(self.mean[picks].shape, generator=generator)


def configs(recipe: DiffusionRecipe, latent: int, channels: int) -> dict[str, dict[str, Any]]:
    """The parts' configs of a new model for latents (channels, latent, latent)."""
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
class Batch:
    """Caption ids (B, L), latents x0 and noise (B, C, h, w), and timesteps (B,)."""

    ids: Tensor
    x0: Tensor
    eps: Tensor
    t: Tensor


def draw(painter: Painter, pictures: Pictures, recipe: DiffusionRecipe, step: int) -> Batch:
    """The batch of a step, from CPU generators that know nothing but (seed, step)."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    rng = random.Random(f"{recipe.seed}/{step}")
    picks = pictures.pick(recipe, generator)
    texts = [pictures.phrases.draw(pictures.captions[i], recipe.drop, rng) for i in picks.tolist()]
    ids = torch.tensor([painter.encode_prompt(text) for text in texts])
    x0 = pictures.sample(picks, generator)
    # one timestep from each of B equal parts of the range: the same law, less variance
    parts = (torch.rand(1, generator=generator) + torch.arange(recipe.batch) / recipe.batch) % 1
    return Batch(ids, x0, torch.randn(x0.shape, generator=generator), timesteps(painter, parts))


def fixed_batch(painter: Painter, pictures: Pictures, recipe: DiffusionRecipe) -> Batch:
    """What a run is scored by: pictures held out, else some that are seen, under noise that stays the same."""
    first, count = (len(pictures.captions) - pictures.held, pictures.held) if pictures.held else (0, pictures.own)
    number = min(FIXED, count)
    picks = first + torch.arange(number) * count // number
    generator = torch.Generator().manual_seed(recipe.seed)
    ids = torch.tensor([painter.encode_prompt(pictures.captions[i].label) for i in picks.tolist()])
    x0 = pictures.sample(picks, generator)
    parts = (torch.randperm(number, generator=generator) + 0.5) / number
    return Batch(ids, x0, torch.randn(x0.shape, generator=generator), timesteps(painter, parts))


def timesteps(painter: Painter, parts: Tensor) -> Tensor:
    """Shares of the way (B,) in 0..1 → timesteps."""
    count = painter.schedule.num_train_timesteps
    return (parts * count).long().clamp(max=count - 1)


def loss_of(
    model: TextToLatent, painter: Painter, alphas_cumprod: Tensor, batch: Batch, place: Place, min_snr: float = 0.0
) -> Tensor:
    """Mean squared error of what the model says of a batch that is noised to its timesteps. ᾱ: float32 (T,).

    min_snr: weigh it by noise levels (see `Painter.min_snr_weights`); 0: all alike.
    """
    ids, x0, eps = (tensor.to(place.device) for tensor in (batch.ids, batch.x0, batch.eps))
    level = alphas_cumprod[batch.t].view(-1, 1, 1, 1).to(place.device)
    noisy = (level.sqrt() * x0 + (1 - level).sqrt() * eps).contiguous(memory_format=torch.channels_last)
    with place.autocast():
        said = model(ids, noisy, batch.t.to(place.device).float())
    target = painter.target(x0, eps, level)
    if not min_snr:
        return F.mse_loss(said.float(), target)
    errors = F.mse_loss(said.float(), target, reduction="none").mean((1, 2, 3))
    return (painter.min_snr_weights(level.flatten(), min_snr) * errors).mean()


def train(
    recipe: DiffusionRecipe, pictures: Pictures, painter: Painter, place: Place, data: str, *, changes: bool = False
) -> Generator[Progress, None, TextToLatent]:
    """Train, or go on from `out`/diffusion.pt; yields after every step, and returns the averaged model.

    data: a name for the pictures and captions, see `state.digest`; changes: see `state.check_recipe`.
    """
    model, average = painter.model, copy.deepcopy(painter.model)
    score = "held_out" if pictures.held else "seen"
    optimizers = Optimizers(
        model, recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, names_for_adam=ADAM, dtype=place.dtype
    )
    trainer = Trainer(
        stage="diffusion",
        state_file=Path(recipe.out) / "diffusion.pt",
        recipe=identity(recipe, data, place),
        model=model,
        optimizers=optimizers,
        curve=Curve(Path(recipe.out) / "loss", "pictures", [score], "mean squared error"),
        seed=recipe.seed,
        steps=recipe.steps,
        factor=lambda step: learning_rate_factor(step, recipe.steps, recipe.warmup, recipe.cooldown),
        average=Average(model, average, recipe.ema),
        save_every=recipe.save_every,
        changes=changes,
    )
    alphas_cumprod = torch.as_tensor(painter.schedule.alphas_cumprod, dtype=torch.float32)
    fixed = fixed_batch(painter, pictures, recipe)

    def update(step: int) -> tuple[Tensor, int]:
        batch = draw(painter, pictures, recipe, step)
        return loss_of(model, painter, alphas_cumprod, batch, place, recipe.min_snr), recipe.batch

    @torch.no_grad()
    def validate(done: int) -> dict[str, float] | None:
        if done % recipe.evaluate_every and done != recipe.steps:
            return None
        return {score: loss_of(average, painter, alphas_cumprod, fixed, place).item()}

    yield from trainer.run(update, validate)
    return average.cpu()


def identity(recipe: DiffusionRecipe, data: str, place: Place) -> dict[str, Any]:
    """What must be the same when a run goes on: see `state.check_recipe`."""
    given = asdict(recipe)
    sizes = {name: str(given.pop(name)) for name in SIZES}
    loose = {name: value for name, value in given.items() if name not in FREE}
    return {**loose, "data": data, "dtype": str(place.dtype).removeprefix("torch."), state.SIZES: sizes}

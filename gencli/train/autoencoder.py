"""First stage of the recipe behind `weights/emoji`: an f8 KL autoencoder (Rombach et al. 2022, section 3.1).

No adversary and no perceptual network: flat drawings ask for sharp edges, and a loss on picture gradients gives those.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from gencli.train.optim import Optimizers, learning_rate_factor
from gencli.train.pictures import to_signal

CONFIG = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [24, 48, 96, 128],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "act_fn": "silu",
    "sample_size": 128,
}


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Weights of the losses beside the absolute error: `kl` on the mean divergence a latent number, `edges` on picture
    gradients, `color` on means over 8×8 pixels, which keeps hues that thin latents would trade for edges."""

    out: str
    batch: int = 8
    steps: int = 1000
    lr: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 20
    cooldown: float = 0.5
    kl: float = 5e-4
    edges: float = 1.0
    color: float = 1.0
    seed: int = 0
    save_every: float = 180.0  # seconds


@dataclass(frozen=True)
class Progress:
    """One step: mean absolute error on -1..1, divergence in nats a latent number, pictures seen a second."""

    step: int
    error: float
    divergence: float
    pictures_per_second: float


def edge_error(made: Tensor, true: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical picture gradients, (B, C, H, W) both."""
    across = (made.diff(dim=3) - true.diff(dim=3)).abs().mean()
    return across + (made.diff(dim=2) - true.diff(dim=2)).abs().mean()


def color_error(made: Tensor, true: Tensor) -> Tensor:
    """Mean absolute difference of means over 8×8 pixels, (B, C, H, W) both."""
    return (F.avg_pool2d(made, 8) - F.avg_pool2d(true, 8)).abs().mean()


def train(recipe: AutoencoderRecipe, pictures: Tensor) -> Iterator[Progress]:
    """Train on uint8 pictures (N, 3, H, W), or go on from `out`/autoencoder.pt; yields after every step."""
    torch.manual_seed(recipe.seed)
    model = AutoencoderKL(AutoencoderKLConfig.from_dict(CONFIG)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizers = Optimizers(
        model, lr=recipe.lr, weight_decay=recipe.weight_decay, names_for_adam=("conv_in", "conv_out")
    )
    state_file = Path(recipe.out) / "autoencoder.pt"
    first = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizers.load_state_dict(state["optimizers"])
        first = state["step"]
    saved = begun = time.monotonic()
    for step in range(first, recipe.steps):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        picks = torch.randint(len(pictures), (recipe.batch,), generator=generator)
        x = to_signal(pictures[picks]).contiguous(memory_format=torch.channels_last)
        mean, logvar = model.encode(x)
        logvar = logvar.clamp(-30, 20)
        z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator)
        made = model.decode(z)
        error = (made - x).abs().mean()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = error + recipe.edges * edge_error(made, x) + recipe.color * color_error(made, x) + recipe.kl * divergence
        loss.backward()
        optimizers.step(learning_rate_factor(step, recipe.steps, recipe.warmup, recipe.cooldown))
        done = step + 1
        if done == recipe.steps or time.monotonic() - saved > recipe.save_every:
            state = {"model": model.state_dict(), "optimizers": optimizers.state_dict(), "step": done}
            torch.save(state, state_file.with_suffix(".partial"))
            os.replace(state_file.with_suffix(".partial"), state_file)
            saved = time.monotonic()
        rate = (done - first) * recipe.batch / (time.monotonic() - begun)
        yield Progress(done, error.item(), divergence.item(), rate)

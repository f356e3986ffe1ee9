"""First stage of the recipe behind `weights/emoji`: an f8 KL autoencoder (Rombach et al. 2022, section 3.1).

No adversary and no perceptual network: flat drawings ask for sharp edges, and a loss on picture gradients gives those.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from gencli.train import state
from gencli.train.curve import Curve
from gencli.train.optim import Optimizers, learning_rate_factor
from gencli.train.pictures import to_signal
from gencli.train.place import Place, pick_place
from gencli.train.trainer import Progress, Trainer

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
FREE = ("out", "device", "save_every")  # what may differ when a run goes on


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
    size: int = 128  # pixels a side
    widths: tuple[int, ...] = (24, 48, 96, 128)  # channels, multiples of 8
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    save_every: float = 180.0  # seconds


def edge_error(made: Tensor, true: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical picture gradients, (B, C, H, W) both."""
    across = (made.diff(dim=3) - true.diff(dim=3)).abs().mean()
    return across + (made.diff(dim=2) - true.diff(dim=2)).abs().mean()


def color_error(made: Tensor, true: Tensor) -> Tensor:
    """Mean absolute difference of means over 8×8 pixels, (B, C, H, W) both."""
    return (F.avg_pool2d(made, 8) - F.avg_pool2d(true, 8)).abs().mean()


def config(recipe: AutoencoderRecipe) -> dict[str, Any]:
    """config.json of what the recipe trains: a block for each of `widths`, which halve the picture but for the last."""
    blocks = len(recipe.widths)
    return {
        **CONFIG,
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "block_out_channels": list(recipe.widths),
        "sample_size": recipe.size,
        "scaling_factor": 1.0,  # see `export.normalise_latents`
    }


def scaling(vae: AutoencoderKL) -> tuple[Tensor | float, Tensor | float]:
    """Shift and scale between the autoencoder's latents z and the UNet's, (z - shift) · scale."""
    config = vae.config
    if config.latents_mean is None or config.latents_std is None:
        return config.shift_factor or 0.0, config.scaling_factor
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))
    return mean, config.scaling_factor / std


def identity(recipe: AutoencoderRecipe, data: str, place: Place) -> dict[str, Any]:
    """What must be the same when a run goes on: see `state.check_recipe`."""
    loose = {name: value for name, value in asdict(recipe).items() if name not in (*FREE, "widths", "size")}
    sizes = {"widths": str(recipe.widths), "size": recipe.size}
    return {**loose, "data": data, "dtype": str(place.dtype).removeprefix("torch."), state.SIZES: sizes}


def train(
    recipe: AutoencoderRecipe, pictures: Tensor, data: str, *, changes: bool = False
) -> Generator[Progress, None, None]:
    """Train on uint8 pictures (N, 3, H, W), or go on from `out`/autoencoder.pt; yields after every step.

    The loss is that of `AutoencoderRecipe`. data: a name for the pictures; changes: see `state.check_recipe`.
    """
    torch.manual_seed(recipe.seed)
    place = pick_place(recipe.device, recipe.dtype)
    model = AutoencoderKL(AutoencoderKLConfig.from_dict(config(recipe)))
    model.to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(
        stage="autoencoder",
        state_file=Path(recipe.out) / "autoencoder.pt",
        recipe=identity(recipe, data, place),
        model=model,
        optimizers=Optimizers(
            model,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            names_for_adam=("conv_in", "conv_out"),
            dtype=place.dtype,
        ),
        curve=Curve(Path(recipe.out) / "autoencoder", "pictures", [], "loss"),
        seed=recipe.seed,
        steps=recipe.steps,
        factor=lambda step: learning_rate_factor(step, recipe.steps, recipe.warmup, recipe.cooldown),
        save_every=recipe.save_every,
        changes=changes,
    )

    def update(step: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        picks = torch.randint(len(pictures), (recipe.batch,), generator=generator)
        x = to_signal(pictures[picks].to(place.device)).contiguous(memory_format=torch.channels_last)
        with place.autocast():
            mean, logvar = model.encode(x)
        mean, logvar = mean.float(), logvar.float().clamp(-30, 20)
        noise = torch.randn(mean.shape, generator=generator).to(place.device)
        with place.autocast():
            made = model.decode(mean + torch.exp(0.5 * logvar) * noise)
        made = made.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        error = (made - x).abs().mean() + recipe.edges * edge_error(made, x) + recipe.color * color_error(made, x)
        return error + recipe.kl * divergence, recipe.batch

    yield from trainer.run(update)

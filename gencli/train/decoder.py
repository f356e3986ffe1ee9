"""Third stage of the recipe behind `weights/emoji`: the decoder learns to draw from latents that are a little wrong.

What a sampler ends with lies near the encoder's latents and not on them, and a decoder that saw only those paints the
difference as blotches. The encoder stays as it is, so this stage needs nothing of the second and changes nothing there.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from gencli.models.autoencoder_kl import AutoencoderKL
from gencli.train.autoencoder import color_error, edge_error, scaling
from gencli.train.curve import Curve
from gencli.train.optim import Optimizers, learning_rate_factor
from gencli.train.pictures import to_signal
from gencli.train.place import pick_place
from gencli.train.saving import own_memory
from gencli.train.trainer import Progress, Trainer


@dataclass(frozen=True)
class DecoderRecipe:
    """noise: largest standard deviation of what is added to latents (which have 1), picked evenly from 0 for each."""

    out: str
    steps: int = 0
    batch: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 20
    cooldown: float = 0.5
    noise: float = 0.35
    edges: float = 1.0
    color: float = 1.0
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    save_every: float = 180.0  # seconds


def train(
    recipe: DecoderRecipe,
    vae: AutoencoderKL,
    pictures: Tensor,
    latents: tuple[Tensor, Tensor],
    data: str = "",
    *,
    changes: bool = False,
) -> Generator[Progress, None, None]:
    """Train the decoder of `vae` in place, or go on from `out`/decoder.pt; yields after every step.

    pictures: uint8 (N, 3, H, W); latents: means and standard deviations (N, C, h, w) as the UNet knows them. The loss
    is the mean absolute error on −1..1, of pixels, of picture gradients and of means over 8×8 pixels. data: a name for
    the pictures; changes: see `state.check_recipe`.
    """
    place = pick_place(recipe.device, recipe.dtype)
    vae.train().requires_grad_(False).to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in (vae.decoder, vae.post_quant_conv):
        if module is not None:
            own_memory(module)
    fixed = {name: value for name, value in asdict(recipe).items() if name not in ("out", "save_every", "device")}
    fixed |= {"data": data, "dtype": str(place.dtype).removeprefix("torch.")}
    optimizers = Optimizers(
        vae,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        names_for_adam=("conv_in", "conv_out", "encoder.", "quant"),
        dtype=place.dtype,
    )
    trainer = Trainer(
        stage="decoder",
        state_file=Path(recipe.out) / "decoder.pt",
        recipe=fixed,
        model=vae,
        optimizers=optimizers,
        curve=Curve(Path(recipe.out) / "decoder", "pictures", [], "absolute error"),
        seed=recipe.seed,
        steps=recipe.steps,
        factor=lambda step: learning_rate_factor(step, recipe.steps, recipe.warmup, recipe.cooldown),
        save_every=recipe.save_every,
        changes=changes,
    )
    mean, deviation = latents
    shift, scale = scaling(vae)

    def update(step: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        picks = torch.randint(len(mean), (recipe.batch,), generator=generator)
        x = to_signal(pictures[picks].to(place.device)).contiguous(memory_format=torch.channels_last)
        wrong = recipe.noise * torch.rand(recipe.batch, 1, 1, 1, generator=generator)
        spread = (deviation[picks].square() + wrong.square()).sqrt()
        z = mean[picks] + spread * torch.randn(mean[picks].shape, generator=generator)
        z = (z / scale + shift).to(place.device)
        with place.autocast():
            made = vae.decode(z.contiguous(memory_format=torch.channels_last))
        made = made.float()
        loss = (made - x).abs().mean() + recipe.edges * edge_error(made, x) + recipe.color * color_error(made, x)
        return loss, recipe.batch

    yield from trainer.run(update)
    vae.eval().requires_grad_(False).cpu()

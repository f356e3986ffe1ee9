"""First and third stage of the recipe behind `weights/emoji`: an f8 KL autoencoder (Rombach et al. 2022, section 3.1).

No adversary and no perceptual network: flat drawings need sharp edges, and a loss on image gradients gives those.

In the third stage the decoder learns to draw from latents that are slightly wrong: what a sampler ends with lies near
the encoder's latents and not on them, and a decoder that saw only those paints the difference as blotches. The encoder
stays as it is, so the third stage needs nothing of the second and changes nothing there.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from gencli.models.module import channels_last
from gencli.train import state
from gencli.train.curve import Curve
from gencli.train.pictures import to_signal
from gencli.train.precision import Precision, make_trainable
from gencli.train.recipe import ImageRecipe
from gencli.train.trainer import Progress, Trainer

LATENTS = 4  # channels
CONFIG = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [24, 48, 96, 128],
    "layers_per_block": 1,
    "latent_channels": LATENTS,
    "norm_num_groups": 8,
    "act_fn": "silu",
    "sample_size": 128,
}


def reconstruction_error(made: Tensor, true: Tensor, recipe: ImageRecipe) -> Tensor:
    """Mean absolute error of images (B, C, H, W) on −1..1, of their gradients, and of their means over 8×8 pixels."""
    edges = sum((made.diff(dim=dim) - true.diff(dim=dim)).abs().mean() for dim in (3, 2))
    color = (F.avg_pool2d(made, 8) - F.avg_pool2d(true, 8)).abs().mean()
    return (made - true).abs().mean() + recipe.edges * edges + recipe.color * color


def config(recipe: ImageRecipe) -> dict[str, object]:
    """Return the autoencoder's config.json: one block per width, each but the last halving the image."""
    blocks = len(recipe.autoencoder_widths)
    return {
        **CONFIG,
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "block_out_channels": list(recipe.autoencoder_widths),
        "sample_size": recipe.size or 128,
        "scaling_factor": 1.0,  # see `normalise_latents`
    }


def scaling(vae: AutoencoderKL) -> tuple[Tensor | float, Tensor | float]:
    """Return shift and scale from the autoencoder's latents z to the UNet's, (z - shift) · scale."""
    config = vae.config
    if config.latents_mean is None or config.latents_std is None:
        return config.shift_factor or 0.0, config.scaling_factor
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))
    return mean, config.scaling_factor / std


@torch.no_grad()
def normalise_latents(vae: nn.Module, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Fold into the 1×1 convolutions around the latents that each channel of `mean` (N, C, h, w) gets mean 0 and std 1.

    Stable Diffusion has one scaling factor for all channels and no shift; after this it needs neither. Return what the
    encoder gives from now on for the images of `mean` and `std`.
    """
    mu, sigma = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    channels = len(mu)
    quant, post = vae.get_submodule("quant_conv"), vae.get_submodule("post_quant_conv")
    assert isinstance(quant, nn.Conv2d) and isinstance(post, nn.Conv2d)
    assert quant.bias is not None and post.bias is not None
    quant.bias[:channels] = (quant.bias[:channels] - mu) / sigma  # the first half gives means, the second log variances
    quant.weight[:channels] /= sigma.view(-1, 1, 1, 1)
    quant.bias[channels:] -= 2 * sigma.log()
    post.bias += post.weight.flatten(1) @ mu
    post.weight *= sigma.view(1, -1, 1, 1)
    mu, sigma = mu.view(1, -1, 1, 1), sigma.view(1, -1, 1, 1)
    return (mean - mu) / sigma, std / sigma


def making(recipe: ImageRecipe) -> dict[str, object]:
    """Return the settings of which the data's digest depends, which tell better than it what has changed."""
    named = {name: getattr(recipe, name) for name in ("hold_out", "random_flip", "pairs")}
    told = recipe.variants and f"{recipe.variants}, told by noise"  # a run of before went on with other copies
    return {**named, "recolor": recipe.copies, "variants": told}


def identity(recipe: ImageRecipe, data: str, precision: Precision, *names: str) -> dict[str, object]:
    """Return what must stay the same when a run continues: see `state.check_recipe`."""
    names = ("batch", "steps", "lr", "weight_decay", "warmup", "cooldown", "edges", "color", "seed", *names)
    return {**making(recipe), **{name: getattr(recipe, name) for name in names}, "data": data, "dtype": precision.name}


def autoencoder_identity(recipe: ImageRecipe, data: str, precision: Precision) -> dict[str, object]:
    """The same for the first stage."""
    sizes = {"widths": str(recipe.autoencoder_widths), "size": recipe.size or 128}
    return {**identity(recipe.autoencoder(), data, precision, "kl"), state.SIZES: sizes}


def train_autoencoder(
    recipe: ImageRecipe, images: Tensor, data: str, precision: Precision
) -> Generator[Progress, None, None]:
    """Train on uint8 images (N, 3, H, W), or continue from `out`/autoencoder.pt; yield after every step.

    The loss is `reconstruction_error` and a little divergence. data: a digest of the images.
    """
    torch.manual_seed(recipe.seed)
    model = AutoencoderKL(AutoencoderKLConfig.from_dict(config(recipe)))
    channels_last(model.to(precision.device))
    stage = recipe.autoencoder()
    trainer = Trainer(
        "autoencoder",
        stage,
        "autoencoder.pt",
        autoencoder_identity(recipe, data, precision),
        model,
        Curve(Path(recipe.out) / "autoencoder", "pictures", [], "loss"),
        precision,
        names_for_adam=("conv_in", "conv_out"),
    )

    def update(step: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        picks = torch.randint(len(images), (stage.batch,), generator=generator)
        x = to_signal(images[picks].to(precision.device)).contiguous(memory_format=torch.channels_last)
        with precision.autocast():
            mean, logvar = model.moments(x)
        mean, logvar = mean.float(), logvar.float().clamp(-30, 20)
        noise = torch.randn(mean.shape, generator=generator).to(precision.device)
        with precision.autocast():
            made = model.decode(mean + torch.exp(0.5 * logvar) * noise)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return reconstruction_error(made.float(), x, recipe) + recipe.kl * divergence, stage.batch

    yield from trainer.run(update)


def train_decoder(
    recipe: ImageRecipe, vae: AutoencoderKL, images: Tensor, mean: Tensor, std: Tensor, data: str, precision: Precision
) -> Generator[Progress, None, None]:
    """Train the decoder of `vae` in place, or continue from `out`/decoder.pt; yield after every step.

    images: uint8 (N, 3, H, W). mean, std: of their latents (N, C, h, w) as the UNet knows them. data: a digest of the
    images.
    """
    channels_last(vae.train().requires_grad_(False).to(precision.device))
    for module in (vae.decoder, vae.post_quant_conv):
        if module is not None:
            make_trainable(module)
    stage = recipe.decoder()
    trainer = Trainer(
        "decoder",
        stage,
        "decoder.pt",
        identity(stage, data, precision, "noise"),
        vae,
        Curve(Path(recipe.out) / "decoder", "pictures", [], "absolute error"),
        precision,
        names_for_adam=("conv_in", "conv_out", "encoder.", "quant"),
    )
    shift, scale = scaling(vae)

    def update(step: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        picks = torch.randint(len(mean), (stage.batch,), generator=generator)
        x = to_signal(images[picks].to(precision.device)).contiguous(memory_format=torch.channels_last)
        added = recipe.noise * torch.rand(stage.batch, 1, 1, 1, generator=generator)
        total = (std[picks].square() + added.square()).sqrt()
        z = mean[picks] + total * torch.randn(mean[picks].shape, generator=generator)
        z = (z / scale + shift).to(precision.device)
        with precision.autocast():
            made = vae.decode(z.contiguous(memory_format=torch.channels_last))
        return reconstruction_error(made.float(), x, recipe), stage.batch

    yield from trainer.run(update)
    vae.eval().requires_grad_(False).cpu()

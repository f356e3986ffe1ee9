"""The recipe behind `weights/emoji`, end to end: captioned pictures → autoencoder → latents → text-conditioned UNet.

The finished folder is a Stable Diffusion pipeline, small everywhere; every part opens in diffusers or transformers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gencli.checkpoints import build
from gencli.models import autoencoder_kl
from gencli.tokens import load_tokenizer
from gencli.train import autoencoder, diffusion
from gencli.train.augment import Captioned, augment
from gencli.train.export import normalise_latents, write_clip_tokenizer, write_json, write_part
from gencli.train.pictures import Caption, read_captions, read_pictures

VOCABULARY = 4096

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

# what gencli takes when nothing else is said, under the names of diffusers' call
DEFAULTS = {"num_inference_steps": 50, "guidance_scale": 3.0}


def train(
    pictures: Path,
    captions: Path,
    autoencoder_recipe: autoencoder.AutoencoderRecipe,
    diffusion_recipe: diffusion.DiffusionRecipe,
) -> Iterator[autoencoder.Progress | diffusion.Progress]:
    """Run both stages, each resumed from `out` when it was begun; the checkpoint then lies in `out`/checkpoint.

    `pictures` is a zip or folder, `captions` JSON lines (see `gencli.train.pictures`).
    """
    out = Path(diffusion_recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = read_captions(captions)
    pixels = read_pictures(pictures, [name for name, _ in rows], autoencoder.CONFIG["sample_size"])  # type: ignore[arg-type]
    known = [caption for _, caption in rows]
    recipe = diffusion_recipe
    extra = augment(_captioned(known, pixels), copies=recipe.copies, pairs=recipe.pairs, seed=recipe.seed)
    if not (out / "latents.pt").exists():
        if recipe.init:
            vae: nn.Module = build.load(Path(recipe.init) / "vae", dtype=torch.float32)
        else:
            yield from autoencoder.train(autoencoder_recipe, pixels)
            vae = _autoencoder(torch.load(out / "autoencoder.pt", weights_only=True)["model"])
            normalise_latents(vae, *diffusion.encode_pictures(vae, pixels))
        encode(out, vae, torch.cat([pixels, *(_as_tensor(picture) for _, picture in extra)]))
    vae, latents = encoded(out)
    if not (out / "tokenizer" / "vocab.json").exists():
        if recipe.init:
            copy_files(Path(recipe.init) / "tokenizer", out / "tokenizer")
        else:
            write_clip_tokenizer(out / "tokenizer", _tokenizer_texts(known), VOCABULARY, diffusion.MAX_LENGTH)
    tokenizer = load_tokenizer(out / "tokenizer")
    captions_of_all = [*known, *(caption for caption, _ in extra)]
    yield from diffusion.train(recipe, captions_of_all, len(known), latents, tokenizer)
    save_checkpoint(out, vae)


def _captioned(captions: list[Caption], pixels: Tensor) -> list[Captioned]:
    return [(caption, picture.permute(1, 2, 0).numpy()) for caption, picture in zip(captions, pixels, strict=True)]


def _as_tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of a folder that is no deeper."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def encode(out: Path, vae: nn.Module, pixels: Tensor) -> None:
    """Write `out`/latents.pt: the autoencoder, and the latents of all pictures (N, 3, H, W), uint8."""
    mean, deviation = diffusion.encode_pictures(vae, pixels)  # type: ignore[arg-type]
    torch.save({"vae": vae.state_dict(), "mean": mean, "deviation": deviation}, out / "latents.partial")
    os.replace(out / "latents.partial", out / "latents.pt")


def encoded(out: Path) -> tuple[autoencoder_kl.AutoencoderKL, tuple[Tensor, Tensor]]:
    """The autoencoder and the latents' means and standard deviations that `encode` wrote."""
    state = torch.load(out / "latents.pt", weights_only=True)
    return _autoencoder(state["vae"]), (state["mean"], state["deviation"])


def _autoencoder(state: dict[str, Tensor]) -> autoencoder_kl.AutoencoderKL:
    vae = autoencoder_kl.Model(autoencoder_kl.Config.from_dict(autoencoder.CONFIG))
    vae.load_state_dict(state)
    return vae.eval()


def save_checkpoint(out: Path, vae: nn.Module) -> None:
    """Write `out`/checkpoint from the second stage's averaged weights and an autoencoder with normalised latents."""
    folder = out / "checkpoint"
    tokenizer = load_tokenizer(out / "tokenizer")
    model = diffusion.TextToLatent(tokenizer)
    model.load_state_dict(torch.load(out / "diffusion.pt", weights_only=True)["ema"])
    write_part(folder / "text_encoder", model.text_encoder, model.text_config, "model")
    write_part(folder / "unet", model.unet, diffusion.UNET, "diffusion_pytorch_model")
    write_part(folder / "vae", vae, {**autoencoder.CONFIG, "scaling_factor": 1.0}, "diffusion_pytorch_model")
    copy_files(out / "tokenizer", folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", diffusion.SCHEDULER)
    write_json(folder / "model_index.json", MODEL_INDEX)
    write_json(folder / "generation_config.json", DEFAULTS)


def _tokenizer_texts(captions: list[Caption]) -> list[str]:
    """Labels five times as often as tags, and the little words that people write around them."""
    labels = [caption.label for caption in captions for _ in range(5)]
    return [*labels, *(tag for caption in captions for tag in caption.tags), *["a an the of with"] * 200]

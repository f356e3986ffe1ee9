"""The recipe behind `weights/emoji`, end to end: captioned pictures → autoencoder → latents → text-conditioned UNet.

The finished folder is a Stable Diffusion pipeline, small everywhere; every part opens in diffusers or transformers.
Gone on from a checkpoint instead, it is that checkpoint's folder with another UNet and text encoder.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gencli.atomic import replace_folder
from gencli.checkpoints.save import save_part, write_json
from gencli.errors import GencliError
from gencli.models import autoencoder_kl
from gencli.tokens import load_tokenizer
from gencli.train import autoencoder, decoder, diffusion, state
from gencli.train.augment import augment, varied
from gencli.train.captions import find_captions
from gencli.train.export import normalise_latents, write_clip_tokenizer
from gencli.train.painter import Painter, load_part, new_painter, open_painter, save_painter, with_tokens
from gencli.train.pictures import Caption, read_pictures, to_signal
from gencli.train.place import Place, pick_place
from gencli.train.trainer import Progress

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
CHUNK = 32 * 128 * 128  # pixels that are encoded at once


@dataclass(frozen=True)
class ImageRecipe:
    """The stages: an autoencoder, unless the second goes on from a checkpoint; the diffusion model on its latents; and
    what the decoder learns after that, if anything."""

    autoencoder: autoencoder.AutoencoderRecipe
    diffusion: diffusion.DiffusionRecipe
    decoder: decoder.DecoderRecipe | None = None


def train(
    pictures: Path, captions: Path | None, recipe: ImageRecipe, *, words: Sequence[Path] = (), changes: bool = False
) -> Generator[Progress, None, None]:
    """Run all stages, each resumed from `out` when it was begun; the checkpoint then lies in `out`/checkpoint.

    pictures: a zip or folder; captions: see `captions.find_captions`; changes: see `state.check_recipe`.
    """
    out = Path(recipe.diffusion.out)
    out.mkdir(parents=True, exist_ok=True)
    with state.only_run(out):
        yield from _train(pictures, captions, words, recipe, out, changes)


def _train(
    pictures: Path, captions: Path | None, words: Sequence[Path], recipe: ImageRecipe, out: Path, changes: bool
) -> Generator[Progress, None, None]:
    second = recipe.diffusion
    place = pick_place(second.device, second.dtype)
    painter = None
    if second.init:
        painter = open_painter(second.init, place, second.size, keep_text_encoder=second.keep_text_encoder)
    size = painter.size if painter else recipe.autoencoder.size
    known, pixels, own, held = gather(pictures, captions, words, size, second)
    data = state.digest([pixels.numpy().tobytes(), *(caption.label.encode() for caption in known)])
    vae = yield from _latents(recipe, painter, pixels, own, data, place, changes)
    saved = state.load(out / "latents.pt") or {}
    if len(saved["mean"]) != len(known):  # a file of before it told its recipe
        raise GencliError(f"{out / 'latents.pt'} is of other pictures", "another -o begins anew")
    latents = diffusion.Pictures(known, saved["mean"], saved["deviation"], own, held, second.variants)
    if painter is None:
        painter = _new(recipe, known[:own], latents.mean, place)
    model = yield from diffusion.train(second, latents, painter, place, data, changes=changes)
    taught = recipe.decoder is not None and recipe.decoder.steps > 0
    if recipe.decoder is not None and taught:
        seen = latents.mean[:own], latents.deviation[:own]
        yield from decoder.train(recipe.decoder, vae, pixels[:own], seen, data, changes=changes)
    with replace_folder(out / "checkpoint") as folder:
        if painter.checkpoint is not None:
            save_painter(model, painter.checkpoint, folder, vae if taught else None)
        else:
            save_new(recipe, model, vae, latents.mean, folder)


def gather(
    pictures: Path, captions: Path | None, words: Sequence[Path], size: int, recipe: diffusion.DiffusionRecipe
) -> tuple[list[Caption], Tensor, int, int]:
    """All captions and pictures (N, 3, size, size), uint8: the data's, variants of them, those made from them, those
    held out; and how many the first and the last are."""
    rows = find_captions(pictures, captions, words)
    pixels = read_pictures(pictures, [name for name, _ in rows], size)
    known = [caption for _, caption in rows]
    held = round(len(rows) * recipe.hold_out)
    if held:  # evenly from all over the file, whatever its order
        last = {(2 * i + 1) * len(rows) // (2 * held) for i in range(held)}
        order = sorted(range(len(rows)), key=lambda index: index in last)
        known, pixels = [known[i] for i in order], pixels[order]
    own = len(rows) - held
    pairs = [(caption, picture.permute(1, 2, 0).numpy()) for caption, picture in zip(known, pixels, strict=True)]
    extra = augment(pairs[:own], copies=recipe.copies, pairs=recipe.pairs, seed=recipe.seed)
    rng = random.Random(f"{recipe.seed}/variants")
    if recipe.variants:
        extra = [(caption, varied(picture, rng)) for caption, picture in extra]
        shown = [(caption, varied(picture, rng)) for _ in range(recipe.variants) for caption, picture in pairs[:own]]
        extra = [*shown, *extra]
    made = [_as_tensor(picture) for _, picture in extra]
    known = [*known[:own], *(caption for caption, _ in extra), *known[own:]]
    return known, torch.cat([pixels[:own], *made, pixels[own:]]), own, held


def _as_tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]


def _latents(
    recipe: ImageRecipe, painter: Painter | None, pixels: Tensor, own: int, data: str, place: Place, changes: bool
) -> Generator[Progress, None, autoencoder_kl.AutoencoderKL]:
    """Train the autoencoder, or take that of the checkpoint, and write `out`/latents.pt, unless it is there.

    Returns the autoencoder on the CPU; a trained one's latents have mean 0 and deviation 1 in every channel.
    """
    first, out = recipe.autoencoder, Path(recipe.diffusion.out)
    identity = {"data": data, state.SIZES: {"init": recipe.diffusion.init}}
    if painter is None:
        identity = autoencoder.identity(first, data, place)
    saved = state.load(out / "latents.pt")
    if saved is not None:
        state.check_recipe(out, saved.get("recipe"), identity, changes=changes)
    if painter is not None and painter.checkpoint is not None:
        vae: Any = load_part(painter.checkpoint, "vae")
    else:
        vae = autoencoder_kl.Model(autoencoder_kl.Config.from_dict(autoencoder.config(first)))
        if saved is None:
            yield from autoencoder.train(first, pixels[:own], data, changes=changes)
            vae.load_state_dict((state.load(out / "autoencoder.pt") or {})["model"])
            latents = encode_images(vae.to(place.device), pixels[:own], place)
            normalise_latents(vae.cpu(), *latents)
        else:
            vae.load_state_dict(saved["vae"])
    vae.eval().requires_grad_(False)
    if saved is None:
        mean, deviation = encode_images(vae.to(place.device), pixels, place)
        vae.cpu()
        own_vae = {} if painter is not None else {"vae": vae.state_dict()}
        state.save(out / "latents.pt", {**own_vae, "mean": mean, "deviation": deviation, "recipe": identity})
    return vae


@torch.no_grad()
def encode_images(vae: nn.Module, pictures: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the latents of uint8 pictures (N, 3, H, W), as a UNet knows them: two tensors
    (N, C, h, w) on the CPU."""
    coder: Any = vae
    chunk = max(1, CHUNK // (pictures.shape[-1] * pictures.shape[-2]))
    parts = [coder.encode(to_signal(part.to(place.device))) for part in pictures.split(chunk)]
    mean, logvar = (torch.cat([part[i].float().cpu() for part in parts]) for i in range(2))
    shift, scale = autoencoder.scaling(coder)
    return (mean - shift) * scale, torch.exp(0.5 * logvar.clamp(-30, 20)) * scale


def _new(recipe: ImageRecipe, captions: list[Caption], mean: Tensor, place: Place) -> Painter:
    """A new model with a tokenizer of its own, which is kept in `out`/tokenizer."""
    second = recipe.diffusion
    folder = Path(second.out) / "tokenizer"
    if not (folder / "vocab.json").exists():
        with replace_folder(folder) as partial:
            write_clip_tokenizer(partial, _tokenizer_texts(captions), second.vocabulary, second.max_length)
    tokenizer = load_tokenizer(folder)
    parts = diffusion.configs(second, mean.shape[-1], mean.shape[1])
    parts["text_encoder"] = with_tokens(parts["text_encoder"], tokenizer)
    return new_painter(tokenizer, parts, recipe.autoencoder.size, second.seed, place)


def save_new(recipe: ImageRecipe, model: nn.Module, vae: nn.Module, mean: Tensor, folder: Path) -> None:
    """Write a checkpoint from a trained model and an autoencoder with normalised latents, in half precision."""
    source = Path(recipe.diffusion.out) / "tokenizer"
    parts = diffusion.configs(recipe.diffusion, mean.shape[-1], mean.shape[1])
    text = with_tokens(parts["text_encoder"], load_tokenizer(source))
    save_part(model.get_submodule("text_encoder"), text, folder / "text_encoder", "model")
    save_part(model.get_submodule("unet"), parts["unet"], folder / "unet", "diffusion_pytorch_model")
    save_part(vae, autoencoder.config(recipe.autoencoder), folder / "vae", "diffusion_pytorch_model")
    shutil.copytree(source, folder / "tokenizer")
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", parts["scheduler"])
    write_json(folder / "model_index.json", MODEL_INDEX)
    write_json(folder / "generation_config.json", DEFAULTS)


def _tokenizer_texts(captions: list[Caption]) -> list[str]:
    """Labels five times as often as tags, and the little words that people write around them."""
    labels = [caption.label for caption in captions for _ in range(5)]
    return [*labels, *(tag for caption in captions for tag in caption.tags), *["a an the of with"] * 200]

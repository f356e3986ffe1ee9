"""The recipe behind `weights/emoji`, end to end: captioned pictures → autoencoder → latents → text-conditioned UNet.

The finished folder is a Stable Diffusion pipeline, small everywhere; every part opens in diffusers or transformers.
If a run continues from a checkpoint, the result is that checkpoint's folder with another UNet and text encoder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from gencli.atomic import replace_folder
from gencli.checkpoints.save import save_part, write_json
from gencli.errors import GencliError
from gencli.image import words
from gencli.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from gencli.models.module import channels_last
from gencli.tokens import load_tokenizer
from gencli.train import diffusion, state
from gencli.train.autoencoder import (
    LATENTS,
    autoencoder_identity,
    making,
    normalise_latents,
    scaling,
    train_autoencoder,
    train_decoder,
)
from gencli.train.autoencoder import config as autoencoder_config
from gencli.train.clip_tokenizer import write_clip_tokenizer
from gencli.train.collection import ImageCollection, collect_images
from gencli.train.coupling import couple
from gencli.train.diffusion import LatentDataset
from gencli.train.phrases import ADJECTIVES, AROUND, TEMPLATES, plural, singular
from gencli.train.pictures import Caption, to_signal
from gencli.train.precision import Precision, pick_precision
from gencli.train.recipe import ImageRecipe
from gencli.train.text_to_image import (
    TextToImageModel,
    TextToLatent,
    load_part,
    new_model,
    open_model,
    save_model,
    with_tokens,
    with_whole_words,
)
from gencli.train.trainer import Progress
from gencli.train.words import train_words

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

# the checkpoint's default parameters, named as in diffusers
DEFAULTS = {"num_inference_steps": 20, "guidance_scale": 3.0}
CHUNK = 32 * 128 * 128  # pixels that are encoded at once on a CPU; on a GPU times 32


def train(
    pictures: Path, captions: Sequence[Path], recipe: ImageRecipe, note: Callable[[str], None] = lambda text: None
) -> Generator[Progress, None, None]:
    """Run all stages, each resumed from `out` if it was begun; the checkpoint then lies in `out`/checkpoint.

    pictures: a zip or folder. captions: see `captions.find_captions`. note: gets what is worth knowing, in words.
    """
    out = Path(recipe.out)
    with state.only_run(out):
        yield from _train(pictures, captions, recipe, out, note)


def _train(
    pictures: Path, captions: Sequence[Path], recipe: ImageRecipe, out: Path, note: Callable[[str], None]
) -> Generator[Progress, None, None]:
    precision = pick_precision(recipe.device, recipe.dtype)
    pipeline = None
    if recipe.init:
        pipeline = open_model(recipe.init, precision, recipe.size, keep_text_encoder=recipe.keep_text_encoder)
    size = pipeline.size if pipeline else recipe.size or 128
    collection = collect_images(pictures, captions, size, recipe, note)
    images, seen = collection.images, collection.images[: collection.originals]
    labels = [caption.label for caption in collection.captions]
    scored = images[len(images) - collection.validation :]
    data = state.digest([*(part.numpy().tobytes() for part in (seen, scored)), *(label.encode() for label in labels)])
    new = None if pipeline else _new_pipeline(recipe, collection.captions[: collection.originals], size, precision)
    before = pipeline
    if pipeline is not None and recipe.whole_words:  # before the latents are made, which takes long
        named = _whole_words(collection.captions[: collection.originals])
        pipeline = with_whole_words(pipeline, named, out / "tokenizer")
    vae = yield from _make_latents(recipe, pipeline, collection, data, precision)
    saved = state.load(out / "latents.pt") or {}
    if len(saved["mean"]) != len(labels):  # a file from before it recorded its recipe
        raise GencliError(f"{out / 'latents.pt'} is of other images", "choose another -o to start again")
    mean, std = saved["mean"], saved["deviation"]
    coupling = couple(mean, collection.factors) if recipe.variants else None
    dataset = LatentDataset(collection.captions, mean, std, collection.originals, collection.groups, coupling)
    pipeline = pipeline or new
    assert pipeline is not None
    if recipe.words_steps:
        yield from train_words(recipe, dataset, pipeline, before or pipeline, precision, data)
    network = yield from diffusion.train(recipe, dataset, pipeline, precision, data)
    if recipe.decoder_steps:
        yield from train_decoder(recipe, vae, collection.trained, mean, std, data, precision)
    with replace_folder(out / "checkpoint") as folder:
        _write_words(folder, collection.captions[: collection.originals], pipeline)
        if pipeline.checkpoint is not None:
            save_model(network, pipeline.checkpoint, folder, vae if recipe.decoder_steps else None)
        else:
            save_new(recipe, network, vae, mean, folder)


def _make_latents(
    recipe: ImageRecipe, pipeline: TextToImageModel | None, collection: ImageCollection, data: str, precision: Precision
) -> Generator[Progress, None, AutoencoderKL]:
    """Train the autoencoder, or take that of the checkpoint, and write `out`/latents.pt, unless it is there.

    Return the autoencoder on the CPU. If it was trained, every channel of its latents has mean 0 and std 1.
    """
    out = Path(recipe.out)
    identity: dict[str, object] = {**making(recipe), "data": data, state.SIZES: {"init": recipe.init}}
    if pipeline is None:
        identity = autoencoder_identity(recipe, data, precision)
    seen = collection.images[: collection.originals]
    saved = state.load(out / "latents.pt")
    if saved is not None:
        state.check_recipe(out, saved.get("recipe"), identity, changes=recipe.allow_changes)
    if pipeline is not None and pipeline.checkpoint is not None:
        vae = cast(AutoencoderKL, load_part(pipeline.checkpoint, "vae"))
    else:
        vae = AutoencoderKL(AutoencoderKLConfig.from_dict(autoencoder_config(recipe)))
        if saved is None:
            yield from train_autoencoder(recipe, collection.trained, data, precision)
            vae.load_state_dict((state.load(out / "autoencoder.pt") or {})["model"])
            latents = encode_images(vae.to(precision.device), seen, precision)
            normalise_latents(vae.cpu(), *latents)
        else:
            vae.load_state_dict(saved["vae"])
    vae.eval().requires_grad_(False)
    if saved is None:
        mean, std = encode_images(channels_last(vae).to(precision.device), collection.images, precision)
        vae.cpu()
        own = {} if pipeline is not None else {"vae": vae.state_dict()}
        state.save(out / "latents.pt", {**own, "mean": mean, "deviation": std, "recipe": identity})
    return vae


@torch.no_grad()
def encode_images(vae: AutoencoderKL, pictures: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Return means and standard deviations of the latents of uint8 images (N, 3, H, W), as a UNet knows them.

    Both are (N, C, h, w), on the CPU.
    """
    most = CHUNK * (1 if precision.device.type == "cpu" else 32)
    chunk = max(1, most // (pictures.shape[-1] * pictures.shape[-2]))
    with precision.autocast():
        parts = [vae.moments(to_signal(part.to(precision.device))) for part in pictures.split(chunk)]
    mean, logvar = (torch.cat([part[i].float().cpu() for part in parts]) for i in range(2))
    shift, scale = scaling(vae)
    return (mean - shift) * scale, torch.exp(0.5 * logvar.clamp(-30, 20)) * scale


def _new_pipeline(recipe: ImageRecipe, captions: list[Caption], size: int, precision: Precision) -> TextToImageModel:
    """Return a new model with its own tokenizer, which is kept in `out`/tokenizer. It is made before the autoencoder is
    trained, so that what no model can have is refused at once.
    """
    folder = Path(recipe.out) / "tokenizer"
    if not (folder / "vocab.json").exists():
        with replace_folder(folder) as partial:
            write_clip_tokenizer(partial, _tokenizer_texts(captions), recipe.vocabulary, recipe.max_length)
    tokenizer = load_tokenizer(folder)
    parts = diffusion.configs(recipe, size // 2 ** (len(recipe.autoencoder_widths) - 1), LATENTS)
    parts["text_encoder"] = with_tokens(parts["text_encoder"], tokenizer)
    return new_model(tokenizer, parts, size, recipe.seed, precision)


def save_new(recipe: ImageRecipe, network: TextToLatent, vae: nn.Module, mean: Tensor, folder: Path) -> None:
    """Write a checkpoint from a trained network and an autoencoder with normalised latents, in half precision."""
    source = Path(recipe.out) / "tokenizer"
    parts = diffusion.configs(recipe, mean.shape[-1], mean.shape[1])
    text = with_tokens(parts["text_encoder"], load_tokenizer(source))
    save_part(network.text_encoder, text, folder / "text_encoder", "model")
    save_part(network.unet, parts["unet"], folder / "unet", "diffusion_pytorch_model")
    save_part(vae, autoencoder_config(recipe), folder / "vae", "diffusion_pytorch_model")
    shutil.copytree(source, folder / "tokenizer")
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", parts["scheduler"])
    write_json(folder / "model_index.json", MODEL_INDEX)
    write_json(folder / "generation_config.json", DEFAULTS)


def _write_words(folder: Path, captions: list[Caption], pipeline: TextToImageModel) -> None:
    """Write the words of the captions, with singulars of things, and those that the initial checkpoint says it had
    learned."""
    known = words.learned_words(pipeline.checkpoint.folder) if pipeline.checkpoint else frozenset[str]()
    if pipeline.checkpoint is not None and not known:
        return  # it may know any word
    taught = words.words_of([*_texts(captions), *map(singular, _things(captions)), *known])
    (folder / words.FILE).write_text("\n".join([*taught, ""]), encoding="utf-8")


def _whole_words(captions: Sequence[Caption]) -> dict[str, str]:
    """Return the words of the captions and of what is said around them, and the plurals and singulars of things: word →
    the word that it begins as."""
    things = _things(captions)
    others = {number(one): one for number in (plural, singular) for one in things}
    return others | {word: word for word in words.words_of([*_texts(captions), *TEMPLATES, *ADJECTIVES, *AROUND])}


def _things(captions: Iterable[Caption]) -> list[str]:
    """Return the last words of labels and names."""
    lasts = [name.split()[-1:] for caption in captions for name in (caption.label, *caption.names)]
    return words.words_of(thing for last in lasts for thing in last)


def _texts(captions: Iterable[Caption]) -> list[str]:
    return [text for caption in captions for text in (caption.label, *caption.tags, *caption.names)]


def _tokenizer_texts(captions: list[Caption]) -> list[str]:
    """Return labels five times as often as tags and other names, and the small words that people write around them."""
    labels = [caption.label for caption in captions for _ in range(5)]
    words = [word for caption in captions for word in (*caption.tags, *caption.names)]
    return [*labels, *words, *["a an the of with"] * 200]

"""The text-to-image models that the image recipe trains: a new one, or that of a checkpoint; and saving.

Either is a Stable Diffusion pipeline: a CLIP text encoder and a UNet are trained together, on latents of a frozen
autoencoder.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from gencli.atomic import replace_folder
from gencli.checkpoints import build, layout
from gencli.checkpoints.checkpoint import Part
from gencli.checkpoints.find import find
from gencli.checkpoints.open import replace_part
from gencli.checkpoints.save import save_like, write_json
from gencli.errors import GencliError
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.diffusion.schedule import NoiseSchedule
from gencli.image.open import open_image_checkpoint
from gencli.image.prompts.base import pad_prompt
from gencli.json_files import read_json
from gencli.models import architecture, architecture_name, clip_text, unet_2d_condition
from gencli.models.module import channels_last
from gencli.tokens import Tokenizer, load_tokenizer
from gencli.train.clip_tokenizer import add_words
from gencli.train.precision import Precision, make_trainable

FILES = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


class TextToLatent(nn.Module):
    """The parts that are trained together: ids (B, L), noisy latents (B, 4, h, w), timesteps (B,) → (B, 4, h, w)."""

    def __init__(self, text_encoder: nn.Module, unet: nn.Module):
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = channels_last(unet)

    def forward(self, ids: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, self.text_encoder(ids).last_hidden_state)


@dataclass(frozen=True)
class TextToImageModel:
    """A text-to-image model in training. size: pixels a side. checkpoint: what it was opened from, if anything."""

    network: TextToLatent
    tokenizer: Tokenizer
    schedule: NoiseSchedule
    size: int
    checkpoint: ImageCheckpoint | None = None
    encoded: dict[str, list[int]] = field(default_factory=dict, repr=False)  # captions come again and again

    def encode_prompt(self, text: str) -> list[int]:
        """Return a caption's ids between begin and end, padded. A long caption is cut, as only captions may be."""
        if text not in self.encoded:
            config = cast(clip_text.CLIPTextModel, self.network.text_encoder).config
            ids = pad_prompt(self.tokenizer, text, config.max_position_embeddings, config.vocab_size, "right")
            self.encoded[text] = ids
        return self.encoded[text]

    def target(self, x0: Tensor, eps: Tensor, alphas_cumprod: Tensor) -> Tensor:
        """Return what the UNet must predict for x0 and noise, (B, C, h, w); alphas_cumprod is (B, 1, 1, 1)."""
        prediction = self.schedule.prediction_type
        if prediction == "v_prediction":  # Salimans & Ho 2022
            return alphas_cumprod.sqrt() * eps - (1 - alphas_cumprod).sqrt() * x0
        return eps if prediction == "epsilon" else x0

    def min_snr_weights(self, alphas_cumprod: Tensor, gamma: float) -> Tensor:
        """Return the losses' weights (B,), so that x0's error counts min(SNR, γ) times (Hang et al. 2023, eq. 8)."""
        snr = alphas_cumprod / (1 - alphas_cumprod)
        clipped = snr.clamp(max=gamma)
        prediction = self.schedule.prediction_type
        if prediction == "v_prediction":
            return clipped / (snr + 1)
        return clipped / snr if prediction == "epsilon" else clipped


def new_model(
    tokenizer: Tokenizer, parts: Mapping[str, Mapping[str, object]], size: int, seed: int, precision: Precision
) -> TextToImageModel:
    """Return a model with torch's initial weights, but small embeddings and a zero last convolution: it predicts 0.

    parts: configs of text_encoder (see `with_tokens`), unet and scheduler.
    """
    torch.manual_seed(seed)
    encoder = clip_text.Model(clip_text.Config.from_dict(parts["text_encoder"]))
    unet = unet_2d_condition.Model(unet_2d_condition.Config.from_dict(parts["unet"]))
    network = TextToLatent(encoder, unet)
    generator = torch.Generator().manual_seed(seed)
    for name, param in encoder.named_parameters():
        if "embedding" in name and param.ndim == 2:
            nn.init.normal_(param, std=0.02, generator=generator)
    nn.init.zeros_(unet.conv_out.weight)
    if unet.conv_out.bias is not None:
        nn.init.zeros_(unet.conv_out.bias)
    return TextToImageModel(
        network.to(precision.device), tokenizer, NoiseSchedule.from_config(parts["scheduler"]), size
    )


def with_tokens(config: Mapping[str, object], tokenizer: Tokenizer) -> dict[str, object]:
    """Return a text encoder's config with the vocabulary and special ids of a tokenizer."""
    begin, end = tokenizer.bos_id, tokenizer.eos_ids[0]
    ids = {"vocab_size": tokenizer.vocab_size, "bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
    return {**config, **ids}


def open_model(
    name: str, precision: Precision, size: int | None, *, keep_text_encoder: bool = False
) -> TextToImageModel:
    """Open the checkpoint called `name` to train its UNet and, unless `keep_text_encoder`, its text encoder.

    size: pixels a side, by default what the checkpoint was trained with. Raises GencliError for a checkpoint that is no
    folder in Stable Diffusion's layout, for one whose UNet reads more than text and latents, and for a wrong size.
    """
    checkpoint = open_image_checkpoint(find(name))
    if checkpoint.main.conditioner != "stable_diffusion:load" or checkpoint.in_one_file:
        raise GencliError(f"--init {name}: only a folder in Stable Diffusion's layout can be trained on from")
    unet, vae = checkpoint.configs["unet"], checkpoint.configs["vae"]
    if unet.get("in_channels", 4) != vae.get("latent_channels", 4) or unet.get("time_cond_proj_dim"):
        raise GencliError(f"--init {name}: its UNet reads more than a text and latents")
    size = size or (checkpoint.size or (64 * checkpoint.factor,))[0]
    if size % checkpoint.multiple:
        raise GencliError(f"--size {size}: {name} draws sizes that are multiples of {checkpoint.multiple}")
    network = TextToLatent(load_part(checkpoint, "text_encoder"), load_part(checkpoint, "unet"))
    make_trainable(network)
    network.text_encoder.requires_grad_(not keep_text_encoder)
    schedule = NoiseSchedule.from_config(checkpoint.configs["scheduler"])
    return TextToImageModel(network.to(precision.device).train(), checkpoint.tokenizer(), schedule, size, checkpoint)


def with_whole_words(model: TextToImageModel, words: Mapping[str, str], folder: Path) -> TextToImageModel:
    """Return a model of the same UNet that reads each of `words` as one token, by a text encoder of its own.

    model: of a checkpoint. words: see `clip_tokenizer.add_words`. folder: gets the tokenizer. A new token's embedding
    is the mean of those of its parts, or of the word that it begins as.
    """
    checkpoint = model.checkpoint
    assert checkpoint is not None
    with replace_folder(folder) as partial:
        parts = add_words(checkpoint.parts["tokenizer"], partial, words)
    tokenizer = load_tokenizer(folder)
    encoder = cast(clip_text.CLIPTextModel, copy.deepcopy(model.network.text_encoder))
    old = encoder.embeddings.token_embedding.weight
    rows = torch.stack([old.detach()[list(ids)].mean(0) for ids in parts])
    encoder.embeddings.token_embedding = nn.Embedding.from_pretrained(rows, freeze=False)
    config = with_tokens(checkpoint.configs["text_encoder"], tokenizer)
    encoder.config = clip_text.Config.from_dict(config)
    part = Part("tokenizer", "tokenizer", folder)
    other = dataclasses.replace(
        checkpoint,
        opened=replace_part(checkpoint.opened, "tokenizer", part),
        configs={**checkpoint.configs, "text_encoder": config},
    )
    network = TextToLatent(encoder, model.network.unet)
    return TextToImageModel(network, tokenizer, model.schedule, model.size, other)


def load_part(checkpoint: ImageCheckpoint, part: str) -> nn.Module:
    """Return a part's module in float32, on the CPU."""
    config, tensors = checkpoint.open(part)
    return build.load(checkpoint.parts[part], dtype=torch.float32, config=config, tensors=tensors)


def save_model(network: TextToLatent, checkpoint: ImageCheckpoint, folder: Path, vae: nn.Module | None = None) -> None:
    """Write a checkpoint like the one that was opened: trained parts under its names, the others copied.

    network: the trained one, or its average. vae: the autoencoder, if it was trained too.
    """
    trained = {"text_encoder": network.text_encoder, "unet": network.unet, **({} if vae is None else {"vae": vae})}
    for part, path in checkpoint.parts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        if part in trained:
            config, tensors = checkpoint.open(part)
            rows = architecture(architecture_name(config, path / "config.json")).LAYOUT
            save_like(trained[part], rows, tensors, folder / part / FILES[part])
            write_json(folder / part / "config.json", config)
        else:
            copy_part(path, folder / part, models=part in checkpoint.configs and part != "scheduler")
    index = read_json(checkpoint.folder / "model_index.json")
    kept = {
        name: [None, None] if isinstance(value, list) and name not in checkpoint.parts else value
        for name, value in index.items()
    }
    write_json(folder / "model_index.json", {**kept, "requires_safety_checker": False})
    if (checkpoint.folder / "generation_config.json").is_file():
        shutil.copyfile(checkpoint.folder / "generation_config.json", folder / "generation_config.json")


def copy_part(source: Path, folder: Path, *, models: bool) -> None:
    """Copy a part that was not trained: its small files, and the weights that are opened, in one variant."""
    names = [file.name for file in source.iterdir() if file.is_file()]
    weights = layout.weights(names, lambda name: read_json(source / name)) if models else []
    for name in [*(name for name in names if name.endswith((".json", ".txt", ".model"))), *weights]:
        shutil.copyfile(source / name, folder / name)

"""How far latent diffusion and DDPM are from the reference, measured for the README's table: `measure(folder)`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from gencli.checkpoints.find import Source
from gencli.image.files.pictures import to_picture
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.pipeline import Pipeline
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles import ermongroup
from tests.tiny.ldm import make_ddpm_256, make_ldm, make_ldm_text

PROMPT, STEPS = "a painting of a squirrel eating a burger", 4


@dataclass(frozen=True)
class Measured:
    """Largest differences of a family from its reference: of any component's output, and of a picture (of 255)."""

    family: str
    examples: str
    component: float
    picture: int


def open_pipeline(path: Path) -> Pipeline:
    return load(open_image_checkpoint(Source(path.name, path, "file" if path.is_file() else "folder")), device="cpu")


def draw(pipeline: Pipeline, **values: Any) -> Image.Image:
    request = resolve(ImageRequest(**{"seed": 3, "steps": STEPS, **values}), pipeline.checkpoint)
    return next(event.image for event in generate(pipeline, request) if isinstance(event, Picture))


def measure(root: Path) -> Iterator[Measured]:
    """Every family, its checkpoint made in a folder of its own under `root`."""
    yield _latent_diffusion(root / "vq")
    yield _latent_diffusion_of_a_text(root / "text")
    yield _ddpm(root / "ddpm")
    yield _original(root / "original.safetensors")


def _latent_diffusion(folder: Path) -> Measured:
    theirs, ours = make_ldm(folder), open_pipeline(folder)
    x, t = _noise(2, 3, 16, 16), torch.tensor([981.0, 20.0])
    pairs: list[tuple[Callable[[], Tensor], Callable[[], Tensor]]] = [
        (lambda: ours.main.network(x, t), lambda: theirs.unet(x, t).sample),
        (lambda: ours.vae.encode(_noise(1, 3, 64, 64)), lambda: theirs.vqvae.encode(_noise(1, 3, 64, 64)).latents),
        (lambda: ours.vae.decode(x), lambda: theirs.vqvae.decode(x).sample),
    ]
    torch.manual_seed(3)
    picture = theirs(num_inference_steps=STEPS, eta=0.5).images[0]
    apart = _apart(draw(ours, eta=0.5), picture)
    return Measured("latent diffusion, VQ", "`CompVis/ldm-celebahq-256`", _largest(pairs), apart)


def _latent_diffusion_of_a_text(folder: Path) -> Measured:
    theirs, ours = make_ldm_text(folder), open_pipeline(folder)
    x, t, texts = _noise(2, 4, 16, 16), torch.tensor([981.0, 20.0]), [PROMPT, ""]
    ids = theirs.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    context = theirs.bert(ids)[0]
    pairs: list[tuple[Callable[[], Tensor], Callable[[], Tensor]]] = [
        (lambda: ours.main.conditioner.encode(texts, ImageRequest())["encoder_hidden_states"], lambda: context),
        (lambda: ours.main.network(x, t, context), lambda: theirs.unet(x, t, context).sample),
        (lambda: ours.vae.decode(x), lambda: theirs.vqvae.decode(x).sample),
    ]
    torch.manual_seed(3)
    picture = theirs(PROMPT, num_inference_steps=STEPS, guidance_scale=5.0).images[0]
    apart = _apart(draw(ours, prompt=PROMPT, guidance=5.0), picture)
    return Measured("latent diffusion, text", "`CompVis/ldm-text2im-large-256`", _largest(pairs), apart)


def _ddpm(folder: Path) -> Measured:
    theirs, ours = make_ddpm_256(folder), open_pipeline(folder)
    x, t = _noise(2, 3, 64, 64), torch.tensor([981.0, 20.0])
    largest = _largest([(lambda: ours.main.network(x, t), lambda: theirs.unet(x, t).sample)])
    picture = theirs(num_inference_steps=STEPS, generator=torch.Generator().manual_seed(3)).images[0]
    return Measured("DDPM", "`google/ddpm-*`", largest, _apart(draw(ours, sampler="ddpm"), picture))


def _original(file: Path) -> Measured:
    weights = ermongroup.weights(mult=(1, 1, 2), attends=(1,))
    save_file(weights, file)
    ours, theirs = open_pipeline(file), functools.partial(ermongroup.unet, weights)
    x, t = _noise(2, 3, 32, 32), torch.tensor([981.0, 20.0])
    largest = _largest([(lambda: ours.main.network(x, t), lambda: theirs(x, t))])
    timesteps = [*range(0, 1000, 1000 // STEPS)][:STEPS][::-1]
    picture = to_picture(ermongroup.ddim_steps(theirs, _noise(1, 3, 32, 32), timesteps, clip=True)[0])
    return Measured("DDPM, original file", "ermongroup/ddim, Ho et al.", largest, _apart(draw(ours), picture))


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def _largest(pairs: list[tuple[Callable[[], Tensor], Callable[[], Tensor]]]) -> float:
    return max((ours() - theirs()).abs().max().item() for ours, theirs in pairs)


def _apart(ours: Image.Image, theirs: Image.Image) -> int:
    return int(np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max())

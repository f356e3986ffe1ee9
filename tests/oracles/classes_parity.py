"""How far pictures of classes are from their references, measured for the README's table: `measure(folder)`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gencli.checkpoints import build
from gencli.checkpoints.find import Source
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint, with_classifier
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.opening import open_part
from tests.oracles.guided_sampling import alphas, lead, picture, sample, sample_ddim
from tests.oracles.ldm_parity import Measured
from tests.tiny.classes import FLAGS, dit_network, make_classifier, make_dit, make_dit_file, make_guided
from tests.tiny.image import make_vae

STEPS, GRID = 4, [750, 500, 250, 0]


def measure(root: Path) -> Iterator[Measured]:
    """Every family, its checkpoint made under `root`."""
    root.mkdir(parents=True, exist_ok=True)
    yield _dit(root / "dit")
    yield _dit_file(root / "dit.safetensors")
    yield _guided(root / "guided.safetensors")
    yield _led(root)


def _dit(folder: Path) -> Measured:
    theirs, checkpoint = make_dit(folder), _opened(folder)
    ours = build.load(folder / "transformer")
    x, t, y = _noise(3, 4, 8, 8), torch.tensor([0.0, 481.0, 999.0]), torch.tensor([207, 0, 1000])
    with torch.no_grad():
        component = _largest(ours(x, t, y), theirs.transformer(x, t.long(), class_labels=y).sample)
    generator = torch.Generator("cpu").manual_seed(3)
    drawn = theirs(class_labels=[207], generator=generator, num_inference_steps=STEPS).images[0]
    apart = _apart(_draw(checkpoint, prompt="golden retriever"), drawn)
    return Measured("DiT", "`facebook/DiT-XL-2-256`", component, apart)


def _dit_file(file: Path) -> Measured:
    """With an autoencoder beside it, against its own code's formulas and DDIM's."""
    state, folder = make_dit_file(file), file.with_suffix("")
    vae = make_vae(folder)
    config, tensors = open_part(file, "transformer")
    ours = build.load(file, config=config, tensors=tensors)
    x, t, y = _noise(3, 4, 8, 8), torch.tensor([0.0, 481.0, 999.0]), torch.tensor([207, 0, 1000])
    with torch.no_grad():
        component = _largest(ours(x, t, y), dit_network(state, x, t, y))
    checkpoint = open_image_checkpoint(Source(file.name, file, "file"), vae=Source("vae", folder, "folder"))
    apart = _apart(_draw(checkpoint, prompt="207"), _by_ddim(state, vae))
    return Measured("DiT, original file", "`DiT-XL-2-256x256.pt`", component, apart)


@torch.no_grad()
def _by_ddim(state: dict[str, Tensor], vae: Any) -> np.ndarray:
    """Class 207 at guidance 4 in all channels (Song et al. 2021, equation 12 at η = 0)."""
    abar, x = alphas("linear"), _noise(1, 4, 8, 8)
    for t, p in zip(GRID, [*GRID[1:], None], strict=True):
        a, b = abar[t], 1.0 if p is None else abar[p]
        output = dit_network(state, torch.cat([x, x]), torch.full((2,), float(t)), torch.tensor([207, 1000]))[:, :4]
        eps = output[1:] + 4 * (output[:1] - output[1:])
        x = math.sqrt(b) * (x - math.sqrt(1 - a) * eps) / math.sqrt(a) + math.sqrt(1 - b) * eps
    return picture(vae.decode(x / vae.config.scaling_factor).sample)


def _guided(file: Path) -> Measured:
    network, checkpoint = make_guided(file, FLAGS, classes=10), _opened(file)
    pipeline = load(checkpoint, device="cpu")
    x, t, y = _noise(2, 3, 16, 16), torch.tensor([3.0, 721.5]), torch.tensor([0, 4])
    with torch.no_grad():
        component = _largest(pipeline.main.network(x, t, class_labels=y), network.unet(x, t, y))
    apart = _apart(_draw(checkpoint, prompt="7", sampler="ddpm"), sample(network, GRID, "linear", 7))
    return Measured("guided-diffusion, learned variance", "`256x256_diffusion.pt`", component, apart)


def _led(root: Path) -> Measured:
    network = make_guided(root / "plain.safetensors", FLAGS)
    judge = make_classifier(root / "classifier.safetensors", FLAGS)
    source = Source("classifier", root / "classifier.safetensors", "file")
    checkpoint = with_classifier(_opened(root / "plain.safetensors"), source)
    pipeline: Any = load(checkpoint, device="cpu")
    x, t = _noise(2, 3, 16, 16), torch.tensor([3.0, 721.5])
    with torch.no_grad():
        component = _largest(pipeline.classifier(x, t), judge.classifier(x, t))
    guide = lead(judge, 7, 20.0)
    asked = {"prompt": "7", "classifier_scale": 20.0}
    apart = max(
        _apart(_draw(checkpoint, sampler=sampler, **asked), way(network, GRID, "linear", lead=guide))
        for sampler, way in (("ddpm", sample), ("ddim", sample_ddim))
    )
    return Measured("classifier guidance", "`256x256_classifier.pt`", component, apart)


def _opened(path: Path) -> ImageCheckpoint:
    return open_image_checkpoint(Source(path.name, path, "file" if path.is_file() else "folder"))


def _draw(checkpoint: ImageCheckpoint, **values: Any) -> Any:
    request = resolve(ImageRequest(**{"seed": 3, "steps": STEPS, **values}), checkpoint)
    made = generate(load(checkpoint, device="cpu"), request)
    return next(event.image for event in made if isinstance(event, Picture))


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def _largest(ours: Tensor, theirs: Tensor) -> float:
    return (ours - theirs).abs().max().item()


def _apart(ours: Any, theirs: Any) -> int:
    return int(np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max())

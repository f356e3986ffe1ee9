"""The picture recipe for seconds: loss falls, a broken run ends as an unbroken one, the result opens anywhere."""

from __future__ import annotations

import itertools
import json
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from gencli.errors import GencliError
from gencli.train import image
from gencli.train.autoencoder import AutoencoderRecipe
from gencli.train.diffusion import DiffusionRecipe
from gencli.train.optim import learning_rate_factor, orthogonalize
from gencli.train.pictures import read_captions, read_pictures


@pytest.fixture
def emoji(tmp_path: Path) -> tuple[Path, Path]:
    """A zip of six drawings, one of them transparent and of another size, and their captions."""
    captions = []
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for number, color in enumerate(("red", "green", "blue", "black", "gray", "orange")):
            size = 64 if number == 0 else 128
            picture = Image.new("RGBA", (size, size), (0, 0, 0, 0))
            ImageDraw.Draw(picture).ellipse((size // 8, size // 8, size - 9, size - 9), fill=color)
            picture.save(tmp_path / "one.png")
            archive.write(tmp_path / "one.png", f"{color}.png")
            captions.append({"file": f"{color}.png", "label": f"{color} circle", "tags": ["round", color]})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    return tmp_path / "pictures.zip", tmp_path / "captions.jsonl"


def run_image(emoji: tuple[Path, Path], out: Path, stop: int | None = None) -> list:
    first = AutoencoderRecipe(str(out), batch=2, steps=3, save_every=0.0)
    second = DiffusionRecipe(str(out), batch=4, steps=3, save_every=0.0)
    return list(itertools.islice(image.train(*emoji, first, second), stop))


def test_image_recipe_resumed_equals_unbroken_and_opens_in_diffusers(emoji: tuple[Path, Path], tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    whole = run_image(emoji, tmp_path / "whole")
    assert len(whole) == 6
    # killed twice, once in each stage; at the second stop two steps of the second stage were done
    pieces = [run_image(emoji, tmp_path / "broken", stop) for stop in (2, 3, None)]
    assert [len(piece) for piece in pieces] == [2, 3, 1]
    parts = [
        file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole" / "checkpoint").rglob("*.safetensors")
    ]
    assert len(parts) == 3
    for part in parts:
        ours, theirs = load_file(tmp_path / "whole" / part), load_file(tmp_path / "broken" / part)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "whole" / "checkpoint")
    assert pipeline.unet.config.sample_size == 16 and pipeline.tokenizer.model_max_length == 32


def test_latents_are_normalised_and_decode_alike(emoji: tuple[Path, Path], tmp_path: Path) -> None:
    run_image(emoji, tmp_path / "run")
    vae, (mean, _) = image.encoded(tmp_path / "run")
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(mean.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    raw = image._autoencoder(torch.load(tmp_path / "run" / "autoencoder.pt", weights_only=True)["model"])
    rows = read_captions(emoji[1])
    x = read_pictures(emoji[0], [name for name, _ in rows], 128).float() / 127.5 - 1
    with torch.no_grad():
        before, after = raw.decode(raw.encode(x)[0]), vae.decode(vae.encode(x)[0])
    torch.testing.assert_close(before, after, atol=1e-3, rtol=0)


def test_pictures_lie_on_white(emoji: tuple[Path, Path]) -> None:
    pixels = read_pictures(emoji[0], ["red.png", "blue.png"], 128)
    assert pixels.shape == (2, 3, 128, 128)
    assert pixels[:, :, 0, 0].tolist() == [[255, 255, 255], [255, 255, 255]]
    assert pixels[1, :, 64, 64].tolist() == [0, 0, 255]


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png", "label": "a"}\n{"label": "b"}\n')
    with pytest.raises(GencliError, match="line 2"):
        read_captions(tmp_path / "captions.jsonl")


def test_orthogonalize_brings_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((16, 40), (40, 16), (8, 8)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=generator)))
        assert values.min() > 0.3 and values.max() < 1.5, shape


def test_learning_rate_rises_stays_and_falls() -> None:
    factors = [learning_rate_factor(step, 100, 10, 0.4) for step in range(100)]
    assert factors[0] == 0.1 and set(factors[10:60]) == {1.0} and factors[-1] < 0.05
    assert factors[:11] == sorted(factors[:11]) and factors[60:] == sorted(factors[60:], reverse=True)

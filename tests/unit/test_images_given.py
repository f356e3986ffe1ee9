"""Images that are given: what transparency and depth mean in them, what a mask keeps, and which size they ask for."""

import io

import numpy as np
import pytest
from PIL import Image

from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.files import pictures
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.tiny.control import make_inpaint
from tests.tiny.image import make_ddpm, make_stable_diffusion

WIDTH, HEIGHT = 96, 64


def opened(folder):
    return load(open_image_checkpoint(Source(folder.name, folder, "folder")), device="cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One that denoises latents, one that reads the mask, one in pixels."""
    root = tmp_path_factory.mktemp("given")
    make_stable_diffusion(root / "latents")
    make_inpaint(root / "reads the mask")
    make_ddpm(root / "pixels")
    return {folder.name: opened(folder) for folder in root.iterdir()}


@pytest.fixture(scope="module")
def sd(models):
    return models["latents"]


def noise(size, seed=0, channels=3):
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(array)


def mask_of(*box, size=(WIDTH, HEIGHT)):
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def painted(pipeline, init, mask, **values):
    request = ImageRequest(**{"seed": 3, "steps": 2, "init": "i.png", "mask": "m.png", **values})
    request = resolve(request, pipeline.checkpoint, init.size)
    return next(e.image for e in generate(pipeline, request, init=init, mask=mask) if isinstance(e, Picture))


# Transparency and depth


def saved(picture, kind="PNG", **more):
    out = io.BytesIO()
    picture.save(out, kind, **more)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_white_on_a_transparent_layer(mode):
    """A mask or a hint painted on a transparent layer is white there alone, as diffusers' own conversions have it."""
    layer = np.zeros((16, 16, 4), np.uint8)
    layer[4:8, 4:8] = 255
    layer[8:, 8:] = (255, 255, 255, 0)  # white by its colours, and not to be seen
    picture = Image.fromarray(layer)
    data = saved(picture.convert(mode) if mode != "P" else picture.quantize(4))
    seen = np.asarray(pictures.open_flat(data, "black").convert("L"))
    assert (seen == 255).sum() == 16 and (seen == 0).sum() == 240
    assert np.asarray(pictures.open_flat(data)).min() == 255  # as before for pictures to begin from


DEPTHS = {
    "floats from 0 to 1": (np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16), None),
    "whole numbers of 8 bits": (np.arange(256, dtype=np.int32).reshape(16, 16), None),
    "whole numbers of 16 bits": ((np.arange(256) * 257).astype(np.int32).reshape(16, 16), None),
    "sixteen bits": ((np.arange(256) * 257).astype(np.uint16).reshape(16, 16), None),
    "metres": ((2 + np.arange(256) / 10).astype(np.float32).reshape(16, 16), "from 2 to 27.5"),
    "below zero": ((np.arange(256) - 100).astype(np.int32).reshape(16, 16), "from -100 to 155"),
    "a flat one": (np.full((16, 16), 5.0, np.float32), "from 5 to 5"),
}


@pytest.mark.parametrize("what", DEPTHS)
def test_deep_images(what):
    array, note = DEPTHS[what]
    notes = []
    seen = pictures.open_flat(saved(Image.fromarray(array), "TIFF"), "black", notes.append)
    expected = np.arange(256).reshape(16, 16) if what != "a flat one" else 0
    assert np.abs(np.asarray(seen.convert("L")).astype(int) - expected).max() <= 1
    assert [note in text for text in notes] == ([True] if note else [])


def test_values_that_are_not_numbers():
    with pytest.raises(GencliError, match="not numbers"):
        pictures.open_flat(saved(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"))


# What a mask keeps


@pytest.mark.slow
@pytest.mark.parametrize("model", ["latents", "reads the mask", "pixels"])
def test_what_is_black_is_kept_to_the_pixel(models, model):
    pipeline = models[model]
    size = pipeline.checkpoint.size if model == "pixels" else (WIDTH, HEIGHT)
    init = noise(size, channels=3)
    mask = mask_of(size[0] // 2, 0, *size, size=size)
    drawn = np.asarray(painted(pipeline, init, mask)).astype(int)
    kept = np.asarray(init.convert("L") if drawn.ndim == 2 else init).astype(int)
    half = size[0] // 2
    np.testing.assert_array_equal(drawn[:, :half], kept[:, :half])
    assert np.abs(drawn[:, half:] - kept[:, half:]).mean() > 10
    again = np.asarray(painted(pipeline, init, Image.new("L", size))).astype(int)
    np.testing.assert_array_equal(again, kept)


def test_the_edge_is_soft_and_four_pixels_wide():
    alpha = np.asarray(pictures.soft_mask(mask_of(40, 0, WIDTH, HEIGHT), WIDTH, HEIGHT, 4))
    assert alpha[30, 36:46].tolist() == [0, 0, 0, 0, 64, 128, 191, 255, 255, 255]
    hard = np.asarray(pictures.soft_mask(mask_of(40, 0, WIDTH, HEIGHT), WIDTH, HEIGHT, 0))
    assert hard[30, 38:42].tolist() == [0, 0, 255, 255]


@pytest.mark.slow
@pytest.mark.parametrize("left", range(56, 64))
def test_a_thin_mask_paints(sd, left):
    """Wherever a stripe lies, all latents that it touches are painted."""
    init, black = noise((WIDTH, HEIGHT)), Image.new("L", (WIDTH, HEIGHT))
    stripe = mask_of(left, 0, left + 3, HEIGHT)
    drawn = np.asarray(painted(sd, init, stripe)).astype(int)
    kept = np.asarray(init).astype(int)
    assert np.abs(drawn[:, left + 1] - kept[:, left + 1]).mean() > 5
    np.testing.assert_array_equal(drawn[:, :left], kept[:, :left])
    np.testing.assert_array_equal(drawn[:, left + 3 :], kept[:, left + 3 :])
    assert pictures.is_blank(black, WIDTH, HEIGHT) and not pictures.is_blank(stripe, WIDTH, HEIGHT)
    assert pictures.is_blank(mask_of(57, 1, 64, 8), WIDTH, HEIGHT, step=8)  # as diffusers looks at it


# The size that they ask for


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "given", "expected"),
    [
        ({}, (192, 96), (192, 96)),
        ({"width": 128}, (256, 64), (128, 32)),
        ({"height": 128}, (256, 64), (512, 128)),
        ({"height": 64}, (100, 90), (72, 64)),
        ({"width": 64, "height": 64}, (256, 64), (64, 64)),
        ({"width": 96}, None, (96, 128)),
        ({}, None, (128, 128)),
    ],
)
def test_the_size_of_a_given_image(sd, asked, given, expected):
    request = resolve(ImageRequest(**asked), sd.checkpoint, given)
    assert (request.width, request.height) == expected

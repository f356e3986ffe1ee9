"""/v1/images/edits and /v1/images/variations of a server, by OpenAI's own client: the command line's own pixels."""

import base64
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.oracles.libraries import openai
from tests.shell.process import gencli, listening, pixels, short_folder
from tests.tiny.flow import make_klein
from tests.tiny.systems import make_karlo

pytestmark = pytest.mark.slow
HOW = {"seed": 3, "steps": 2}


class Place:
    """Tiny models, pictures, and a client of a server of them."""

    def __init__(self, folder: Path, url: str):
        self.folder = folder
        self.client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)

    def edit(self, model, *images, mask=None, **more):
        extra = {**HOW, **more.pop("extra_body", {})}
        files = [self.folder / f"{name}.png" for name in images]
        more |= {} if mask is None else {"mask": self.folder / f"{mask}.png"}
        given = files if len(files) > 1 else files[0]
        made = self.client.images.edit(model=model, image=given, prompt="red apple", extra_body=extra, **more)
        return [Image.open(io.BytesIO(base64.b64decode(one.b64_json))) for one in made.data]

    def drawn(self, model, *args):
        """What the command line draws."""
        words = [self.folder / word if str(word).endswith(".png") else word for word in args]
        done = gencli("image", "red apple", "-m", model, "--steps", 2, "--seed", 3, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory(prefix="gencli-", dir=short_folder()) as name:
        folder = Path(name)
        make_klein(folder / "klein")
        make_karlo(folder / "karlo")
        halves = Image.new("RGB", (128, 128), "black")
        halves.paste("white", (0, 0, 64, 128))
        halves.save(folder / "white.png")
        clear = halves.convert("RGBA")
        clear.putalpha(halves.convert("L").point(lambda value: 255 - value))
        clear.save(folder / "clear.png")
        Image.linear_gradient("L").resize((128, 128)).convert("RGB").save(folder / "photo.png")
        models = ("emoji", "stories", folder / "klein", folder / "karlo" / "image")
        with listening(folder, *(word for model in models for word in ("-m", model))) as (_, _, url):
            yield Place(folder, url)


def test_an_edit_is_what_the_command_line_draws(place):
    first, second = place.edit("emoji", "photo", n=2, extra_body={"strength": 0.7})
    alone = place.drawn("emoji", "-i", "photo.png", "--strength", 0.7, "--count", 2, "--grid")
    assert (pixels(alone)[:, :128] == np.asarray(first.convert("RGB"))).all()
    assert json.loads(first.text["gencli"])["init"] == "photo.png" and second.size == (128, 128)
    assert (np.asarray(first) != np.asarray(second)).any()


@pytest.mark.parametrize("mask", ["white", "clear"])
def test_a_mask_keeps_the_rest(place, mask):
    [made] = place.edit("emoji", "photo", mask=mask)
    alone = place.drawn("emoji", "-i", "photo.png", "--mask", "white.png")
    assert (pixels(alone) == np.asarray(made.convert("RGB"))).all()
    photo = np.asarray(Image.open(place.folder / "photo.png"))
    assert (np.asarray(made.convert("RGB"))[:, 64:] == photo[:, 64:]).all()


def test_models_that_look_at_images_are_shown_all(place):
    [made] = place.edit("klein", "photo", "white")
    alone = place.drawn(place.folder / "klein", "--reference", "photo.png", "--reference", "white.png")
    assert (pixels(alone) == np.asarray(made.convert("RGB"))).all()
    [painted] = place.edit("klein", "photo", "white", mask="clear")  # the first one is changed, the other looked at
    words = ("-i", "photo.png", "--mask", "white.png", "--reference", "white.png")
    assert (pixels(place.drawn(place.folder / "klein", *words)) == np.asarray(painted.convert("RGB"))).all()


def test_variations(place):
    photo = place.folder / "photo.png"
    made = place.client.images.create_variation(model="image", image=photo, extra_body={"seed": 3, "steps": 2})
    image = Image.open(io.BytesIO(base64.b64decode(made.data[0].b64_json)))
    alone = gencli("image", "-m", place.folder / "karlo/image", "-i", photo, "--steps", 2, "--seed", 3)
    assert (pixels(alone.stdout) == np.asarray(image.convert("RGB"))).all()
    with pytest.raises(openai.BadRequestError, match="emoji makes no variations"):
        place.client.images.create_variation(model="emoji", image=photo)


@pytest.mark.parametrize(
    ("model", "images", "more", "param", "told"),
    [
        ("emoji", ["photo", "white"], {}, "image", "image: emoji begins from one image, and 2 are given"),
        ("image", ["photo"], {"mask": "white"}, "mask", "image varies the whole image: mask would have no effect"),
        ("stories", ["photo"], {}, "model", "stories is no model that draws"),
        ("emoji", ["photo"], {"size": "100x64"}, "size", "size 100: must be a multiple of 8"),
        (
            "emoji",
            ["photo"],
            {"extra_body": {"steps": 1, "strength": 0.5}},
            "strength",
            "strength 0.5 of 1 steps leaves no",
        ),
        ("klein", ["photo"] * 11, {}, "image", "klein looks at 10 images at most, and 11 are given"),
    ],
)
def test_what_a_model_cannot_do_is_told(place, model, images, more, param, told):
    with pytest.raises(openai.BadRequestError) as raised:
        place.edit(model, *images, **more)
    assert raised.value.body["param"] == param and raised.value.body["message"].startswith(told), raised.value.body

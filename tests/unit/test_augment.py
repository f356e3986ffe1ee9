"""Pictures made from pictures: their captions must stay true."""

import itertools
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from gencli.train.augment import COLORS, augment, pair, recolored, varied
from gencli.train.pictures import Caption

HUES = {"red": 0, "orange": 30, "yellow": 50, "green": 115, "blue": 212, "purple": 280, "pink": 338}


def disc(color: str, eye: str = "white") -> np.ndarray:
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((6, 6, 57, 57), fill=color)
    draw.ellipse((28, 28, 35, 35), fill=eye)
    return np.asarray(image)


def hue_at(picture: np.ndarray, x: int = 32, y: int = 12) -> tuple[float, float, float]:
    h, s, v = Image.fromarray(picture).convert("HSV").getpixel((x, y))
    return h / 255 * 360, s / 255, v / 255


def test_every_color_is_the_one_its_name_says() -> None:
    made = {c.label: p for c, p in recolored(Caption("ball", (), "objects"), disc("green"), random.Random(0), 99)}
    assert set(made) == {f"{name} ball" for name in COLORS} - {"green ball"}
    for name, hue in HUES.items():
        if name != "green":
            h, s, v = hue_at(made[f"{name} ball"])
            assert abs((h - hue + 180) % 360 - 180) < 12 and s > 0.3 and v > 0.4, name
    assert hue_at(made["black ball"])[2] < 0.3
    assert 0.3 < hue_at(made["gray ball"])[2] < 0.8 and hue_at(made["gray ball"])[1] < 0.1
    assert 0.2 < hue_at(made["brown ball"])[2] < 0.7
    for name, picture in made.items():
        assert tuple(picture[32, 32]) == (255, 255, 255), name  # what has no colour keeps it
        assert tuple(picture[0, 0]) == (255, 255, 255), name


def test_a_color_in_the_name_gives_way() -> None:
    caption = Caption("red apple", ("fruit", "red"), "food & drink")
    labels = [made for made, _ in recolored(caption, disc("red"), random.Random(0), 99)]
    assert "blue apple" in {made.label for made in labels}
    assert not any("red" in made.label.split() or "red" in made.tags for made in labels)


def test_other_names_take_the_color_too() -> None:
    caption = Caption("automobile", ("vehicle",), "travel & places", ("car", "red car"))
    made = {made.label: made for made, _ in recolored(caption, disc("red"), random.Random(0), 99)}
    assert made["blue automobile"] == Caption("blue automobile", (), "travel & places", ("blue car",))


def test_variants_differ_and_still_show_the_thing() -> None:
    first = disc("green")
    made = [varied(first, random.Random(seed)) for seed in range(20)]
    spread = [np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(made)]
    assert min(spread) > 2 and varied(first, random.Random(3)).tobytes() == made[3].tobytes()
    for picture in made:
        assert tuple(picture[0, 0]) == (255, 255, 255)  # the ground stays
        assert hue_at(picture)[0] == pytest.approx(120, abs=10)
        assert 0.8 < (picture.min(-1) < 128).mean() / (first.min(-1) < 128).mean() < 1.2


@pytest.mark.parametrize(
    ("caption", "picture"),
    [
        (Caption("man", (), "people & body"), disc("yellow")),
        (Caption("grinning face", (), "smileys & emotion"), disc("yellow")),
        (Caption("snow", (), "travel & places"), disc("white")),
        (Caption("flag", (), "objects"), np.concatenate([disc("red"), disc("blue"), disc("lime")])),
    ],
)
def test_what_has_no_color_of_its_own_is_left_alone(caption: Caption, picture: np.ndarray) -> None:
    assert list(recolored(caption, picture, random.Random(0), 99)) == []


def test_a_pair_shows_both_side_by_side() -> None:
    star, moon = Caption("bright sun", ("hot",), "a", ("sun", "daystar")), Caption("moon", (), "b")
    both, picture = pair((star, disc("yellow")), (moon, disc("blue")))
    names = ("a bright sun and a moon", "sun and moon", "a sun and a moon")
    assert both == Caption("bright sun and moon", (), "a", names)
    assert picture.shape == (64, 64, 3)
    assert hue_at(picture, 16, 22)[0] == pytest.approx(60, abs=6)
    assert hue_at(picture, 48, 22)[0] == pytest.approx(240, abs=6)
    assert tuple(picture[4, 16]) == (255, 255, 255)


def test_augment_is_the_same_every_time() -> None:
    known = [(Caption("ball", (), ""), disc("red")), (Caption("a very long name", (), ""), disc("blue"))]
    once, again = (augment(known, copies=2, pairs=5, seed=3) for _ in range(2))
    assert [c for c, _ in once] == [c for c, _ in again]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(once, again, strict=True))
    assert len(once) == 2 + 2 + 5
    assert not any("long" in caption.label for caption, _ in once[4:])
    assert augment(known, copies=0, pairs=0, seed=3) == []

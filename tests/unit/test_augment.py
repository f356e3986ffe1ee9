"""Pictures made from pictures: their captions must stay true."""

import colorsys
import itertools
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from gencli.train.augment import (
    COLORS,
    TINT,
    _to_hsv,
    _to_rgb,
    is_kept,
    may_be_mirrored,
    mirror,
    pair_up,
    recolor,
    recolored,
    tint,
    vary,
)
from gencli.train.pictures import Caption, to_tensor

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
    same = torch.cat([to_tensor(first)] * 20)
    made = vary(same, torch.Generator().manual_seed(0))
    assert torch.equal(made, vary(same, torch.Generator().manual_seed(0)))
    spread = (made[1:].float() - made[:-1].float()).abs().mean((1, 2, 3))
    assert spread.min() > 1.5 and spread.mean() > 4
    for picture in made.permute(0, 2, 3, 1).numpy():
        assert tuple(picture[0, 0]) == (255, 255, 255)  # the ground stays
        assert hue_at(picture)[0] == pytest.approx(120, abs=12)
        assert 0.8 < (picture.min(-1) < 128).mean() / (first.min(-1) < 128).mean() < 1.25


def test_half_are_mirrored_where_no_word_names_a_side() -> None:
    fish, arrow = Caption("fish", ("sea",), "animals & nature", ("goldfish",)), Caption("back arrow", (), "other")
    assert may_be_mirrored(fish) and may_be_mirrored(Caption("dog", ("dog2",), ""))  # a tag may count
    sided = [Caption("fist", ("right",), ""), Caption("pen", (), "", ("writing",)), Caption("cross", (), "symbols")]
    for label in ("left-facing fist", "one o\u2019clock", "7 ball", "1st place medal", "Stop sign"):
        sided.append(Caption(label, (), ""))
    assert not any(map(may_be_mirrored, sided))
    images = torch.randint(256, (120, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = mirror(images, [fish, arrow] * 60, torch.Generator().manual_seed(0))
    turned = [torch.equal(one, image.flip(2)) for one, image in zip(made, images, strict=True)]
    same = [torch.equal(one, image) for one, image in zip(made, images, strict=True)]
    assert all(one != other for one, other in zip(turned, same, strict=True)) and all(same[1::2])
    assert 20 <= sum(turned) <= 40


def test_about_half_lie_on_pale_paper_and_what_is_drawn_stays() -> None:
    first = disc("green")
    same = torch.cat([to_tensor(first)] * 60)
    made = tint(same, torch.Generator().manual_seed(0))
    assert made.dtype == torch.uint8 and torch.equal(made, tint(same, torch.Generator().manual_seed(0)))
    pictures = made.permute(0, 2, 3, 1).numpy()
    paper = [picture[0, 0] for picture in pictures]
    white = sum(tuple(color) == (255, 255, 255) for color in paper)
    assert 20 <= white <= 45 and min(color.min() for color in paper) >= round(255 * (1 - TINT))
    assert all(color.max() == 255 for color in paper)  # pale, never gray
    for picture, color in zip(pictures, paper, strict=True):
        assert (picture[first.min(-1) == 255] == color).all()  # one colour everywhere, the eye's white too
        assert hue_at(picture)[0] == pytest.approx(120, abs=12)


@pytest.mark.slow
def test_hue_and_back() -> None:
    """As the standard library's colorsys has it, and back to the same."""
    colors = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hsv = _to_hsv(colors)
    for row, column in itertools.product(range(0, 16, 5), repeat=2):
        expected = colorsys.rgb_to_hsv(*colors[0, :, row, column].tolist())
        assert [float(part[0, row, column]) for part in hsv] == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(_to_rgb(*hsv), colors, atol=1e-5, rtol=0)


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


def test_a_pair_shows_both() -> None:
    """Side by side or one above the other, half as large, on white, and named so. Couples for scoring are not made."""
    captions = [Caption("sun", (), "a", ("daystar",)), Caption("moon", (), "b"), Caption("a very long name", (), "")]
    images = torch.cat([to_tensor(disc(color)) for color in ("yellow", "blue", "red")])
    made, sheets = pair_up(captions, images, 3, 400, seed=0)
    assert len(made) == 400 and sheets.shape == (400, 3, 64, 64)
    hues = {"sun": 60, "daystar": 60, "moon": 240}
    seen = set()
    for caption, sheet in zip(made, sheets.permute(0, 2, 3, 1).numpy(), strict=True):
        words = caption.label.replace(",", " ,").split()
        things = [word.removesuffix("s") if word == "suns" or word == "moons" else word for word in words]
        things = [word for word in things if word in hues]
        assert "long" not in caption.label
        joint = " ".join(word for word in words if word not in {*hues, "a", "an"})
        seen.add(joint)
        if joint.startswith("two"):
            things *= 2
        if joint in ("under", "below"):
            things.reverse()
        if joint in ("over", "above", "on top of", "under", "below"):
            points = [(32, 6), (32, 38)]
        else:
            points = [(16, 22), (48, 22)]
        if joint == "":  # "sun sun": a name on its own says nothing of where
            continue
        for thing, (x, y) in zip(things, points, strict=True):
            assert hue_at(sheet, x, y)[0] == pytest.approx(hues[thing], abs=8), caption
        assert tuple(sheet[1, 1]) == (255, 255, 255)
        if joint in ("and", "with", ",") and caption.names:
            assert not is_kept("sun", "moon") or things != ["sun", "moon"]
    assert {"and", "with", "next to", "over", "under", ","} <= seen


def test_augment_is_the_same_every_time() -> None:
    known = [(Caption("ball", (), ""), disc("red")), (Caption("a very long name", (), ""), disc("blue"))]
    once, again = (recolor(known, 2, seed=3) for _ in range(2))
    assert [caption for caption, _ in once] == [caption for caption, _ in again] and len(once) == 4
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(once, again, strict=True))
    captions, images = [caption for caption, _ in known], torch.cat([to_tensor(image) for _, image in known])
    (one, first), (other, second) = (pair_up(captions, images, 2, 5, seed=3) for _ in range(2))
    assert one == other and torch.equal(first, second) and len(one) == 5
    assert recolor(known, 0, seed=3) == [] and pair_up(captions, images, 2, 0, seed=3)[0] == []

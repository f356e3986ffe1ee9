"""Pictures made from pictures: their captions must stay true."""

import random

import numpy as np
import pytest
import torch

from gencli.train.augment import COLORS, is_kept, pair_up, recolor, recolored
from gencli.train.pictures import Caption, to_tensor
from tests.tiny.drawings import disc, hue_at

HUES = {"red": 0, "orange": 30, "yellow": 50, "green": 115, "blue": 212, "purple": 280, "pink": 338}


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
    made, sheets = pair_up(captions, images, torch.zeros(3), 3, torch.zeros(400, 10), seed=0)
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
    (once, of), (again, _) = (recolor(known, 2, seed=3) for _ in range(2))
    assert [caption for caption, _ in once] == [caption for caption, _ in again] and of == [0, 0, 1, 1]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(once, again, strict=True))
    captions, images = [caption for caption, _ in known], torch.cat([to_tensor(image) for _, image in known])
    as_they_are = torch.zeros(2)
    (one, first), (other, second) = (
        pair_up(captions, images, as_they_are, 2, torch.zeros(5, 10), seed=3) for _ in range(2)
    )
    assert one == other and torch.equal(first, second) and len(one) == 5
    assert recolor(known, 0, seed=3) == ([], [])
    assert pair_up(captions, images, as_they_are, 2, torch.zeros(0, 10), seed=3)[0] == []


def test_the_things_of_a_pair_are_mirrored_where_they_stand() -> None:
    left = disc("yellow").copy()
    left[:, :24] = 0  # dark on the left; a mirror brings that to the right
    captions, images = [Caption("sun", (), "a"), Caption("moon", (), "b")], torch.cat([to_tensor(left)] * 2)
    factors = torch.tensor([[0.0] * 9 + [-1.0], [0.0] * 9 + [1.0]]).repeat(20, 1)
    _, sheets = pair_up(captions, images, torch.tensor([1.0, 0.0]), 2, factors, seed=0)
    plain, _ = pair_up(captions, images, torch.zeros(2), 2, factors, seed=0)
    half = torch.nn.functional.interpolate(images[:1].float(), (32, 32), mode="area").round()
    turned = 0
    for caption, sheet, told in zip(plain, sheets.float(), factors[:, 9].tolist(), strict=True):
        if caption.label.split()[-1].startswith("moon") and "sun" in caption.label and sheet[:, :16].eq(255).all():
            left_half, right_half = sheet[:, 16:48, :32], sheet[:, 16:48, 32:]
            first = caption.label.replace("a ", "").startswith("sun")
            sun, moon = (left_half, right_half) if first else (right_half, left_half)
            assert torch.equal(sun, half[0].flip(2) if told < 0 else half[0]) and torch.equal(moon, half[0])
            turned += told < 0
    assert turned > 2

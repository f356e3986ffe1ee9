"""Varied copies of images: their factors say how they differ, and their captions stay true."""

import colorsys
import itertools

import pytest
import torch
from torch import Tensor

from gencli.train.pictures import Caption, to_tensor
from gencli.train.variants import (
    FACTORS,
    SIDE,
    TINT,
    as_they_are,
    may_be_mirrored,
    mirrored,
    sides,
    to_hsv,
    to_rgb,
    vary,
)
from tests.tiny.drawings import disc, hue_at

FISH, ARROW = Caption("fish", ("sea",), "animals & nature", ("goldfish",)), Caption("back arrow", (), "other")


def only(name: str, value: float, count: int = 1) -> Tensor:
    factors = torch.zeros(count, len(FACTORS))
    factors[:, FACTORS.index(name)] = value
    return factors


def test_variants_differ_and_still_show_the_thing() -> None:
    first = disc("green")
    same = torch.cat([to_tensor(first)] * 40)
    factors = torch.randn(40, len(FACTORS), generator=torch.Generator().manual_seed(0))
    made = vary(same, factors)
    assert made.dtype == torch.uint8 and torch.equal(made, vary(same, factors))
    spread = (made[1:].float() - made[:-1].float()).abs().mean((1, 2, 3))
    assert spread.min() > 1.5 and spread.mean() > 8
    for picture in made.permute(0, 2, 3, 1).numpy():
        assert picture[0, 0].min() >= 255 * (1 - TINT) - 1 and picture[0, 0].max() == 255  # pale paper, never gray
        assert hue_at(picture)[0] == pytest.approx(120, abs=14)
        assert 0.8 < (picture.min(-1) < 128).mean() / (first.min(-1) < 128).mean() < 1.25


def test_each_factor_changes_one_thing() -> None:
    image = to_tensor(disc("green"))
    assert (vary(image, torch.zeros(1, len(FACTORS))).int() - image.int()).abs().max() <= 1
    places = torch.linspace(-1, 1, 64)

    def center(images: Tensor) -> tuple[float, float, float]:
        ink = 255 - images[0].float().mean(0)
        return (ink.sum(0) @ places / ink.sum()).item(), (ink.sum(1) @ places / ink.sum()).item(), ink.sum().item()

    x, y, area = center(image)
    right, down = (center(vary(image, only(name, 1.0))) for name in ("x", "y"))
    larger, smaller = (center(vary(image, only("scale", value)))[2] for value in (1.0, -1.0))
    assert right[0] - x == pytest.approx(2 * 0.02 * 0.683, abs=0.004) and right[1] == pytest.approx(y, abs=1e-3)
    assert down[1] - y == pytest.approx(2 * 0.02 * 0.683, abs=0.004) and down[0] == pytest.approx(x, abs=1e-3)
    assert larger / area == pytest.approx((1 + 0.06 * 0.683) ** 2, abs=0.02) and smaller < area < larger
    green = {name: hue_at(vary(image, only(name, 1.5))[0].permute(1, 2, 0).numpy()) for name in FACTORS}
    h, _, v = hue_at(image[0].permute(1, 2, 0).numpy())
    assert green["hue"][0] > h + 5 and green["gamma"][2] < v - 0.05
    assert all(abs(green[name][0] - h) < 3 for name in FACTORS if name not in ("hue", "paper", "paper too"))
    paper = vary(image, only("paper", 2.0))[0, :, 0, 0].tolist()
    assert paper[0] == 255 and paper[1] == paper[2] < 250  # its hue is red's
    white = vary(image, only("side", 2.0))
    assert (white.int() - image.int()).abs().max() <= 1


def test_half_are_mirrored_where_no_word_names_a_side() -> None:
    assert may_be_mirrored(FISH) and may_be_mirrored(Caption("dog", ("dog2",), ""))  # a tag may count
    sided = [Caption("fist", ("right",), ""), Caption("pen", (), "", ("writing",)), Caption("cross", (), "symbols")]
    for label in ("left-facing fist", "one o\u2019clock", "7 ball", "1st place medal", "Stop sign"):
        sided.append(Caption(label, (), ""))
    assert not any(map(may_be_mirrored, sided))
    images = torch.randint(256, (120, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    side = sides(images, [FISH, ARROW] * 60)
    assert set(side[::2].tolist()) == {1.0, -1.0} and not side[1::2].any()
    assert torch.equal(sides(images.flip(3), [FISH, ARROW] * 60), -side)
    factors = torch.randn(120, len(FACTORS), generator=torch.Generator().manual_seed(0))
    made = mirrored(images, side, factors)
    turned = [torch.equal(one, image.flip(2)) for one, image in zip(made, images, strict=True)]
    same = [torch.equal(one, image) for one, image in zip(made, images, strict=True)]
    assert all(one != other for one, other in zip(turned, same, strict=True)) and all(same[1::2])
    assert 20 <= sum(turned) <= 40
    # what noise says is what is seen: all that may be mirrored show the side of their factor
    assert torch.equal(sides(made, [FISH, ARROW] * 60)[::2], factors[::2, SIDE].sign())


def test_images_as_they_are_tell_their_own_side() -> None:
    side = torch.tensor([1.0, -1.0, 0.0]).repeat(200)
    factors = as_they_are(side, torch.Generator().manual_seed(0))
    assert not factors[:, :SIDE].any() and torch.equal(factors[side != 0, SIDE].sign(), side[side != 0])
    assert factors[:, SIDE].std() == pytest.approx(1, abs=0.1) and factors[side == 0, SIDE].mean().abs() < 0.2
    images = torch.randint(256, (600, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(mirrored(images, side, factors), images)


@pytest.mark.slow
def test_hue_and_back() -> None:
    """As the standard library's colorsys has it, and back to the same."""
    colors = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hsv = to_hsv(colors)
    for row, column in itertools.product(range(0, 16, 5), repeat=2):
        expected = colorsys.rgb_to_hsv(*colors[0, :, row, column].tolist())
        assert [float(part[0, row, column]) for part in hsv] == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(to_rgb(*hsv), colors, atol=1e-5, rtol=0)

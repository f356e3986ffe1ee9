"""What is said of a picture in training."""

import random
from collections import Counter

import pytest

from gencli.train.phrases import ADJECTIVES, ADORNED, AROUND, COMMON, TEMPLATES, Phrases, plural, singular
from gencli.train.pictures import Caption

CUP = Caption("hot beverage", ("coffee", "tea", "drink"), "food & drink", ("cup of coffee",))
OTHERS = [Caption(f"drink {i}", ("drink",), "food & drink") for i in range(COMMON)]


def bare(text: str) -> str:
    """Undo a template and a plural."""
    for template in sorted(TEMPLATES, key=len, reverse=True):
        before, after = template.split("{}")
        if text.startswith(before) and text.endswith(after):
            return text[len(before) : len(text) - len(after)].removesuffix("s")
    return text.removesuffix("s")


def test_a_picture_goes_by_all_its_names_and_by_no_common_tag_alone() -> None:
    phrases, rng = Phrases([CUP, *OTHERS]), random.Random(0)
    names = Counter(bare(phrases.name(CUP, rng)) for _ in range(4000))
    assert names.most_common(1)[0][0] == "hot beverage"
    for name in ("coffee", "tea", "cup of coffee", "hot beverage coffee", "coffee hot beverage"):
        assert names[name], name
    assert phrases.uses["drink"] == COMMON + 1
    assert names["drink"] < 4000 * 0.05  # among others of its tags, and now and then all of them that are drawn


def test_a_rare_tag_is_said_more_often_than_a_shared_one() -> None:
    phrases, rng = Phrases([CUP, *OTHERS[:2]]), random.Random(0)
    names = Counter(phrases.name(CUP, rng) for _ in range(4000))
    assert names["coffee"] > 3 * names["drink"] > 0


def test_what_is_another_label_does_not_stand_alone() -> None:
    chair, seat = Caption("chair", ("seat", "sit"), "", ("seat",)), Caption("seat", (), "")
    names = {Phrases([chair, seat]).name(chair, random.Random(seed)) for seed in range(200)}
    assert "seat" not in names and {"chair", "sit", "chair seat"} <= names


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("hot dog", "hot dogs"), ("strawberry", "strawberries"), ("toy", "toys"), ("box", "boxes"),
        ("peach", "peaches"), ("glasses", "glasses"), ("y", "ys"), ("T-Rex", "T-Rexes"), ("100", "100"), ("", ""),
    ],
)  # fmt: skip
def test_plurals(name: str, several: str) -> None:
    assert plural(name) == several


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("green socks", "green sock"), ("strawberries", "strawberry"), ("boxes", "box"), ("peaches", "peach"),
        ("tomatoes", "tomato"), ("shoes", "shoe"), ("ties", "tie"), ("kisses", "kiss"), ("glass", "glass"),
        ("octopus", "octopus"), ("iris", "iris"), ("gas", "gas"), ("women’s", "women’s"), ("yes", "yes"), ("", ""),
    ],
)  # fmt: skip
def test_singulars(name: str, one: str) -> None:
    assert singular(name) == one


def test_of_plurals_a_singular_is_said_where_that_is_no_other_image() -> None:
    socks, glasses = Caption("socks", (), "clothing"), Caption("glasses", (), "clothing")
    phrases = Phrases([socks, glasses, Caption("wine glass", (), "drink")])
    assert [phrases.other_number(name) for name in ("socks", "glasses", "cup")] == ["sock", "glasses", "cups"]
    said = {phrases.draw(socks, 0.0, random.Random(seed)) for seed in range(300)}
    assert {"socks", "sock"} <= said and "sockss" not in said


def test_sentences_around_names() -> None:
    phrases, rng = Phrases([CUP]), random.Random(0)
    texts = [phrases.draw(CUP, 0.0, rng) for _ in range(9000)]
    assert {"a photo of a coffee", "draw me a cup of coffee", "tea please"} <= set(texts)
    assert all(any(word in text for word in ("coffee", "tea", "drink", "beverage")) for text in texts)
    adorned = [
        text for text in texts if any(f" {words} " in f" {text} " for words in (*ADJECTIVES, *AROUND) if words != "hot")
    ]
    assert len(adorned) / len(texts) == pytest.approx(ADORNED, abs=0.02)


def test_words_that_change_nothing_change_no_name() -> None:
    """Where an image is called so, the words are its own."""
    crying = Caption("crying face", ("sad",), "smileys", ("open tears",))
    phrases, rng = Phrases([CUP, crying]), random.Random(0)
    made = {phrases.adorned("face", rng) for _ in range(3000)}
    assert made >= {"face", "golden face", *(f"face {words}" for words in AROUND)} and "sad face" not in made
    assert "hot beverage" not in {phrases.adorned("beverage", rng) for _ in range(3000)}


@pytest.mark.parametrize("drop", [0.0, 0.1, 1.0])
def test_captions_are_left_out(drop: float) -> None:
    phrases, rng = Phrases([CUP]), random.Random(0)
    share = sum(phrases.draw(CUP, drop, rng) == "" for _ in range(3000)) / 3000
    assert share == pytest.approx(drop, abs=0.02)


def test_a_label_alone_is_enough() -> None:
    phrases, rng = Phrases([CUP]), random.Random(0)
    assert {phrases.name(Caption("brick", (), ""), rng) for _ in range(50)} == {"brick"}

"""What an image says of the files that it was made with, and how they are found again."""

import os

import pytest

from gencli.image.files import inputs, pictures
from gencli.image.request import ImageRequest


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The current folder `here`, beside a folder `private`."""
    monkeypatch.setenv("GENCLI_CACHE", str(tmp_path / "cache"))
    for name in ("here/s", "private/models"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_names_that_an_image_holds(place):
    for name in ("here/s/a.png", "private/b.png", "private/l:2.safetensors", "private/c.safetensors"):
        (place / name).write_bytes(name.encode())
    private = place / "private"
    names = {
        "s/a.png": ("s/a.png", "a.png"),
        str(place / "here" / "s" / "a.png"): ("s/a.png", "a.png"),
        str(private / "b.png"): ("b.png", "b.png"),
        "../private/b.png": ("b.png", "b.png"),
        f"{private}/c.safetensors:0.5": ("c.safetensors:0.5", "c.safetensors:0.5"),
        f"{private}/l:2.safetensors": ("l:2.safetensors", "l:2.safetensors"),
        f"{private}/gone.safetensors:0.5": ("gone.safetensors:0.5", "gone.safetensors:0.5"),
        "../private/models": ("models", "models"),
        "org/name": ("org/name", "org/name"),
        "org/name@main/x.safetensors:0.5": ("org/name@main/x.safetensors:0.5",) * 2,
        "emoji": ("emoji", "emoji"),
        ".": (".", "here"),
        "..": (place.name,) * 2,
    }
    for text, (whole, alone) in names.items():
        assert (inputs.recorded(text), inputs.last_name(text)) == (whole, alone), text


def test_no_folder_of_the_maker_is_in_an_image(place):
    for name in ("a.png", "b.png", "c.safetensors", "d.pt"):
        (place / "private" / name).write_bytes(b"x")
    at = f"{place}/private/"
    request = ImageRequest(
        prompt="x", init=f"{at}a.png", mask=f"{at}b.png", lora=(f"{at}c.safetensors:0.5",), embedding=(f"{at}d.pt:w",),
        vae=f"{at}models", model="../private/models", control=(f"{at}models",), control_image=(f"{at}a.png",),
        refiner=f"{at}models", classifier=f"{at}models", clip=f"{at}models",
    )  # fmt: skip
    texts = pictures.describe(request)
    assert all("private" not in text and str(place) not in text for text in texts.values())
    assert "Init image: a.png" in texts["parameters"] and "Model: models" in texts["parameters"]


def test_files_are_found_again(place, monkeypatch):
    """From the current folder, beside the image, or where they lay; the one of the same fingerprint first."""
    (place / "private" / "a.png").write_bytes(b"right")
    (place / "here" / "a.png").write_bytes(b"another")
    digest = inputs.fingerprint(place / "private" / "a.png")

    def found(beside="s", hashes=()):
        return inputs.relocate({"init": "a.png", "seed": 3}, dict(hashes), place / "here" / beside)["init"]

    assert found() == "a.png"
    assert found("../private", {"a.png": digest}.items()) == str(place / "here" / "../private" / "a.png")
    assert found(hashes={"a.png": digest}.items()) == "a.png"  # nothing is known of another place
    inputs.remember(place / "private" / "a.png", digest)
    assert found(hashes={"a.png": digest}.items()) == str(place / "private" / "a.png")
    (place / "private" / "a.png").write_bytes(b"changed")
    assert found(hashes={"a.png": digest}.items()) == "a.png"
    os.remove("a.png")
    assert found() == "a.png"
    assert inputs.relocate({"lora": ("b.safetensors:0.5",)}, {}, place)["lora"] == ("b.safetensors:0.5",)


def test_fingerprints(place):
    small, large = place / "small", place / "large"
    small.write_bytes(b"a")
    large.write_bytes(bytes(2**22))
    before = inputs.fingerprint(small), inputs.fingerprint(large), inputs.fingerprint(place / "private")
    assert len(set(before)) == 3 and all(inputs.FINGERPRINT.fullmatch(one) for one in before)
    small.write_bytes(b"b")
    large.write_bytes(bytes(2**22 - 1) + b"a")
    (place / "private" / "config.json").write_text("{}")
    after = inputs.fingerprint(small), inputs.fingerprint(large), inputs.fingerprint(place / "private")
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert inputs.fingerprint(place / "none") is None


def test_few_links_are_kept(place, monkeypatch):
    monkeypatch.setattr(inputs, "LINKS", 6)
    for i in range(20):
        inputs.remember(place / "x", f"{i:016x}")
    names = os.listdir(place / "cache" / "inputs")
    assert len(names) <= 7 and f"{19:016x}" in names


@pytest.mark.parametrize("wrong", [[1], {"a": "../../x"}, {"a": 3}, {"a": "0123"}])
def test_fingerprints_that_are_none(wrong):
    with pytest.raises(Exception, match="hashes"):
        ImageRequest(hashes=wrong)

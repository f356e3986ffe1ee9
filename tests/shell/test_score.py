"""`gencli score` as a process."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.checkpoints.find import Source
from gencli.image.score import open_scorer
from tests.shell.process import gencli, on_terminal, pixels, shell
from tests.tiny.clip import make_clip, make_pictures
from tests.tiny.image import make_stable_diffusion

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("inside")]

TEXT = "red apple"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A CLIP in `clip`, its pickled twin in `pickle`, and four pictures."""
    root = tmp_path_factory.mktemp("score")
    model, _ = make_clip(root / "clip")
    (root / "pickle").mkdir()
    for file in (root / "clip").iterdir():
        if file.suffix != ".safetensors":
            os.link(file, root / "pickle" / file.name)
    torch.save(model.state_dict(), root / "pickle" / "pytorch_model.bin")
    for index, picture in enumerate(make_pictures()):
        picture.save(root / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def cosines(root):
    """(pictures, texts) for TEXT and "blue dog": what the command has to print."""
    scorer = open_scorer(Source("clip", root / "clip", "folder"), device="cpu")
    return scorer.pictures([scorer.prepare(p) for p in make_pictures()]) @ scorer.texts([TEXT, "blue dog"]).T


def rows(done):
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.decode().splitlines()]


def test_a_line_for_each_picture(cosines, run):
    done = gencli("score", TEXT, "0.png", "1.png", "2.png", "3.png", "-m", "clip", "--batch", 3)
    assert rows(done) == [[f"{value:.4f}", f"{i}.png"] for i, value in enumerate(cosines[:, 0])]
    assert done.stderr == b""
    again = run("score", TEXT, "0.png", "1.png", "2.png", "3.png", "--sort", GENCLI_CLIP_MODEL="clip")
    best = cosines[:, 0].argsort(descending=True)
    assert rows(again) == [[f"{cosines[i, 0]:.4f}", f"{i}.png"] for i in best]


def test_several_texts(cosines, run):
    args = ("1.png", "3.png", "-m", "clip")
    done = run("score", "-t", TEXT, "--text", "blue dog", *args)
    wanted = [[f"{cosines[i, j]:.4f}", f"{i}.png", (TEXT, "blue dog")[j]] for i in (1, 3) for j in (0, 1)]
    assert rows(done) == wanted
    assert rows(gencli("score", "--lines", *args, stdin=b"red apple\r\n\nblue dog\n")) == wanted
    done = run("score", "-t", TEXT, "-t", "blue dog", *args, "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [[f"{row['score']:.4f}", row["path"], row["text"]] for row in found] == wanted
    assert found[0]["model"] == "clip"
    assert sum(row["probability"] for row in found[:2]) == pytest.approx(1, abs=1e-5)
    assert (found[0]["score"] > found[1]["score"]) == (found[0]["probability"] > found[1]["probability"])


def test_json_of_one_text_has_no_probability_and_a_long_text_is_cut_when_asked(run):
    text = "apple " * 80
    done = run("score", text, "2.png", "-m", "clip", "--json", "--truncate", "right")
    row = json.loads(done.stdout)
    assert set(row) == {"path", "text", "score", "model"} and row["text"] == text
    done = run("score", text, "2.png", "-m", "clip", "--json")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"the text has 80 tokens, and clip reads at most 75" in done.stderr


def test_a_picture_from_stdin_and_one_without_utf8(root, cosines):
    name = os.fsdecode(b"caf\xe9.png")
    (root / name).write_bytes((root / "1.png").read_bytes())
    done = shell('cat 0.png | gencli score "red apple" - "$1" -m clip', name)
    wanted = b"%.4f\t-\n%.4f\tcaf\xe9.png\n" % (float(cosines[0, 0]), float(cosines[1, 0]))
    assert (done.returncode, done.stdout, done.stderr) == (0, wanted, b"")
    os.remove(root / name)


def test_what_cannot_be_read_is_told_and_the_rest_is_scored(root, cosines, run):
    (root / "text.png").write_text("no image")
    (root / "cut.png").write_bytes((root / "0.png").read_bytes()[:400])
    done = run("score", TEXT, "none.png", "text.png", "1.png", "cut.png", "3.png", "-m", "clip")
    assert done.returncode == 1
    assert done.stdout.decode() == "".join(f"{cosines[i, 0]:.4f}\t{i}.png\n" for i in (1, 3))
    said = done.stderr.decode().splitlines()
    assert said[0] == "error: none.png: no such file"
    assert said[1].startswith("error: cannot read text.png as an image")
    assert said[2].startswith("error: cannot read cut.png as an image")
    assert len(said) == 3
    # nothing to score: not even a model is looked for
    done = run("score", TEXT, "none.png", "-m", "./no-model")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"error: none.png: no such file\n")


def test_transparency_and_orientation(root, cosines, run):
    """What is transparent lies on white, and a camera's picture stands upright, as `gencli image -i` reads them."""
    half = Image.open("0.png").convert("RGBA")
    half.putalpha(Image.fromarray(np.tile(np.uint8([0, 255]), (half.height, half.width // 2))))
    half.save("half.png")
    white = Image.new("RGB", half.size, "white")
    white.paste(half, mask=half)
    white.save("white.png")
    turned = Image.open("1.png").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned back by a quarter
    turned.save("turned.png", exif=exif)
    found = rows(run("score", TEXT, "half.png", "white.png", "turned.png", "-m", "clip"))
    assert found[0][0] == found[1][0] != f"{cosines[0, 0]:.4f}"
    assert found[2][0] == f"{cosines[1, 0]:.4f}"


def test_pickles_are_opened_when_asked(cosines, run):
    done = run("score", TEXT, "0.png", "-m", "pickle")
    assert done.returncode == 1 and b"pytorch_model.bin" in done.stderr and b"--allow-pickle" in done.stderr
    done = run("score", TEXT, "0.png", "-m", "pickle", "--allow-pickle")
    assert rows(done) == [[f"{cosines[0, 0]:.4f}", "0.png"]]


def test_usage(run):
    for args, message in [
        ((), "no text and no image"),
        (("0.png",), "0.png is read as the text, and there is no image"),
        ((TEXT,), "no image to compare with"),
        (("-t", TEXT), "no image to compare with"),
        ((TEXT, "0.png"), "no model: no CLIP is built in"),
        ((TEXT, "-", "-"), "`-` reads an image from stdin, and once"),
        (("--lines", "-"), "`-` reads an image from stdin, where --lines has its texts"),
        (("--lines", "-t", TEXT, "0.png"), "cannot be combined with --text"),
        (("", "0.png"), "the text is empty"),
        ((TEXT, "0.png", "--truncate", "top"), "expected one of left, right"),
        ((TEXT, "0.png", "--batch", 0), "--batch 0"),
        ((TEXT, "0.png", "--device", "gpu"), "--device 'gpu'"),
    ]:
        done = run("score", *args)
        assert (done.returncode, done.stdout) == (2, b""), (args, done.stderr)
        assert message in done.stderr.decode(), (args, done.stderr)


def test_models_that_are_no_clip(root, run):
    for model, message in [
        ("stories", "stories is a text model (gpt2), not a CLIP model\nhint: `gencli text -m stories` continues"),
        ("./none", "no model './none'"),
    ]:
        done = run("score", TEXT, "0.png", "-m", model)
        assert (done.returncode, done.stdout) == (1, b"")
        assert message in done.stderr.decode()


def test_a_terminal_and_stats():
    code, screen, out, _ = on_terminal("score", TEXT, "0.png", "1.png", "-m", "clip", "--stats", stdout=False)
    assert code == 0 and out.count(b"\n") == 2
    assert "M parameters, float32" in screen.decode() and "2 images in" in screen.decode()


def test_it_is_described_and_checked(run):
    done = run("models", "show", "./clip", "--json")
    shown = json.loads(done.stdout)
    assert (shown["kind"], shown["family"], shown["problem"]) == ("score", "clip", None)
    done = run("models", "check", "./clip")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def drawn(root):
    """Four small pictures of one prompt, made one by one: (scores, files), by their seeds from 5 on."""
    make_stable_diffusion(root / "sd")
    scorer = open_scorer(Source("clip", root / "clip", "folder"), device="cpu")
    text = scorer.texts([TEXT])[0]
    done = gencli("image", TEXT, "--count", 4, *DRAW, "-o", root / "each-{seed}.png", "-m", root / "sd")
    assert done.returncode == 0, done.stderr
    scores = {}
    for seed in range(5, 9):
        with Image.open(root / f"each-{seed}.png") as picture:
            scores[seed] = float(scorer.pictures([scorer.prepare(picture)])[0] @ text)
    return scores


DRAW = ("--steps", 2, "--size", "64x64", "--seed", 5)
BEST = ("image", TEXT, "-m", "sd", "--count", 4, *DRAW)


def test_best(drawn, run):
    best = sorted(drawn, key=lambda seed: -drawn[seed])[:2]
    done = run(*BEST, "--best", 2, "--clip", "clip", "-o", "best-{seed}.png", "--json", "--gif", "best-{seed}.gif")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in found] == [f"best-{seed}.png" for seed in best]
    assert [row["index"] for row in found] == [seed - 5 for seed in best]
    for row, seed in zip(found, best, strict=True):
        assert row["score"] == pytest.approx(drawn[seed], abs=1e-4)
        assert not {"best", "clip"} & set(row) and row["count"] == 1
        np.testing.assert_array_equal(pixels(row["path"]), pixels(f"each-{seed}.png"))
    told = ", ".join(f"{row['score']:.4f} (seed {row['seed']})" for row in found)
    assert done.stderr.decode() == f"note: the best 2 of 4 by clip: {told}\n"
    assert sorted(name for name in os.listdir() if name.startswith("best-")) == sorted(
        f"best-{seed}.{kind}" for seed in best for kind in ("png", "gif")
    )
    again = run("image", "--from", found[0]["path"], "-o", "again.png")  # alone, and without a CLIP
    assert again.returncode == 0, again.stderr
    np.testing.assert_array_equal(pixels("again.png"), pixels(found[0]["path"]))


def test_the_one_best_goes_into_a_pipe(drawn):
    best = max(drawn, key=drawn.get)
    done = gencli(*BEST, "--best", 1, "-q", "--batch", 2, GENCLI_CLIP_MODEL="clip")
    assert done.returncode == 0 and done.stderr == b""
    with open("one.png", "wb") as file:
        file.write(done.stdout)
    assert np.abs(pixels("one.png").astype(int) - pixels(f"each-{best}.png")).max() <= 1  # --batch may round otherwise


def test_the_best_of_each_line(drawn):
    """Of every prompt its own best; the second has other seeds."""
    args = (*BEST[:1], *BEST[2:], "--lines", "--best", 1, "--clip", "clip", "-o", "line-{index}.png", "--json")
    done = gencli(*args, stdin=b"red apple\nblue dog\n")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in found] == [TEXT, "blue dog"]
    assert found[0]["seed"] == max(drawn, key=drawn.get) and 9 <= found[1]["seed"] <= 12
    assert done.stderr.count(b"note: the best 1 of 4 by clip") == 2


def test_a_grid_of_the_best_is_made_again_from_what_it_says(drawn, run):
    best = sorted(drawn, key=lambda seed: -drawn[seed])[:2]
    done = run(*BEST, "--best", 2, "--clip", "clip", "--grid", "-o", "grid.png", "--json")
    row = json.loads(done.stdout)
    assert (row["best"], row["count"], row["seed"], row["clip"]) == (2, 4, 5, "clip")
    assert row["scores"] == [pytest.approx(drawn[seed], abs=1e-4) for seed in best]
    sheet = pixels("grid.png")
    for column, seed in enumerate(best):
        np.testing.assert_array_equal(sheet[:, 64 * column : 64 * (column + 1)], pixels(f"each-{seed}.png"))
    assert run("image", "--from", "grid.png", "-o", "grid2.png").returncode == 0
    np.testing.assert_array_equal(pixels("grid2.png"), sheet)


def test_best_needs_a_clip_a_prompt_and_enough_pictures(drawn, run):
    for args, code, message in [
        ((TEXT, "--count", 4, "--best", 2), 2, "--best needs a CLIP model"),
        ((TEXT, "--count", 4, "--best", 5, "--clip", "clip"), 2, "--best 5 of --count 4"),
        ((TEXT, "--best", 0, "--clip", "clip"), 2, "--best 0"),
        (("--count", 4, "--best", 2, "--clip", "clip"), 2, "--best needs a prompt"),
        ((TEXT, "--clip", "clip"), 2, "--clip needs --best"),
        ((TEXT, "--count", 4, "--best", 2, "--clip", "./none"), 1, "no model './none'"),
        ((TEXT, "--count", 4, "--best", 2, "--clip", "stories"), 1, "not a CLIP model"),
        (("apple " * 76, "--count", 2, "--best", 1, "--clip", "clip"), 1, "reads at most 75"),
    ]:
        done = run("image", *args, "-m", "sd", *DRAW, "-o", "error-{seed}.png")
        assert (done.returncode, done.stdout) == (code, b""), (args, done.stderr)
        assert message in done.stderr.decode(), (args, done.stderr)
    assert not [name for name in os.listdir() if name.startswith("error")]

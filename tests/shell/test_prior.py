"""A decoder with its prior on the command line: named, found by itself, mixed, and made again from the image."""

import json

import pytest

from gencli.__main__ import main
from tests.oracles.pipelines import picture
from tests.tiny.hub_cache import COMMIT, put
from tests.tiny.unclip import make_kandinsky

pytestmark = pytest.mark.slow
STEPS = ["--steps", "2", "--stage", "prior:steps=2", "--size", "64x64", "--seed", "3"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("prior")
    make_kandinsky(root)
    return root


@pytest.fixture
def run(root, tmp_path, monkeypatch, capsys):
    """`gencli image …` in a folder with the two models and a photo; its code, its stdout and its stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("prior", "decoder"):
        (tmp_path / name).symlink_to(root / name)
    picture(size=(32, 32)).save(tmp_path / "photo.png")

    def image(*words):
        code = main(["image", *words])
        return code, *capsys.readouterr()

    return image


def test_mixed_and_made_again(run, tmp_path, capsys):
    mix = ["--mix", "photo.png:0.3", "--mix", "a red cat:0.7", "--mix", "a dog:-0.1"]
    code, out, _ = run("-m", "decoder", "--prior", "prior", *mix, *STEPS, "-o", "a.png", "--json")
    made = json.loads(out)
    assert code == 0 and made["mix"] == ["photo.png:0.3", "a red cat:0.7", "a dog:-0.1"] and made["prior"] == "prior"
    assert {"photo.png:0.3", "prior", "decoder"} <= made["hashes"].keys()
    assert main(["image", "--info", "a.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in ("cfg-scale         4", "mix               photo.png:0.3", "mix               a dog:-0.1"):
        assert line in lines
    assert "sampler-option    variance_type=learned_range" in lines
    assert run("--from", "a.png", "-o", "b.png")[0] == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert run("--from", "a.png", "--mix", "the sun", "-o", "c.png")[0] == 0
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()
    (tmp_path / "photo.png").unlink()
    code, _, error = run("--from", "a.png", "-o", "d.png")
    assert code == 1 and "a.png was made with photo.png, which is not a file here" in error


def test_the_prior_of_a_repository_is_found(run, root, tmp_path):
    for name in ("decoder", "prior"):
        files = {str(f.relative_to(root / name)): f.read_bytes() for f in (root / name).rglob("*") if f.is_file()}
        put(tmp_path / "cache", f"kandinsky-community/kandinsky-2-2-{name}", COMMIT, files, "main")
    model = "kandinsky-community/kandinsky-2-2-decoder"
    assert run("-m", model, "a red apple", *STEPS, "-o", "a.png")[0] == 0
    assert run("-m", "decoder", "--prior", "prior", "a red apple", *STEPS, "-o", "b.png", "--no-metadata")[0] == 0
    assert run("--from", "a.png", "-o", "c.png", "--no-metadata")[0] == 0
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_no_folder_for_stages_without_an_image(run, tmp_path):
    made = run("-m", "decoder", "--prior", "prior", "a", *STEPS, "--save-stages", "st", "-o", "a.png")
    assert made[0] == 0 and "--save-stages: decoder makes no image before its last stage" in made[2]
    assert not (tmp_path / "st").exists()


@pytest.mark.parametrize(
    ("half", "other"), [("decoder", "2-2-prior: --prior names it"), ("prior", "a decoder, such as")]
)
def test_a_half_says_what_it_needs(run, capsys, half, other):
    assert main(["models", "show", half]) == 0
    shown = capsys.readouterr().out
    assert "needs: " in shown and other in shown and "  cfg-scale         4\n" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "decoder", "a"], "--prior kandinsky-community/kandinsky-2-2-prior"),
        (["-m", "prior", "a"], "prior is a prior: it makes embeddings, from which a decoder draws images"),
        (["-m", "decoder", "--prior", "decoder", "a"], "--prior decoder is not a prior"),
        (["-m", "decoder", "--prior", "nothing", "a"], "--prior: no model 'nothing'"),
        (["-m", "decoder", "--prior", "prior", "--mix", "none.png"], "none.png"),
        (["--mix", "a cat"], "--mix needs a decoder whose prior can mix, such as Kandinsky 2.2; emoji cannot"),
        (["a dog", "--mix", "a cat"], "a prompt beside --mix"),
    ],
)
def test_what_cannot_be(run, words, said):
    code, out, error = run(*words, "-o", "x.png")
    assert code in (1, 2) and not out and said in error
    assert len(error.splitlines()) <= 2

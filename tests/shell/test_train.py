"""`gencli train` as a process: killed with SIGKILL at any moment, it ends as if nothing had been."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gencli.__main__ import main
from tests.shell.process import LIMIT, gencli, on_terminal, start
from tests.tiny.pictures import make_pictures

pytestmark = pytest.mark.slow

SMALL = ["--layers", 1, "--width", 16, "--heads", 2, "--context", 16, "--vocab", 260, "--batch", 2]
STEPS = 60
SELDOM = ["--save-every", 1000]  # otherwise the state is saved after each step, so that a kill is of any moment


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("cat", "dog", "bird", "fish")):
        (folder / f"{name}.txt").write_text(f"The {name} ran up the hill and saw {number} stars. Then it slept.\n" * 3)
    return folder


def text(data: Path, out: Path, *more: Any) -> list[Any]:
    often = ["--save-every", 0, "--evaluate-every", 7]
    return ["train", "text", data, "-o", out, *SMALL, "--steps", STEPS, *often, *more]


def steps_told(out: Path, name: str = "loss.csv") -> int:
    file = out / name
    return max(0, len(file.read_bytes().splitlines()) - 1) if file.exists() else 0


def wait_for(process: subprocess.Popen, out: Path, step: int, name: str = "loss.csv") -> None:
    """Until the curve has `step` rows."""
    deadline = time.monotonic() + LIMIT
    while steps_told(out, name) < step:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
        time.sleep(0.002)


def kill_at(arguments: list[Any], out: Path, step: int, name: str = "loss.csv") -> None:
    """Run until the curve has `step` rows, and kill -9 wherever it then is."""
    process = start(*arguments)
    wait_for(process, out, step, name)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def rows(out: Path, name: str = "loss.csv") -> list[dict[str, str]]:
    with (out / name).open() as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def assert_equal_weights(one: Path, other: Path) -> None:
    files = sorted(file.relative_to(one) for file in one.rglob("*.safetensors"))
    assert files and files == sorted(file.relative_to(other) for file in other.rglob("*.safetensors"))
    for file in files:
        ours, theirs = load_file(one / file), load_file(other / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), file


def test_text_killed_and_interrupted_ends_as_unbroken(data: Path, tmp_path: Path) -> None:
    """An unbroken run, seen on a terminal; beside it one that is killed, goes on, gets Ctrl-C and goes on."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, screen, told, _ = on_terminal(*text(data, whole, *SELDOM), stdout=False)
    assert code == 0
    assert b"loss " in screen and b"/60 " in screen and b" tokens/s, " in screen and b" left" in screen
    kill_at(text(data, killed), killed, 5)
    process = start(*text(data, killed, *SELDOM))
    wait_for(process, killed, 31)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    done = torch.load(killed / "state.pt", weights_only=True)["step"]
    said = f"note: stopped after step {done}; the same command goes on from there\n"
    assert process.returncode == 130 and errors.decode().endswith(said)
    assert steps_told(killed) == done > 30  # between two savings of the state: nothing is lost
    assert not (killed / "checkpoint").exists()
    again = gencli(*text(data, killed))
    assert again.returncode == 0 and b"error" not in again.stderr
    assert_equal_weights(whole / "checkpoint", killed / "checkpoint")
    assert rows(whole) == rows(killed) and len(rows(whole)) == STEPS
    assert (killed / "loss.png").read_bytes()[:4] == b"\x89PNG"
    lines = [json.loads(line) for line in told.splitlines()]
    assert lines[-1] == {"made": str(whole / "checkpoint")}
    first, last = lines[0], lines[-2]
    assert last["step"] == STEPS and last["tokens"] == STEPS * 2 * 16 and last["lr"] < 1e-3
    assert last["loss"] < first["loss"] and last["bits_per_byte"]["all"] < first["bits_per_byte"]["all"]
    assert json.loads(again.stdout.splitlines()[0])["step"] > done  # it went on, and did not begin anew


def test_one_plain_text_trains_and_its_run_is_a_model(tmp_path: Path) -> None:
    """The end of a single text is held out, which is said; the run's folder stands for what it made."""
    notes, run = tmp_path / "notes.txt", tmp_path / "run"
    notes.write_text("\n\n".join(f"On day {day} the cat sat by the sea." for day in range(60)))
    made = gencli("train", "text", notes, "-o", run, *SMALL, "--steps", 3)
    assert (
        made.returncode == 0
        and b"note: the last 68 characters are held out: they are scored, and not trained on\n" in made.stderr
    )
    opened = gencli("text", "-m", run, "On day", "-n", 2, "--json")
    assert opened.returncode == 0 and json.loads(opened.stdout)["usage"]["completion_tokens"] == 2
    tuned = tmp_path / "tuned"
    assert gencli("train", "text", notes, "-o", tuned, "--init", run, "--lora-rank", 2, "--steps", 1).returncode == 0
    assert gencli("text", "-m", run, "--lora", tuned, "On day", "-n", 2).returncode == 0


def test_a_score_that_rises_again_is_told(tmp_path: Path) -> None:
    """Two texts of which one is learned by heart and the other is nothing like it."""
    (tmp_path / "seen.txt").write_text("abcdefgh " * 30)
    (tmp_path / "other.txt").write_text("hgfedcba " * 30)
    made = gencli(
        "train", "text", tmp_path / "seen.txt", "--validation", tmp_path / "other.txt", "-o", tmp_path / "run", *SMALL,
        "--steps", 60, "--evaluate-every", 10, "--lr", 0.02,
    )  # fmt: skip
    assert made.returncode == 0 and b"note: the score was best at step " in made.stderr


def test_every_score_of_a_run_is_of_the_same_texts(tmp_path: Path) -> None:
    """A model that does not move has one score, however many texts there are to score and however unlike they are."""
    (tmp_path / "seen.txt").write_text("abcdefgh " * 30)
    texts = ["abcdefgh"] * 40 + ["qrstuvwxyz 0123456789"] * 40
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    made = gencli(
        "train", "text", tmp_path / "seen.txt", "--validation", tmp_path / "other.jsonl", "-o", tmp_path / "run",
        *SMALL, "--steps", 2, "--evaluate-every", 1, "--lr", 1e-9,
    )  # fmt: skip
    lines = [json.loads(line) for line in made.stdout.splitlines()]
    scores = [line["bits_per_byte"]["all"] for line in lines if "bits_per_byte" in line]
    assert made.returncode == 0 and scores == [pytest.approx(scores[0], abs=1e-3)] * 2


def image(pictures: Path, out: Path, *more: Any) -> list[Any]:
    sizes = ["--size", 32, "--autoencoder-widths", "8,8,16", "--widths", "16,16", "--text-width", 16, "--vocab", 600]
    steps = ["--autoencoder-steps", 8, "--steps", 12, "--decoder-steps", 3, "--batch", 4]
    return ["train", "image", pictures, "-o", out, *sizes, *steps, "--evaluate-every", 5, "--save-every", 0, *more]


def test_image_killed_twice_ends_as_unbroken(tmp_path: Path) -> None:
    """Once in the first stage, once in the second."""
    pictures = make_pictures(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = gencli(*image(pictures, whole, *SELDOM))
    assert result.returncode == 0 and b"error" not in result.stderr
    kill_at(image(pictures, killed), killed, 3, "autoencoder.csv")
    assert not (killed / "latents.pt").exists()
    kill_at(image(pictures, killed), killed, 5)
    again = gencli(*image(pictures, killed, *SELDOM))
    assert again.returncode == 0 and b"error" not in again.stderr
    assert_equal_weights(whole / "checkpoint", killed / "checkpoint")
    for name, count in (("autoencoder.csv", 8), ("loss.csv", 12), ("decoder.csv", 3)):
        assert rows(whole, name) == rows(killed, name) and len(rows(whole, name)) == count
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row.get("stage"), row.get("step")) for row in told] == [
        ("autoencoder", 8), ("diffusion", 5), ("diffusion", 10), ("diffusion", 12), ("decoder", 3), (None, None),
    ]  # fmt: skip
    assert told[2]["validation"]["seen"] > 0 and told[-1] == {"made": str(whole / "checkpoint")}
    assert json.loads(again.stdout.splitlines()[0])["stage"] == "diffusion"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--lr", 0], 2, "--lr 0: must be above 0"),
        (["--width", 30, "--heads", 4], 2, "--width 30 is not a multiple of --heads 4"),
        (["--vocab", 100], 2, "--vocab 100: must be at least 257"),
        (["--lora-rank", 4], 2, "--lora-rank without --init"),
        (["--lora-alpha", 4, "--init", "stories"], 2, "--lora-alpha without --lora-rank"),
        (["--init", "stories", "--layers", 3], 2, "--layers with --init"),
        (["--optimizer", "sgd"], 2, "'sgd' is not one of muon, adamw"),
        (["--dtype", "float16"], 2, "--dtype float16: too narrow"),
        (["--device", "tpu"], 2, "no such device"),
        (["--vocab", 10**11], 2, "at most 1048576"),
        (["--heads", 2000, "--width", 2000], 2, "--heads 2000: must be at most 1024"),
        (["--width", 10**6], 2, "--width 1000000: must be at most 65536"),
        (["--context", 10**9], 2, "--context 1000000000: must be at most 1048576"),
        (["--batch", 10**11], 2, "--batch 100000000000: must be at most 65536"),
        (["--seed", 10**20], 2, f"--seed {10**20}: must be at most 4294967295"),
        (["--dropout", 1], 2, "--dropout 1: must be at least 0 and below 1\n"),
        (["--lead-share", 1.0000001], 2, "--lead-share 1.0000001: must be at least 0 and at most 1\n"),
        (["--save-every", -1], 2, "--save-every -1: must be at least 0 and at most 1000000000\n"),
        (["--steps", 0], 2, "--steps 0: must be at least 1"),
        (["--validation", "nowhere"], 1, "no such file: nowhere"),
        (["--init", "nowhere"], 1, "no model 'nowhere'"),
    ],
)
def test_what_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list, code: int, says: str
) -> None:
    found = main(["train", "text", str(data), "-o", str(tmp_path / "run"), *map(str, arguments)])
    out, err = capsys.readouterr()
    assert (found, out) == (code, "")
    assert err.startswith("error: ") and says in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--size", 30], 2, "--size 30: with these widths it must be a multiple of 32"),
        (["--widths", "16,x"], 2, "--widths '16,x': expected comma-separated numbers"),
        (["--random-flip"], 2, "--random-flip without --variants"),
        (["--whole-words"], 2, "--whole-words without --words-steps"),
        (["--widths", "16,24"], 2, "--widths: 24 is not a multiple of 16"),
        (["--autoencoder-widths", "4"], 2, "--autoencoder-widths: 4 is not a multiple of 8"),
        (["--text-width", 10], 2, "--text-width 10 is not a multiple of 4"),
        (["--vocab", 300], 2, "--vocab 300: must be at least 514"),
        (["--size", 4], 2, "--size 4: must be at least 8"),
        (["--text-layers", 1000], 2, "--text-layers 1000: must be at most 128"),
        (["--widths", "65536,16"], 2, "--widths '65536,16': expected comma-separated numbers up to 16384"),
        (["--seed", 10**20], 2, f"--seed {10**20}: must be at most 4294967295"),
        (["--hold-out", 1], 2, "--hold-out 1: must be at least 0 and below 1\n"),
        (["--min-snr", -1], 2, "--min-snr -1: must be at least 0 and at most 1000000000\n"),
        (["--captions", "."], 1, ". is a folder"),
        (["--keep-text-encoder"], 2, "--keep-text-encoder without --init"),
        (["--init", "emoji", "--autoencoder-steps", 3], 2, "--autoencoder-steps with --init"),
        (["--captions", "nowhere"], 1, "no such file: nowhere"),
        (["--init", "nowhere"], 1, "no model 'nowhere'"),
    ],
)
def test_what_is_refused_of_pictures(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list, code: int, says: str
) -> None:
    found = main(["train", "image", str(data), "-o", str(tmp_path / "run"), *map(str, arguments)])
    out, err = capsys.readouterr()
    assert (found, out) == (code, "")
    assert err.startswith("error: ") and says in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_in_the_place_of_the_result_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str, below: str
) -> None:
    (tmp_path / "file").touch()
    assert main(["train", kind, str(data), "-o", str(tmp_path / "file" / below)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"{tmp_path / 'file'} is a file\nhint: " in err


@pytest.mark.parametrize("name", ["text", "image", "score-text", "score-image"])
def test_every_option_of_training_is_in_a_panel_of_its_own_kind(capsys: pytest.CaptureFixture, name: str) -> None:
    assert main(["train", name, "--help"]) == 0
    other = capsys.readouterr().out.partition("\nOther:\n")[2]
    assert [word for word in other.split() if word.startswith("--")] == ["--help"]

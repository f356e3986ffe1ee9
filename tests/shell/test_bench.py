"""`gencli bench`: what it says, by numbers that hold on any machine."""

from __future__ import annotations

import json

import pytest

from tests.shell.process import gencli, on_terminal

pytestmark = pytest.mark.slow
QUICK = ("-r", "2", "-n", "4", "-p", "20")


def test_text(tmp_path):
    env = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    done = gencli("bench", "text", *QUICK, "--batch", "1", "--batch", "3", "--quantize", "q8_0", "--json", **env)
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["batch"], second["batch"]) == (1, 3) and first["weights"] == "q8_0" and first["model"] == "stories"
    assert (first["prompt_tokens"], first["decode_tokens"], first["threads"]) == (20, 4, 1)
    for key in ("prompt_rate", "decode_rate", "first_token_seconds", "bandwidth_share"):
        spread = first[key]
        assert 0 < spread["low"] <= spread["median"] <= spread["high"], key
    seconds = first["first_token_seconds"]
    assert first["prompt_rate"]["high"] == pytest.approx(20 / seconds["low"])
    per_step = first["decode_rate"]["median"] * first["weight_bytes"]
    assert first["bandwidth_share"]["median"] == pytest.approx(per_step / first["bandwidth"])
    shapes = [(4096, 256), *[(768, 256), (256, 256), (1024, 256), (256, 1024)] * 8]  # the head, and 8 layers
    assert first["weight_bytes"] == sum(rows * columns // 32 * 34 for rows, columns in shapes)
    assert first["peak_memory"] > 2**26 and first["kernels"] is not None


def test_a_table(tmp_path):
    """Columns in a pipe, a grid on a terminal; where there are no kernels it is said."""
    done = gencli("bench", "text", *QUICK, GENCLI_KERNELS="off")
    title, heads, row = done.stdout.decode().splitlines()
    assert title.startswith("stories: 20 tokens read, 4 made; cpu, 1 thread, torch's operations, as there are no C")
    assert heads.split()[:2] == ["WEIGHTS", "BATCH"] and row.split()[:2] == ["float16", "1"]
    code, screen, _, _ = on_terminal("bench", "text", *QUICK, NO_COLOR="1")
    assert code == 0 and "WEIGHTS" in screen.decode() and "┃" in screen.decode()


def test_image():
    done = gencli("bench", "image", "--size", "32x32", "--batch", "2", "--steps", "2", "-r", "1", "--json")
    row = json.loads(done.stdout)
    assert (row["size"], row["batch"], row["steps"], row["model"]) == ("32x32", 2, 2, "emoji")
    assert 0 < row["step_seconds"]["median"] < row["image_seconds"]["median"] * 2 and row["peak_memory"] > 2**26


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("text", "--rounds", "0"), "--rounds 0: must be from 1 to 1000"),
        (("text", "--quantize", "q9"), "--quantize 'q9': no such type"),
        (("image", "--size", "3"), "--size 3: expected WIDTHxHEIGHT"),
    ],
)
def test_usage(args, said):
    done = gencli("bench", *args)
    assert done.returncode == 2 and said in done.stderr.decode() and not done.stdout

"""`gencli text` as a process, with a tiny model: pipes, signals, terminals, what reaches stdout and what does not."""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.shell.process import LIMIT, gencli, on_terminal, shell, start
from tests.tiny.text import END, byte_bpe, make_gpt2

NO_END = ("--logit-bias", "383=-inf")  # the tiny model would end at random
ENDLESS = ("-n", 1_000_000, *NO_END)
ESCAPE = byte_bpe().token_to_id("\u011b")  # GPT-2's name for byte 0x1b


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make_gpt2(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """A model whose context nothing in here reaches."""
    shape = {"n_positions": 200_000, "n_embd": 8, "n_head": 1, "n_layer": 1}
    return make_gpt2(tmp_path_factory.mktemp("models") / "long", layout="saved", **shape)


def objects(done: subprocess.CompletedProcess) -> list[dict]:
    assert (done.returncode, done.stderr) == (0, b"")
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


@pytest.mark.slow
def test_stdout_holds_the_text_and_nothing_else(tiny: Path):
    """Words joined, one newline at the end, equal seeds equal texts, samples alone as together, prompts with --echo."""
    common = ("-m", tiny, "-n", 12, "--seed", 3, *NO_END)
    plain = gencli("text", "Once", "upon", *common)
    assert (plain.returncode, plain.stderr) == (0, b"")
    several = objects(gencli("text", "Once upon", *common, "--num-samples", 3, "--json", "--logprobs", 2))
    assert plain.stdout.decode() == several[0]["text"] + "\n"
    echoed = gencli("text", "Once upon", *common[:-3], 4, *NO_END, "--num-samples", 2, "--echo", "--null")
    assert echoed.stdout.decode() == "".join(f"Once upon{s['text']}\0" for s in several[1:])

    for index, sample in enumerate(several):
        fields = {"index", "prompt", "text", "finish_reason", "logprobs", "usage", "seed", "model", "settings"}
        assert set(sample) == fields
        asked = {"logit_bias": [[383, "-inf"]], "max_tokens": 12, "num_samples": 3, "logprobs": 2}
        assert sample["settings"] == asked
        assert (sample["index"], sample["seed"], sample["model"]) == (index, 3 + index, str(tiny))
        assert (sample["finish_reason"], sample["usage"]["completion_tokens"]) == ("length", 12)
        assert sample["usage"]["total_tokens"] == sample["usage"]["prompt_tokens"] + 12
        report = sample["logprobs"]
        assert [len(report[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [12] * 4
        assert all(len(row) in (2, 3) and max(row.values()) < 0 for row in report["top_logprobs"])


@pytest.mark.slow
def test_stdin_is_the_prompt_only_when_nothing_else_is(tiny: Path):
    """A prompt leaves stdin to whoever comes next; without one stdin is it."""
    script = """
        greedy() { gencli text -m "$model" -n 4 --temperature 0 --logit-bias 383=-inf --null "$@"; }
        model=$1
        while read -r word; do greedy "$word"; done
        printf 'two\\n' | greedy
    """
    done = shell(script, tiny, stdin=b"one\ntwo\n")
    assert (done.returncode, done.stderr) == (0, b"")
    first, second, third, rest = done.stdout.split(b"\0")
    assert second == third != first and rest == b""


def test_the_reader_goes_away(long: Path):
    done = shell('gencli text a -m "$1" -n 1000000 --logit-bias 383=-inf | head -c 1; exit "${PIPESTATUS[0]}"', long)
    assert (done.returncode, len(done.stdout), done.stderr) == (141, 1, b"")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_keep_the_text_so_far(long: Path, number: signal.Signals, code: int):
    process = start("text", "a", "-m", long, "-s", 1, *ENDLESS, "--top-k", 20)
    assert process.stdout
    begun = os.read(process.stdout.fileno(), 100)
    process.send_signal(number)
    rest, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, errors) == (code, b"")
    (begun + rest).decode()  # whole characters only
    again = gencli("text", "a", "-m", long, "-s", 1, "-n", 40, *NO_END, "--top-k", 20).stdout.removesuffix(b"\n")
    shorter = min(len(begun + rest), len(again))
    assert shorter > 0 and (begun + rest)[:shorter] == again[:shorter]


def test_a_signal_while_stdin_is_awaited(tiny: Path):
    process = start("text", "-m", tiny)
    assert process.stdin
    process.stdin.write(b"Once")
    process.stdin.flush()
    unread = array.array("i", [1])
    while unread[0]:
        time.sleep(0.01)
        fcntl.ioctl(process.stdin, termios.FIONREAD, unread)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT) == 130
    assert process.communicate() == (b"", b"")


@pytest.mark.slow
def test_lines(tiny: Path):
    """100 prompts: the checkpoint is opened once, and every answer is what its prompt and seed give alone."""
    code = """
import atexit, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
atexit.register(lambda: print(sum(name.endswith("tokenizer.json") for name in opened), file=sys.stderr))
"""
    prompts = [f"prompt {i}" for i in range(98)] + ["", "naïve 你好"]
    stdin = "\r\n".join(prompts[:50]) + "\r\n" + "\n".join(prompts[50:])
    arguments = ("-m", tiny, "--lines", "--json", "-n", 4, "-s", 9, *NO_END)
    done = gencli("text", *arguments, stdin=stdin.encode(), code=code)
    assert (done.returncode, done.stderr) == (0, b"1\n")
    answers = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [(a["index"], a["seed"]) for a in answers] == [(i, 9 + i) for i in range(100)]
    for index in (7, 99):
        [alone] = objects(gencli("text", prompts[index], "-m", tiny, "-n", 4, "-s", 9 + index, "--json", *NO_END))
        assert alone["text"] == answers[index]["text"]


def test_lines_answer_as_they_arrive(tiny: Path):
    process = start("text", "-m", tiny, "--lines", "--null", "-n", 3, "--num-samples", 2)
    assert process.stdin and process.stdout
    for line in (b"one\n", b"two\n"):
        process.stdin.write(line)
        process.stdin.flush()
        answer = b""
        while answer.count(b"\0") < 2:
            data = os.read(process.stdout.fileno(), 1000)
            assert data, process.communicate()
            answer += data
    process.stdin.write(b"three\xff\n")
    rest, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, rest) == (1, b"")
    assert errors.startswith(b"error: line 3 of stdin is not UTF-8: byte 0xff at offset 5\nhint: ")


@pytest.mark.parametrize("how", ['gencli text "" -m "$1"', 'gencli text -m "$1" < /dev/null'])
def test_an_empty_prompt(tiny: Path, how: str):
    done = shell(f"{how} -n 4 --temperature 0 --json", tiny)
    [answer] = [json.loads(line) for line in done.stdout.splitlines()]
    assert answer["usage"]["prompt_tokens"] == 1
    [named] = objects(gencli("text", END, "-m", tiny, "-n", 4, "--temperature", 0, "--json"))
    assert named["text"] == answer["text"]


@pytest.mark.slow
def test_closed_stdin(tiny: Path):
    done = shell('gencli text a -m "$1" -n 2 --temperature 0 <&-', tiny)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout
    done = shell('gencli text -m "$1" <&-', tiny)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: stdin is closed\nhint: ")


def test_stdin_that_is_no_text(tiny: Path):
    done = gencli("text", "-m", tiny, stdin=b"caf\xe9\n")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: stdin is not UTF-8: byte 0xe9 at offset 3\nhint: ")
    done = shell("gencli text $'caf\\xe9' -m \"$1\"", tiny)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"not valid UTF-8" in done.stderr


@pytest.mark.slow
def test_a_prompt_longer_than_the_context(tiny: Path):
    words = " ".join(str(i) for i in range(300))
    done = gencli("text", words, "-m", tiny)
    length = len(byte_bpe().encode(words).ids)
    assert (done.returncode, done.stdout) == (1, b"")
    assert f"the prompt has {length} tokens".encode() in done.stderr and b" 128 " in done.stderr
    assert b"hint: " in done.stderr and b"--truncate left" in done.stderr
    done = gencli("text", words, "-m", tiny, "--truncate", "left", "-n", 8, "--json", *NO_END)
    assert json.loads(done.stdout)["usage"]["total_tokens"] == 128
    assert done.stderr == f"note: only the last 120 of the prompt's {length} tokens are used\n".encode()


@pytest.mark.slow
def test_broken_checkpoints(tiny: Path, tmp_path: Path):
    """NaN in the weights, a file cut short: one clear line each, and no text."""
    for name in ("nan", "cut"):
        (tmp_path / name).mkdir()
        for file in tiny.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tiny / "model.safetensors")
    tensors["ln_f.bias"][:] = float("nan")
    save_file(tensors, tmp_path / "nan" / "model.safetensors")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for name, says in (("nan", b"NaN"), ("cut", b"model.safetensors")):
        done = gencli("text", "a", "-m", tmp_path / name)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"error: ") and says in done.stderr and b"Traceback" not in done.stderr


def test_a_full_disk(tiny: Path):
    with open("/dev/full", "wb") as full:
        process = start("text", "a", "-m", tiny, "-n", 3, stdout=full.fileno())
        _, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, errors) == (1, b"error: cannot write to stdout: No space left on device\n")


@pytest.mark.slow
def test_stats_and_environment(tiny: Path):
    """--stats tells the drawn seed, which gives the same text again; the model's name comes from the environment."""
    first = gencli("text", "a", "-n", 9, "--stats", "-q", *NO_END, GENCLI_TEXT_MODEL=str(tiny), GENCLI_DTYPE="bfloat16")
    assert first.returncode == 0
    said = first.stderr.decode()
    assert "bfloat16, cpu" in said and "prompt 1 token," in said and "generated 9 tokens" in said
    seed = said.partition("seed ")[2].split()[0]
    again = gencli("text", "a", "-n", 9, "-s", seed, *NO_END, "-m", tiny, "--dtype", "bfloat16")
    assert again.stdout == first.stdout and first.stdout
    done = gencli("text", "a", "-m", tiny, GENCLI_DEVICE="tpu")
    assert done.returncode == 2 and b"'tpu'" in done.stderr


@pytest.mark.slow
def test_control_characters_on_a_terminal(tiny: Path):
    """Shown escaped there, and the bytes they are in a pipe."""
    arguments = ("text", "a", "-m", tiny, "-n", 3, "--temperature", 0, "--logit-bias", f"{ESCAPE}=1000")
    code, terminal, _, errors = on_terminal(*arguments, stderr=False)
    assert (code, terminal, errors) == (0, b"\\x1b\\x1b\\x1b\r\n", b"")
    assert gencli(*arguments).stdout == b"\x1b\x1b\x1b\n"


@pytest.mark.slow
def test_progress_is_for_terminals(tiny: Path):
    """On stderr only, wiped at the end, and not with -q or a terminal that cannot redraw."""
    arguments = ("text", "a", "-m", tiny, "-n", 8, "--temperature", 0, *NO_END)
    code, terminal, stdout, _ = on_terminal(*arguments, stdout=False)
    assert code == 0 and b"loading" in terminal and b"tokens" in terminal
    assert terminal.endswith(b"\r\x1b[K") and b"\n" not in terminal
    assert stdout == gencli(*arguments).stdout
    for more, env in (["-q"], {}), ([], {"TERM": "dumb"}):
        code, terminal, quiet, _ = on_terminal(*arguments, *more, stdout=False, **env)
        assert (code, terminal, quiet) == (0, b"", stdout)
    code, terminal, _, _ = on_terminal(*arguments)  # all on one screen: the text follows the wiped line
    assert code == 0
    assert terminal.rpartition(b"\r\x1b[K")[2].replace(b"\r\n", b"\n") == stdout

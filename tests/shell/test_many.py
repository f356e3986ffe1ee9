"""Lines by several processes: the bytes, errors and exit codes of one process, whoever is killed in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.shell.process import LIMIT, gencli, start, without_torch
from tests.tiny.image import make_stable_diffusion
from tests.tiny.text import SENTENCES, make_gpt2

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("folder")]

PROMPTS = [f"{SENTENCES[i % 3][: 4 + i % 9]} {i}" for i in range(60)]
LINES = "\n".join(PROMPTS).encode() + b"\n"
NO_END = ("--logit-bias", "383=-inf")
LONG = " ".join(str(i) for i in range(300))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make_gpt2(tmp_path_factory.mktemp("many") / "tiny")


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "sd"
    make_stable_diffusion(folder)
    return folder


def command(model: Path, *more: object) -> tuple[object, ...]:
    return ("text", "-m", model, "--lines", "-s", 5, "--batch", 2, *NO_END, *more)


def workers(driver: int) -> list[int]:
    """The processes that a driver has started."""
    return [int(pid) for pid in Path(f"/proc/{driver}/task/{driver}/children").read_text().split()]


def until(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


def without_the_maker(lines: bytes) -> list[dict]:
    """Records without what says who made them in what time, which each has."""
    records = [json.loads(line) for line in lines.splitlines()]
    for record in records:
        assert record.pop("seconds") >= 0 and record.pop("worker").rpartition(":")[2].isdigit()
    return records


USAGE = {
    "text --workers 2 a": "--workers needs --lines",
    "text --resume r.jsonl a": "--resume needs --lines",
    "text --lines --workers 0": "--workers 0: must be from 1 to 4096",
    "text --lines --shard 3/2": "--shard 3/2: of 2 shards",
    "text --lines --on slurm": "--on 'slurm': no such engine",
    "text --lines --on ray://head": "--on 'ray://head': no such engine",
    "text --lines --on ray://head:x": "--on 'ray://head:x': no such engine",
    "text --lines --gpus-per-worker 1": "--gpus-per-worker is for --on",
    "text --lines --resume r.jsonl --null": "--resume ends its records with newlines",
    "text --lines --workers 2 --prompt-cache f": "--workers cannot be combined with --prompt-cache",
    "image --lines --workers 2 --grid -o g.png": "--workers cannot be combined with --grid",
    "image --lines --shard 1/2 --preview -o {index}.png": "--shard cannot be combined with --preview",
    "image --lines --resume r.jsonl": "--resume needs -o",
}


def test_usage_is_told_before_torch_is_imported(folder):
    codes, errors = without_torch([words.split() for words in USAGE])
    assert codes == [2] * len(USAGE)
    for words, error in zip(USAGE, errors, strict=True):
        assert error.startswith(f"error: {USAGE[words]}"), words
    assert not [*folder.iterdir()]


def test_two_workers_write_what_one_process_writes(tiny):
    """Samples, a line that is not UTF-8 and one too long included: stdout, errors and exit code."""
    lines = b"\n".join([*LINES.splitlines()[:20], b"caf\xe9", LONG.encode(), b"", *LINES.splitlines()[20:30]])
    args = command(tiny, "-n", 30, "--num-samples", 2, "--json")  # so long that both workers get some of it
    one, two = gencli(*args, stdin=lines), gencli(*args, "--workers", 2, stdin=lines)
    assert (one.returncode, two.returncode) == (1, 1) and one.stderr == two.stderr
    assert one.stderr.count(b"error: line 2") == 2 and b"2 of 33 lines failed" in one.stderr
    assert without_the_maker(two.stdout) == [json.loads(line) for line in one.stdout.splitlines()]
    makers = {json.loads(line)["worker"] for line in two.stdout.splitlines()}
    assert len(makers) == 2


def test_a_worker_that_is_killed_costs_nothing(tiny):
    args = command(tiny, "-n", 40, "--null")
    expected = gencli(*args, stdin=LINES)
    process = start(*args, "--workers", 2, "--stats")
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(LINES)
    process.stdin.close()
    got = process.stdout.read(200)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    got += process.stdout.read()
    errors = process.stderr.read().decode()
    assert process.wait(LIMIT) == 0 and got == expected.stdout
    assert "killed by SIGKILL" in errors and "1 worker died" in errors and "lines/s" in errors


def test_ctrl_c_ends_all_workers(tiny):
    process = start(*command(tiny, "-n", 100, "--workers", 2))
    assert process.stdin and process.stdout
    process.stdin.write(LINES)
    process.stdin.flush()  # and it stays open
    process.stdout.read(100)
    made = workers(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT) == 130 and len(made) == 2
    assert not [pid for pid in made if Path(f"/proc/{pid}").exists()]


def test_shards_that_go_on_after_a_kill_make_up_the_whole(tiny, folder):
    args = command(tiny, "-n", 30)
    whole = gencli(*args, "--json", stdin=LINES)
    first = folder / "1.jsonl"
    process = start(*args, "--shard", "1/2", "--resume", first)
    assert process.stdin
    process.stdin.write(LINES)
    process.stdin.close()
    until(lambda: first.exists() and first.stat().st_size > 2000, process)
    process.kill()
    process.wait()
    size = first.stat().st_size
    os.truncate(first, size - 3)  # what a kill in the middle of a record leaves
    for number in (1, 2):
        done = gencli(*args, "--shard", f"{number}/2", "--resume", f"{number}.jsonl", stdin=LINES)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    empty = gencli(*args, "--shard", "2/2", stdin=b"a\n")
    assert (empty.returncode, empty.stdout) == (0, b"") and b"this shard has none of the 1 line" in empty.stderr
    assert first.stat().st_size > size
    merged = subprocess.run(
        ["sort", "-m", "-t ", "-k2,2n", "1.jsonl", "2.jsonl"], capture_output=True, env={**os.environ, "LC_ALL": "C"}
    )
    assert merged.stdout == whole.stdout
    before = first.read_bytes()
    again = gencli(*args[:4], "--batch", 2, *NO_END, "-n", 30, "--shard", "1/2", "--resume", first, stdin=LINES)
    note = b"note: nothing to do: 1.jsonl has all 32 lines already\n"
    assert (again.returncode, again.stderr.replace(str(folder).encode() + b"/", b""), first.read_bytes()) == (
        0,
        note,
        before,
    )
    changed = gencli(*args, "--top-k", 3, "--shard", "1/2", "--resume", first, stdin=LINES)
    assert b"was made with other settings: --top-k not given (now 3)" in changed.stderr and first.read_bytes() == before
    other = gencli(*args, "--resume", first, stdin=b"another\n" + LINES)
    assert other.returncode == 1 and b"1.jsonl is of other prompts" in other.stderr
    other = gencli(*args, "-s", 6, "--resume", first, stdin=LINES)
    assert other.returncode == 1 and b"--seed 6: the records of " in other.stderr


def test_images(sd, folder):
    """Files and records are those of one process, with batches and a line that cannot be drawn; and a run goes on."""
    lines = b"red apple\nfox\n\n" + LONG.encode() + b"\ntree\nblue sea\nhill\n"
    args = ("image", "-m", sd, "--lines", "-s", 3, "--steps", 1, "--size", "32x32", "--batch", 2)
    one = gencli(*args, "-o", "one-{index}-{prompt}.png", stdin=lines)
    two = gencli(*args, "-o", "two-{index}-{prompt}.png", "--workers", 2, "--json", stdin=lines)
    assert (one.returncode, two.returncode) == (1, 1) and sorted(one.stderr.split()) == sorted(two.stderr.split())
    assert [record["index"] for record in without_the_maker(two.stdout)] == [0, 1, 4, 5, 6]
    names = one.stdout.decode().split()
    assert len(names) == 5
    for name in names:
        assert Path(name).read_bytes() == Path(name.replace("one", "two")).read_bytes()
    first = gencli(*args, "-o", "three-{index}.png", "--resume", "r.jsonl", stdin=b"red apple\nfox\n")
    made = Path("three-0.png").stat().st_mtime_ns
    rest = gencli(*args, "-o", "three-{index}.png", "--resume", "r.jsonl", stdin=lines)
    assert (first.returncode, rest.returncode, rest.stdout.split()) == (
        0, 1, [b"three-4.png", b"three-5.png", b"three-6.png"],
    )  # fmt: skip
    assert Path("three-0.png").stat().st_mtime_ns == made
    assert [json.loads(line)["index"] for line in Path("r.jsonl").read_text().splitlines()] == [0, 1, 4, 5, 6]
    assert Path("three-6.png").read_bytes() == Path("one-6-hill.png").read_bytes()
    Path("three-5.png").unlink()
    lost = gencli(*args, "-o", "three-{index}.png", "--resume", "r.jsonl", stdin=lines)
    assert b"note: three-5.png of r.jsonl cannot be found" in lost.stderr and not lost.stdout
    kept = [line for line in Path("r.jsonl").read_text().splitlines(keepends=True) if "three-5.png" not in line]
    Path("r.jsonl").write_text("".join(kept))
    assert gencli(*args, "-o", "three-{index}.png", "--resume", "r.jsonl", stdin=lines).stdout == b"three-5.png\n"

"""Signals at random moments: right exit codes, nothing half-written, nothing lost, a second signal ends at once.

    python -m benchmarks.signals                     # 100 of each kind of run, SIGINT, SIGTERM, SIGHUP, SIGKILL in turn
    python -m benchmarks.signals --count 20 text pull

Every run is one that has been run to its end before, so that what an interrupted one leaves is known: text is a
beginning of the whole one's, JSON lines are whole, an image is there as it should be or not at all, and training and
downloads go on from where they were to the same files. Half of the runs get the signal again while they end.
Writes a table; the exit code is 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.oracles.hub_server import Hub, safetensors
from tests.shell.process import environment, start

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
AT_ONCE = 5.0  # seconds in which a second signal ends a process, on a busy machine that reads libraries
FRESH, STARTING = 5, 6.0  # one run in so many starts an interpreter, which takes seconds
PAUSE = 0.2  # seconds between the two
SMALL = ["--layers", "1", "--width", "16", "--heads", "2", "--context", "16", "--vocab", "260", "--batch", "2"]


@dataclass
class Run:
    """A command, and what holds of it. check: what is wrong with the folder and stdout of an interrupted run."""

    words: list[str]
    check: Callable[[Path, bytes], str]
    stdin: bytes = b""
    env: dict[str, str | None] = field(default_factory=dict)
    seconds: float = 0.0  # that it takes

    def start(self, folder: Path, *, fresh: bool = False) -> subprocess.Popen[bytes]:
        (folder / "stdin").write_bytes(self.stdin)
        (folder / "cwd").mkdir(exist_ok=True)
        os.chdir(folder / "cwd")
        with (folder / "stdin").open("rb") as stdin, (folder / "stdout").open("wb") as out:
            streams = {"stdin": stdin.fileno(), "stdout": out.fileno()}
            return start(*self.words, env=environment(**self.env), fresh=fresh, **streams)

    def whole(self, folder: Path) -> bytes:
        """Run it to its end; return its stdout."""
        began = time.monotonic()
        process = self.start(folder)
        _, err = process.communicate()
        assert process.returncode == 0, err
        self.seconds = time.monotonic() - began
        return (folder / "stdout").read_bytes()


def digest(folder: Path, pattern: str) -> dict[str, str]:
    """Return name → checksum of the files that fit a pattern."""
    found = sorted(file for file in folder.rglob(pattern) if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def printed(words: list[str], root: Path, stdin: bytes = b"", *, lines: bool = False) -> Run:
    """A run whose stdout alone matters."""

    def check(folder: Path, out: bytes) -> str:
        if not whole.startswith(out):
            return f"stdout is not a beginning of the whole one: {out[-60:]!r}"
        return "a line is half-written" if lines and out and not out.endswith(b"\n") else ""

    run = Run(words, check, stdin)
    whole = run.whole(fresh(root))
    return run


def text(root: Path, hub: Hub) -> Run:
    return printed(["text", "-m", "stories", "Once", "-n", "40", "--seed", "1"], root)


def lines(root: Path, hub: Hub) -> Run:
    words = ["text", "-m", "stories", "--lines", "--json", "-n", "4", "--seed", "1"]
    return printed(words, root, b"Once\nA dog\n" * 10, lines=True)


def image(root: Path, hub: Hub) -> Run:
    def check(folder: Path, out: bytes) -> str:
        found = digest(folder / "cwd", "*.png")
        return "" if found in ({}, whole) else f"half an image: {found}"

    run = Run(["image", "-m", "emoji", "apple", "--steps", "6", "--seed", "1", "-o", "a.png", "-q"], check)
    folder = fresh(root)
    run.whole(folder)
    whole = digest(folder / "cwd", "*.png")
    return run


def train(root: Path, hub: Hub) -> Run:
    data = root / "data"
    data.mkdir()
    for number, name in enumerate(("cat", "dog", "bird", "fish")):
        (data / f"{name}.txt").write_text(f"The {name} ran up the hill and saw {number} stars. Then it slept.\n" * 3)

    def check(folder: Path, out: bytes) -> str:
        again = Run(run.words, check).whole(folder)
        found = digest(folder / "cwd" / "out" / "checkpoint", "*")
        return "" if again and found == whole else "what is made afterwards differs"

    often = ["--steps", "60", "--save-every", "0", "--evaluate-every", "7", "-q"]
    run = Run(["train", "text", str(data), "-o", "out", *SMALL, *often], check)
    folder = fresh(root)
    run.whole(folder)
    whole = digest(folder / "cwd" / "out" / "checkpoint", "*")
    return run


def pull(root: Path, hub: Hub) -> Run:
    config = b'{"model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}'
    hub.commit("org/tiny", {"config.json": config, "model.safetensors": safetensors({"a": ("F32", [2**21])})})

    def check(folder: Path, out: bytes) -> str:
        cache = folder / "cwd" / "cache"
        half = [file for file in cache.rglob("snapshots/*/*") if not file.exists()]  # links into nothing
        half += [
            file
            for file in cache.rglob("blobs/*")
            if len(file.name) == 64 and hashlib.sha256(file.read_bytes()).hexdigest() != file.name
        ]
        if half:
            return f"half a file under its name: {half}"
        Run(run.words, check, env=run.env).whole(folder)
        found = digest(cache, "snapshots/*/*")
        return "" if found == whole else f"what is there afterwards differs: {found}"

    env = {"HF_HUB_OFFLINE": None, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": "cache", "HF_HOME": "home"}
    run = Run(["models", "pull", "org/tiny"], check, env={**env})
    folder = fresh(root)
    run.whole(folder)
    whole = digest(folder / "cwd" / "cache", "snapshots/*/*")
    return run


KINDS = {"text": text, "lines": lines, "image": image, "train": train, "pull": pull}


def fresh(root: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=root))


def interrupt(run: Run, number: signal.Signals, root: Path, draw: random.Random) -> tuple[str, str]:
    """Run it, and send a signal at a random moment. Return how it ended, and what is wrong, if anything.

    One run in `FRESH` starts an interpreter, and gets its signal while it imports; the others are forked from a server
    that has imported everything, and get it while they work.
    """
    folder, starts = fresh(root), draw.randrange(FRESH) == 0
    process = run.start(folder, fresh=starts)
    time.sleep(draw.uniform(0, STARTING if starts else run.seconds))
    process.send_signal(number)
    twice = number != signal.SIGKILL and draw.random() < 0.5
    if twice:
        time.sleep(PAUSE)
        process.send_signal(number)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    took, code = time.monotonic() - began, process.returncode
    end = "done" if code == 0 else "killed" if code < 0 else "orderly"
    if b"KeyboardInterrupt" in err and b"gencli/" not in err:  # before its first line, where only the interpreter is
        return "interpreter's", ""
    if code not in (0, 128 + number, -number) or b"Traceback" in err or b"defect" in err:
        return end, f"exit code {code}: {err[-600:]!r}"
    if twice and took > AT_ONCE:
        return end, f"{took:.1f} s after a second signal"
    left = [file.name for file in folder.rglob(".gencli-*")]
    if left and not twice and number != signal.SIGKILL:
        return end, f"left behind: {left}"
    return end, run.check(folder, (folder / "stdout").read_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=list(KINDS))
    parser.add_argument("--count", type=int, default=100, help="runs of each kind (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, wrong = random.Random(args.seed), 0
    with Hub() as hub, tempfile.TemporaryDirectory() as name:
        os.environ["OMP_NUM_THREADS"] = "1"
        start("--version").communicate()  # starts the server
        for kind in args.kinds or KINDS:
            root = Path(name) / kind
            root.mkdir()
            run, ends = KINDS[kind](root, hub), Counter[str]()
            for count in range(args.count):
                number = SIGNALS[count % len(SIGNALS)]
                end, problem = interrupt(run, number, root, draw)
                ends[end] += 1
                if problem:
                    wrong += 1
                    print(f"{kind}, {number.name}: {problem}", flush=True)
            told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
            print(f"| {kind} | {args.count} | {run.seconds:.1f} s | {told} |", flush=True)
    print(f"{wrong} wrong")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())

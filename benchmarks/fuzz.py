"""Mutated inputs of every kind that gencli reads: each must be read, or refused in one short line.

    python -m benchmarks.fuzz                                # 10 minutes in all
    python -m benchmarks.fuzz --seconds 3600 tokenizer lora  # longer, these kinds alone
    python -m benchmarks.fuzz --inputs 5000                  # so many of each kind, however long it takes

An input is told by its kind and number: `--from N --inputs 1 KIND` runs one again. Findings: another exception than
GencliError ("a defect of gencli"), over 5 s of processor time, memory beyond twice the input and 1 GB, a message over
2 kB, words on stderr from a library, a file outside of the input's folder. `benchmarks.fuzz_kinds` has the kinds of
files, `benchmarks.fuzz_live` a hub's answers and command lines; each input is first read as it is, which must succeed.
Inputs run in this process's forks, a batch each, which the system ends when they exceed a limit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a pool of threads does not outlive a fork

SECONDS, MEMORY, MESSAGE = 5, 2**30, 2048
PATIENCE = 120  # seconds by the clock, for what waits and does not work
BATCH = 500
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.5, 4.0, 1e308, float("nan"),
    float("inf"), "", "a", " ", "\0", "../x", "/etc/passwd", "\ud800", "x" * 5000, "é" * 300, [], {}, [[]], [0], [None],
    ["a"], [1, 2, 3], {"a": 1}, [0] * 10000, {"type": "Sequence"}, "<|endoftext|>", "1", "-1", "1e9", "\x1b[2J\n",
]  # fmt: skip


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """Change some bytes: flip, cut, repeat, insert, swap."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        at = draw.randrange(len(found) + 1)
        size = draw.choice((1, 1, 2, 4, 8, 100))
        how = draw.randrange(7)
        if how == 0 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif how == 1:
            found[at : at + size] = draw.randbytes(size)
        elif how == 2:
            del found[at : at + size]
        elif how == 3:
            found[at:at] = found[at : at + size] * draw.choice((1, 3, 50))
        elif how == 4:
            found[at : at + 8] = draw.choice((0, 1, 255, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)).to_bytes(
                8, "little"
            )
        elif how == 5:
            del found[at:]
        else:
            found[at:at] = draw.choice(
                (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b'"', b"{{", b"[" * 3000, b"\x1b[")
            )
    return bytes(found)


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a JSON value; of long lists the first ones."""
    found = [here] if here else []
    if isinstance(value, dict):
        for key in list(value)[:200]:
            found += places(value[key], (*here, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 5)):
            found += places(value[index], (*here, index))
    return found


def mutate_json(value: Any, draw: random.Random) -> Any:
    """Change some values of a JSON value: others in their place, keys gone, renamed or new, deep and long ones."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        paths = places(value)
        if not paths:
            break
        *way, last = draw.choice(paths)
        at = value
        for key in way:
            at = at[key]
        how = draw.randrange(8)
        if how < 4:
            at[last] = draw.choice(ODD)
        elif how == 4:
            del at[last]
        elif how == 5 and isinstance(at, dict):
            at[str(draw.choice(ODD))[:6000]] = at.pop(last) if draw.random() < 0.5 else draw.choice(ODD)
        elif how == 6 and isinstance(at[last], int | float):
            at[last] = at[last] * draw.choice((-1, 0, 2, 0.5, 1000, 10**9)) + draw.choice((0, 1, -1))
        else:
            deep: Any = at[last]
            for _ in range(draw.choice((1, 10, 500))):
                deep = [deep] if draw.random() < 0.5 else {"a": deep}
            at[last] = deep
    return value


@dataclass
class Tally:
    """What became of the inputs of one kind. findings: what is wrong → numbers of inputs."""

    read: int = 0
    refused: int = 0
    findings: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def inputs(self) -> int:
        return self.read + self.refused + sum(map(len, self.findings.values()))


def told(error: BaseException) -> str:
    """Return what is wrong with an error, or "" for one in plain words."""
    from gencli.__main__ import _in_plain_words
    from gencli.errors import GencliError

    known = error if isinstance(error, GencliError) else _in_plain_words(error)
    if "defect" in (known.hint or ""):
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "gencli/" in frame.filename]
        where = f" at {'/'.join(frames[-1].filename.split('/')[-2:])}:{frames[-1].lineno}" if frames else ""
        return f"{type(error).__name__}{where}: {str(error)[:100]!r}"
    if known.message.startswith("out of memory"):
        return f"memory: {known.message[:100]}"
    size = len(f"error: {known.message}\nhint: {known.hint}".encode(errors="replace"))
    return f"message of {size} bytes: {known.message[:60]!r}" if size > MESSAGE else ""


def one(kind: Any, number: int, words: int) -> tuple[str, bool]:
    """Read one input. Return what is wrong, if anything, and whether it was refused. words: the file behind stderr."""
    draw = random.Random(f"{kind.name} {number}")
    os.ftruncate(words, 0)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + SECONDS + 2, resource.RLIM_INFINITY))
    signal.alarm(PATIENCE)
    size, refused, wrong = kind.mutate(draw), False, ""
    try:
        kind.read()
    except BaseException as error:
        wrong, refused = told(error), True
    finally:
        kind.restore()
    after = resource.getrusage(resource.RUSAGE_SELF)
    if (took := after.ru_utime + after.ru_stime - seconds) > SECONDS:
        wrong = wrong or f"{took:.1f} s"
    if (grown := (after.ru_maxrss - used.ru_maxrss) * 1024) > MEMORY + 2 * size:
        wrong = wrong or f"memory: {grown >> 20} MB"
    if os.fstat(words).st_size:
        wrong = wrong or f"on stderr: {os.pread(words, 120, 0)!r}"
    return wrong, refused


def work(kind: Any, numbers: range, out: int) -> None:
    """In a fork: read a batch, and write a line for each input before and after it."""
    words = os.open(tempfile.mkdtemp() + "/stderr", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(words, 2)
    here = sum(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line)
    resource.setrlimit(resource.RLIMIT_AS, (here * 1024 + MEMORY + 2**26, resource.RLIM_INFINITY))
    for number in numbers:
        os.write(out, b"%d\n" % number)
        os.write(out, (json.dumps([number, *one(kind, number, words)]) + "\n").encode())
    os._exit(0)


def batch(kind: Any, numbers: range, tally: Tally) -> int:
    """Read a batch in a fork. Return the number after the last input that it came to."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            work(kind, numbers, writer)
        finally:
            os._exit(1)
    os.close(writer)
    last, done = numbers.start - 1, -1
    with os.fdopen(reader) as lines:
        for line in lines:
            value = json.loads(line)
            if isinstance(value, int):
                last = value
                continue
            done, wrong, refused = value
            if wrong:
                tally.findings.setdefault(wrong, []).append(done)
            elif refused:
                tally.refused += 1
            else:
                tally.read += 1
    _, status = os.waitpid(child, 0)
    if last != done:
        kind.restore()
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        limits = {signal.SIGXCPU: f"over {SECONDS} s", signal.SIGALRM: f"waits over {PATIENCE} s"}
        wrong = limits.get(ended, f"the process ended (status {status})")
        tally.findings.setdefault(wrong, []).append(last)
    return last + 1


def main() -> int:
    from benchmarks.fuzz_kinds import KINDS as READ
    from benchmarks.fuzz_live import KINDS as LIVE

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=600, help="for all kinds together (default: 600)")
    parser.add_argument("--inputs", type=int, help="of each kind, in place of --seconds")
    parser.add_argument("--from", dest="first", type=int, default=0, help="number of the first input (default: 0)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    kinds = {**READ, **LIVE}
    names, tallies = args.kinds or list(kinds), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            root = Path(folder) / name.replace(" ", "-") / "inside"
            root.mkdir(parents=True)
            kind, tally, number = kinds[name](name, root), Tally(), args.first
            kind.read_whole()
            before = {path for path in root.parent.rglob("*") if root not in path.parents}
            began, most = time.monotonic(), args.seconds / len(names)
            while time.monotonic() - began < most if args.inputs is None else number < args.first + args.inputs:
                size = BATCH if args.inputs is None else min(BATCH, args.first + args.inputs - number)
                number = batch(kind, range(number, number + size), tally)
            outside = {path for path in root.parent.rglob("*") if root not in path.parents} - before
            if outside:
                tally.findings[f"files outside: {sorted(map(str, outside))[:3]}"] = [number]
            wrong = sum(map(len, tally.findings.values()))
            tallies.update(inputs=tally.inputs, wrong=wrong)
            rate = tally.inputs / max(time.monotonic() - began, 1e-9)
            row = (
                name,
                tally.inputs,
                f"{tally.read} read",
                f"{tally.refused} refused",
                f"{wrong} wrong",
                f"{rate:.0f}/s",
            )
            print("|", " | ".join(map(str, row)), "|", flush=True)
            for what, numbers in sorted(tally.findings.items(), key=lambda row: -len(row[1])):
                print(f"    {len(numbers)} times, first {numbers[0]}: {what}", flush=True)
    print(f"{tallies['inputs']} inputs, {tallies['wrong']} wrong")
    return tallies["wrong"] > 0


if __name__ == "__main__":
    sys.exit(main())

"""Two workers against one, each with one thread: tokens per second of a whole run, its start left out.

    python -m benchmarks.bench_many [--lines N] [--tokens N] [-m MODEL]

The rates are those of `--stats`. The time of a run of one block per worker is taken off both, so that starting Python,
torch and the model does not count: what is left is the rate of the work itself. Lines are a multiple of two blocks, so
that no worker has one more than the other.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time

LIMIT = 1.8  # times the rate of one worker
PROMPTS = ["Once upon a time", "The dog ran to the", "She had a red ball and", "In the end they"]


def seconds(model: str, workers: int, lines: int, tokens: int) -> tuple[float, int]:
    """Run; return wall seconds and tokens."""
    command = [sys.executable, "-m", "gencli", "text", "--lines", "-m", model, "--workers", str(workers), "--stats"]
    command += ["-n", str(tokens), "-s", "1", "--threads", "1", "--no-server"]
    prompts = "".join(f"{PROMPTS[i % len(PROMPTS)]}\n" for i in range(lines))
    began = time.perf_counter()
    done = subprocess.run(command, input=prompts, capture_output=True, text=True, check=True)
    took = time.perf_counter() - began
    rate = re.search(r"in ([\d.]+) s, .*?([\d.]+) tokens/s", done.stderr)
    assert rate is not None, done.stderr
    return took, round(float(rate[1]) * float(rate[2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="stories")
    parser.add_argument("--lines", type=int, default=1024, help="of the long run")
    parser.add_argument("--tokens", type=int, default=100, help="per line")
    asked = parser.parse_args()
    rates = {}
    for workers in (1, 2):
        short = seconds(asked.model, workers, 64 * workers, asked.tokens)
        long = seconds(asked.model, workers, -(-asked.lines // 128) * 128, asked.tokens)
        rates[workers] = (long[1] - short[1]) / (long[0] - short[0])
        print(f"{workers} workers: {rates[workers]:.0f} tokens/s (load {os.getloadavg()[0]:.1f})", flush=True)
    print(f"{rates[2] / rates[1]:.2f} times (wanted: at least {LIMIT})")
    if rates[2] < LIMIT * rates[1]:
        sys.exit(1)


if __name__ == "__main__":
    main()

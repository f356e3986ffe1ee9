"""A server under many clients: is any answer wrong, mixed or lost, and how much do clients gain by sharing a batch?

    python -m benchmarks.bench_serve                              # 64 clients for 60 s on `stories`
    python -m benchmarks.bench_serve -m big.gguf --rates --clients 8 --tokens 64    # tokens per second of 8 against 1

Every client asks for texts whose right answer was made before, one at a time. A refusal must be a 429 with Retry-After.
With --rates answers are not compared: a model of random weights has near ties, which the rounding of sums decides.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai

SEEDS = 8


@contextlib.contextmanager
def serving(model: str, *args: str) -> Iterator[str]:
    """A server of one model; its URL."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["serve", "-m", model, "--socket", f"{folder}/s.sock", "--listen", "0", *args]
        process = subprocess.Popen([sys.executable, "-m", "gencli", *words], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


class Clients:
    """Clients that ask for texts again and again until the time is over; what they got."""

    def __init__(self, url: str, model: str, tokens: int):
        self.url, self.model, self.tokens = url, model, tokens
        self.known: dict[int, str] = {}
        self.got: Counter[str] = Counter()
        self.lock = threading.Lock()

    def ask(self, client: openai.OpenAI, seed: int) -> str:
        """Return the text of a seed: each has its own answer."""
        body: dict[str, Any] = {"model": self.model, "prompt": f"Once upon {seed}", "seed": seed}
        made = client.completions.create(**body, max_tokens=self.tokens)
        return made.choices[0].text

    def connect(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=600)

    def learn(self) -> None:
        """Get the right answers, one after the other."""
        client = self.connect()
        self.known = {seed: self.ask(client, seed) for seed in range(SEEDS)}

    def run(self, number: int, seconds: float) -> float:
        """Let so many clients ask for so long; return answers per second."""
        self.got.clear()
        began = time.monotonic()
        threads = [threading.Thread(target=self._go, args=(i, began + seconds)) for i in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (self.got["right"] + self.got["wrong"]) / (time.monotonic() - began)

    def _go(self, number: int, until: float) -> None:
        client, turn = self.connect(), number
        while time.monotonic() < until:
            seed, turn = turn % SEEDS, turn + 1
            try:
                what = "right" if self.ask(client, seed) == self.known.get(seed) or not self.known else "wrong"
            except openai.RateLimitError as error:
                wait = error.response.headers.get("retry-after", "")
                what = "refused" if wait else "refused without a time"
                time.sleep(float(wait or 1))
            except openai.OpenAIError as error:
                what = type(error).__name__
            with self.lock:
                self.got[what] += 1


def main() -> int:
    """Print what clients got; return 1 where an answer was wrong or lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="stories")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--queue", type=int, default=32)
    parser.add_argument("--rates", action="store_true")
    asked = parser.parse_args()
    name = Path(asked.model).stem if os.path.exists(asked.model) else asked.model
    with serving(asked.model, "--queue", str(asked.queue)) as url:
        clients = Clients(url, name, asked.tokens)
        if asked.rates:
            clients.ask(clients.connect(), 0)
        else:
            clients.learn()
        alone = clients.run(1, asked.seconds / 4) * asked.tokens
        print(f"1 client: {alone:.1f} tokens/s, {dict(clients.got)}")
        together = clients.run(asked.clients, asked.seconds) * asked.tokens
        load = os.getloadavg()[0]
        print(f"{asked.clients} clients: {together:.1f} tokens/s, {together / alone:.2f} times; {dict(clients.got)}")
        print(f"load of the machine: {load:.1f}")
        return int(bool(clients.got.keys() - {"right", "refused"}))


if __name__ == "__main__":
    sys.exit(main())

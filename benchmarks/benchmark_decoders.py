"""Decode speed and memory of a decoder beside transformers, in one run: `python -m benchmarks.benchmark_decoders`.

Writes a seeded checkpoint of a real model's shape into a temporary folder (1.1B in bfloat16: 2.2 GB), opens it with
both, and decodes with both in turns. Nothing gates on the figures: only the ratio means something, and only roughly.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from gencli.checkpoints.build import load
from tests.tiny.decoder_cases import llama, plain
from tests.tiny.decoders import Case, make_decoder

SHAPES = {
    "1.1b": {  # TinyLlama
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
    },
    "135m": {  # SmolLM2
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def resident() -> float:
    """Memory of this process that is its own, in MB: pages of mapped files do not count."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


def decoder(step: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor) -> Callable[[int], float]:
    """Prefill now; then tokens per second of so many greedy steps."""
    last = step(ids).argmax(-1, keepdim=True)

    def run(count: int) -> float:
        nonlocal last
        start = time.perf_counter()
        for _ in range(count):
            last = step(last).argmax(-1, keepdim=True)
        return count / (time.perf_counter() - start)

    return run


@torch.inference_mode()
def compare(case: Case, folder: Path, dtype: torch.dtype, rounds: int, count: int) -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    make_decoder(folder, case, dtype=dtype)
    size = (folder / "model.safetensors").stat().st_size / 2**20
    before, start = resident(), time.perf_counter()
    ours = load(folder)
    print(f"opened {size:.0f} MB in {time.perf_counter() - start:.2f} s: own memory +{resident() - before:.0f} MB")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    ids = torch.randint(3, 1000, (1, 32), generator=torch.Generator().manual_seed(0))
    cache: Any = ours.new_cache(1, 32 + (rounds + 1) * count)  # type: ignore[operator]
    past = transformers.DynamicCache(config=theirs.config)
    mine = decoder(lambda x: ours(x, cache, last_only=True)[:, -1], ids)
    other = decoder(lambda x: theirs(x, past_key_values=past, logits_to_keep=1).logits[:, -1], ids)
    mine(count), other(count)
    pairs = [(mine(count), other(count)) for _ in range(rounds)]
    speeds = [statistics.median(column) for column in zip(*pairs, strict=True)]
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"decode: gencli {speeds[0]:.1f}, transformers {speeds[1]:.1f} tokens/s, ratio {ratio:.2f} (median of pairs)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES, nargs="?", default="1.1b")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="per round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = llama(options.shape, SHAPES[options.shape], *plain(10000.0))
    with tempfile.TemporaryDirectory() as folder:
        compare(case, Path(folder), getattr(torch, options.dtype), options.rounds, options.tokens)


if __name__ == "__main__":
    main()

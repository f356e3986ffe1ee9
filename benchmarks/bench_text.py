"""Speed of `gencli text`, beside transformers and bare imports, in one run: `python benchmarks/bench_text.py [ROUNDS]`.

Not collected by pytest, and no test depends on it: times are for a quiet machine, and ratios for pairs taken in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
TOKENS = 64
PROMPT = "ab cd ef gh ij kl mn op"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=5, metavar="ROUNDS")
    rounds = parser.parse_args().rounds
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
        print(f"{rounds} rounds, {torch.get_num_threads()} threads, torch {torch.__version__}; medians")
        compare_help(rounds)
        compare_start(Path(folder), rounds)
        compare_decode(Path(folder), rounds)


def write_checkpoint(folder: Path) -> None:
    """GPT-2 in the shape of the 124M model: random weights, and a vocabulary of its true size."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(product(alphabet, alphabet), 50_000))
    pieces = [*alphabet, *(a + b for a, b in merges), "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder)


def compare_help(rounds: int) -> None:
    """`gencli --help` against importing what it is made with. Wanted: at most 2."""
    report(
        "gencli --help / import typer, rich (s)",
        rounds,
        lambda: timed([sys.executable, "-m", "gencli", "--help"]),
        lambda: timed([sys.executable, "-c", "import typer, rich"]),
    )


def compare_start(folder: Path, rounds: int) -> None:
    """Process start to first byte of text, against importing torch and reading the weights. Wanted: at most 1.3."""
    weights = folder / "model.safetensors"
    command = [sys.executable, "-m", "gencli", "text", PROMPT, "-m", str(folder), "-n", "1000", "--temperature", "0"]
    report(
        "first token / (import torch + reading weights) (s)",
        rounds,
        lambda: first_byte(command),
        lambda: timed([sys.executable, "-c", "import torch"]) + timed(["cat", str(weights)]),
    )


def compare_decode(folder: Path, rounds: int) -> None:
    """Greedy decoding of the same tokens in fp32, and sampling with the defaults. Wanted: at least 1.05."""
    import transformers

    from gencli.checkpoints.find import Source
    from gencli.text.events import GenerationStats
    from gencli.text.generate import generate
    from gencli.text.load import open_model
    from gencli.text.request import TextRequest

    reference = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    model = open_model(Source("bench", folder, "folder"))
    ids = torch.tensor([model.tokenizer.encode(PROMPT)])
    never = ((model.vocab_size - 1, -float("inf")),)  # the end token

    def ours(batch: int, **settings: float) -> float:
        request = TextRequest.of(PROMPT, max_tokens=TOKENS, num_samples=batch, logit_bias=never, **settings)
        stats = GenerationStats()
        start = time.perf_counter()
        list(generate(model, request, stats))
        assert stats.generated == TOKENS * batch
        return TOKENS * batch / (time.perf_counter() - start)

    def theirs(batch: int, **settings: object) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            done = reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TOKENS,
                num_return_sequences=batch,
                suppress_tokens=[model.vocab_size - 1],
                pad_token_id=0,
                **settings,
            )
        assert done.shape == (batch, ids.shape[1] + TOKENS)
        return TOKENS * batch / (time.perf_counter() - start)

    sampled = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}
    cases: list[tuple[str, Callable[[], float], Callable[[], float]]] = [
        ("greedy", lambda: ours(1, temperature=0), lambda: theirs(1, do_sample=False)),
        ("sampled", lambda: ours(1, **sampled), lambda: theirs(1, do_sample=True, **sampled)),
        ("sampled, batch 8", lambda: ours(8, **sampled), lambda: theirs(8, do_sample=True, **sampled)),
    ]
    for name, mine, other in cases:
        mine(), other()  # both have run once
        report(f"gencli / transformers, {name} (tokens/s)", rounds, mine, other)


def report(title: str, rounds: int, ours: Callable[[], float], theirs: Callable[[], float]) -> None:
    """Measure both in turn; print the medians, and the median of the ratios with their range."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{title}: {first:.3f} / {second:.3f} = {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
        flush=True,
    )


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - start


def first_byte(command: list[str]) -> float:
    """Seconds until a process has written something; it is then ended."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    assert process.stdout and os.read(process.stdout.fileno(), 1)
    seconds = time.perf_counter() - start
    process.terminate()
    process.communicate()
    return seconds


if __name__ == "__main__":
    main()

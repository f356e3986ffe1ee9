"""What guesses gain: tokens per second with a draft, with lookup and without, in turns.

`python -m benchmarks.bench_draft weights/stories DRAFT`. A draft is any smaller model of the same vocabulary, such as
`gencli train text STORIES -o DRAFT --layers 3 --width 128` makes in a folder with the story model's tokenizer.json.
Medians of --rounds texts of decoding alone, each of another prompt and seed. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

from gencli.checkpoints.find import Source
from gencli.models.linear import step_bytes
from gencli.text.events import GenerationStats
from gencli.text.generate import generate
from gencli.text.load import TextModel, open_model
from gencli.text.request import TextRequest
from gencli.text.speculation import Draft, Guesser, Lookup, price

PROMPTS = ("Once upon a time", "Tom had a red ball.", "The little dog was sad.", "One day, Lily", "It was a sunny day")


def opened(path: str) -> TextModel:
    return open_model(Source(path, Path(path), "folder" if Path(path).is_dir() else "file"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("draft")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    args = parser.parse_args()
    model, draft = opened(args.model), opened(args.draft)
    size = step_bytes(draft.module) / step_bytes(model.module)
    print(f"{model.describe()}; draft of {size:.2f} of the bytes")

    def guesser(how: str, stats: GenerationStats) -> Guesser | None:
        if how == "draft":
            return Draft(draft.module, model.vocab_size, stats, price(model.module, draft.module))
        return Lookup(stats, price(model.module)) if how == "lookup" else None

    for temperature in (0.0, 0.8):
        rates, held = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
        for number in range(args.rounds + 1):
            for how in ("without", "draft", "lookup"):
                stats = GenerationStats()
                request = TextRequest.of(
                    PROMPTS[number % len(PROMPTS)], max_tokens=args.tokens, temperature=temperature, seed=number
                )
                for _ in generate(model, request, stats, guesser=guesser(how, stats)):
                    pass
                if number:  # the first warms up
                    rates[how].append(stats.decode_tokens / stats.decode_seconds)
                    held[how].append(stats.held / max(stats.guessed, 1))
        alone = statistics.median(rates["without"])
        for how, found in rates.items():
            rate = statistics.median(found)
            share = f", {statistics.median(held[how]):.0%} of the guesses held" if how != "without" else ""
            print(f"temperature {temperature}: {how:8}{rate:7.0f} tokens/s ({rate / alone:.2f}){share}")


if __name__ == "__main__":
    main()

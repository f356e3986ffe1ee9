"""How fast a language model runs here: reading a prompt, making tokens, and what memory and bandwidth that takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch

from gencli import devices
from gencli.kernels import library
from gencli.models.linear import step_bytes
from gencli.models.module import stored_as
from gencli.text.events import GenerationStats
from gencli.text.generate import generate
from gencli.text.load import TextModel
from gencli.text.request import TextRequest

WORDS = "Once upon a time there was a little girl who lived in a small house near the forest. "
SHORT = 8  # tokens of the prompt that decoding is measured after


def most(model: TextModel) -> tuple[int, int]:
    """Return how many tokens a model's context has room for: of a prompt, and made."""
    return model.max_length - 1, model.max_length - SHORT - 1


def measure(
    model: TextModel, batches: tuple[int, ...], prompt: int, tokens: int, rounds: int, bandwidth: float | None
) -> Iterator[dict[str, object]]:
    """Yield what is measured for each batch size, as `--json` has it; times of every round are in lists.

    prompt, tokens: how many are read and made, or what the context has room for. bandwidth: bytes per second that this
    machine reads, if it is known. The first round of each is not counted.
    """
    prompt, tokens = map(min, (prompt, tokens), most(model))
    ids = model.tokenizer.encode(WORDS * (prompt // 8 + 1))[:prompt]
    model = dataclasses.replace(model, generation_config={})
    kernels, size = library(), step_bytes(model.module)
    for batch in batches:
        devices.forget_peak_memory()
        reads = [_run(model, ids, 1, 1) for _ in range(rounds + 1)][1:]
        makes = [_run(model, ids[:SHORT], tokens + 1, batch) for _ in range(rounds + 1)][1:]
        rates = [stats.rate for stats in makes]
        shares = [rate / batch * size / bandwidth for rate in rates] if bandwidth else []
        yield {
            "model": model.name, "weights": stored_as(model.module).removeprefix("torch.").lower(), "batch": batch,
            "prompt_tokens": len(ids), "decode_tokens": tokens,
            "prompt_rate": [stats.prompt_tokens / stats.prompt_seconds for stats in reads],
            "first_token_seconds": [stats.prompt_seconds for stats in reads],
            "decode_rate": rates, "bandwidth_share": shares, "load_seconds": model.load_seconds,
            "weight_bytes": size, "bandwidth": bandwidth, "peak_memory": devices.peak_memory(),
            "device": str(model.device), "dtype": str(model.module.compute_dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(), "kernels": kernels.variant if kernels else None,
        }  # fmt: skip


def _run(model: TextModel, ids: list[int], tokens: int, batch: int) -> GenerationStats:
    ends = tuple((token, -math.inf) for token in model.tokenizer.eos_ids)  # never, so that all have their length
    request = TextRequest.of("", max_tokens=tokens, num_samples=batch, temperature=0, seed=0, logit_bias=ends)
    stats = GenerationStats()
    for _ in generate(model, request, stats, ids=ids):
        pass
    return stats

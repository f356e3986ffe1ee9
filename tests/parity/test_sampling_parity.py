"""Probabilities equal those after transformers' logits processors, and picks come as often as they should."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.oracles.libraries import scipy_stats, transformers
from tests.oracles.sampled import process, sample
from tests.tiny.text import make_gpt2

GRID = {
    "repeat_penalty": [1.0, 1.3, 0.7],
    "temperature": [1.0, 0.6, 1.7],
    "top_k": [0, 1, 40],
    "top_p": [1.0, 0.9, 0.2],
    "min_p": [0.0, 0.05],
    "typical_p": [1.0, 0.8, 0.2],
}
CELLS = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]


def by_transformers(logits: torch.Tensor, context: torch.Tensor, settings: dict, bias: dict | None = None):
    """What transformers' `generate` does to logits, in its order."""
    rows: list = []
    if bias:
        rows.append(
            transformers.generation.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
        )
    if settings.get("repeat_penalty", 1.0) != 1:
        rows.append(transformers.generation.RepetitionPenaltyLogitsProcessor(settings["repeat_penalty"]))
    if settings.get("temperature", 1.0) != 1:
        rows.append(transformers.generation.TemperatureLogitsWarper(settings["temperature"]))
    if settings.get("top_k"):
        rows.append(transformers.generation.TopKLogitsWarper(settings["top_k"]))
    if settings.get("top_p", 1.0) < 1:
        rows.append(transformers.generation.TopPLogitsWarper(settings["top_p"]))
    if settings.get("min_p"):
        rows.append(transformers.generation.MinPLogitsWarper(settings["min_p"]))
    if settings.get("typical_p", 1.0) < 1:
        rows.append(transformers.generation.TypicalLogitsWarper(settings["typical_p"]))
    return transformers.generation.LogitsProcessorList(rows)(context, logits)


def some(seed: int, rows: int, size: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (rows, size) without ties, and a context (rows, 20) with repetitions."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(rows, size, generator=generator)
    return logits, torch.randint(size // 4, (rows, 20), generator=generator)


@pytest.mark.parametrize("spread", [0.5, 3.0, 10.0])
def test_probabilities_over_the_grid(spread):
    assert len(CELLS) == 486
    for seed, settings in enumerate(CELLS):
        logits, context = some(seed, 3, 500, spread)
        ours = process(logits, context=context, **settings).softmax(-1)
        theirs = by_transformers(logits, context, settings).softmax(-1)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0, msg=lambda text, s=settings: f"{s}\n{text}")


@pytest.mark.parametrize("settings", CELLS[:: len(CELLS) // 40])
def test_probabilities_of_a_large_vocabulary(settings):
    logits, context = some(7, 2, 50257, 3.0)
    ours = process(logits, context=context, **settings).softmax(-1)
    theirs = by_transformers(logits, context, settings).softmax(-1)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_bias_comes_before_everything():
    for seed in range(20):
        logits, context = some(seed, 3, 500, 3.0)
        bias = {0: 4.0, 5: -3.0, 77: 50.0, 499: -float("inf")}
        settings = {
            "repeat_penalty": 1.5,
            "temperature": 0.8,
            "top_k": 30,
            "top_p": 0.9,
            "min_p": 0.01,
            "typical_p": 0.9,
        }
        ours = process(logits, context=context, logit_bias=list(bias.items()), **settings).softmax(-1)
        theirs = by_transformers(logits, context, settings, bias).softmax(-1)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_the_order_is_that_of_generate(tmp_path):
    """Scores of a real `generate`, with every setting on, at each of its steps."""
    model = transformers.GPT2LMHeadModel.from_pretrained(make_gpt2(tmp_path))
    prompt = torch.randint(380, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        max_new_tokens=20,
        sequence_bias=[[[5], 2.0], [[7], -3.0]],
        repetition_penalty=1.4,
        temperature=0.7,
        top_k=50,
        top_p=0.9,
        min_p=0.01,
        typical_p=0.9,
        eos_token_id=-1,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    assert len(out.scores) == 20
    for step, (logits, scores) in enumerate(zip(out.logits, out.scores, strict=True)):
        ours = process(
            logits,
            context=out.sequences[:, : 9 + step],
            logit_bias=[(5, 2.0), (7, -3.0)],
            repeat_penalty=1.4,
            temperature=0.7,
            top_k=50,
            top_p=0.9,
            min_p=0.01,
            typical_p=0.9,
        )
        torch.testing.assert_close(ours.softmax(-1), scores.softmax(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {}),
        (1, {"temperature": 0.7, "top_k": 12}),
        (2, {"temperature": 1.4, "top_p": 0.85}),
        (3, {"min_p": 0.05, "typical_p": 0.8}),
        (4, {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.95}),
    ],
)
def test_frequencies_of_20000_draws(seed, settings):
    """100 rows, each with its own seed, 200 draws each, against transformers' probabilities (chi-square)."""
    logits = 1.5 * torch.randn(1, 40, generator=torch.Generator().manual_seed(seed))
    generators = [torch.Generator().manual_seed(1000 * seed + row) for row in range(100)]
    rows = logits.expand(100, -1)
    draws = torch.cat([sample(rows, generators, **settings) for _ in range(200)])
    seen = draws.bincount(minlength=40).double()
    expected = by_transformers(logits, torch.zeros(1, 1, dtype=torch.long), settings).softmax(-1)[0].double() * 20_000
    assert (seen[expected == 0] == 0).all()
    common = expected >= 5  # the chi-square test wants no smaller cells: the others are counted as one
    cells = [torch.cat([x[common], x[~common].sum()[None]]) for x in (seen, expected / expected.sum() * 20_000)]
    cells = [x if expected[~common].sum() > 0 else x[:-1] for x in cells]
    assert scipy_stats.chisquare(*cells).pvalue > 0.001

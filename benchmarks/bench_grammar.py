"""Structured output: is all that is sampled valid, and what does a mask cost? `python -m benchmarks.bench_grammar`.

Samples texts at temperature 2 over the schemas of tests/data/schemas.jsonl, from models that find every token equally
likely (of bytes, of SentencePiece's pieces, of byte-level BPE), and has jsonschema look at each. Then a mask's time
beside that of a step of a decoder of 1B shape, in bfloat16, with vocabularies of 32k and 128k pieces that are learned
from the Python files of this installation. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gencli.checkpoints.build import load
from gencli.checkpoints.find import Source
from gencli.text.constraint import Constraint, vocabulary
from gencli.text.events import Completion
from gencli.text.generate import Job, generate_all
from gencli.text.load import TextModel, open_model
from gencli.text.request import TextRequest
from gencli.tokens.load import load_tokenizer
from tests.tiny.decoder_cases import llama, plain
from tests.tiny.decoders import make_decoder
from tests.tiny.scripted import bytes_tokenizer, make_scripted, pieces_tokenizer
from tests.tiny.text import END, make_gpt2

SCHEMAS = (Path(__file__).parents[1] / "tests" / "data" / "schemas.jsonl").read_text(encoding="utf-8").splitlines()
SHAPE = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
ANSWER = json.dumps(  # what a mask is measured along
    {
        "name": "Ada Lovelace",
        "born": 1815,
        "tags": ["mathematics", "poetry", "engines"],
        "about": "She wrote programs. " * 6,
    }
)
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "born": {"type": "integer", "minimum": 0, "maximum": 2100},
            "tags": {"type": "array", "items": {"type": "string"}},
            "about": {"type": "string"},
        },
        "required": ["name", "born", "tags", "about"],
        "additionalProperties": False,
    }
)


def opened(folder: Path) -> TextModel:
    return open_model(Source(folder.name, folder, "folder"))


def small_models(folder: Path) -> dict[str, TextModel]:
    made = {"byte-level BPE": opened(make_gpt2(folder / "gpt2", seed=1, n_positions=8192))}
    for name, backend, end in (
        ("bytes", bytes_tokenizer(END, "<|im_start|>"), 256),
        ("pieces", pieces_tokenizer("llama"), 2),
    ):
        there = make_scripted(folder / name, backend, [], 1, generation={"eos_token_id": end}, positions=8192)
        made[name] = opened(there)
    return made


def check(model: TextModel, count: int, seed: int) -> collections.Counter[str]:
    """Sample so many texts, and count those that are valid, cut off by the limit, and wrong."""
    validators = [jsonschema.Draft202012Validator(json.loads(schema)) for schema in SCHEMAS]
    settings = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "max_tokens": 8000}
    jobs = (Job(TextRequest.of("x", schema=SCHEMAS[i % 50], seed=seed + i, **settings)) for i in range(count))
    found = collections.Counter[str]()
    for event in generate_all(model, jobs, batch=32):
        if isinstance(event, Completion):
            found["tokens"] += event.completion_tokens
            if event.finish_reason == "length":
                found["cut off"] += 1
                continue
            try:
                validators[event.index % 50].validate(json.loads(event.text))
                found["valid"] += 1
            except (ValueError, jsonschema.ValidationError) as error:
                found["wrong"] += 1
                print(f"wrong: {SCHEMAS[event.index % 50]}: {event.text!r}: {error!s:.100}")
    return found


def python_files(most: int) -> Iterator[str]:
    """Yield texts of this installation's Python files, so many characters in all."""
    paths = sysconfig.get_paths()
    files = (file for key in ("stdlib", "purelib") for file in sorted(Path(paths[key]).rglob("*.py")))
    for file in files:
        text = file.read_text(encoding="utf-8", errors="ignore")
        yield text
        most -= len(text)
        if most < 0:
            return


def learned(size: int, characters: int) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    made.train_from_iterator(python_files(characters), trainer)
    made.add_special_tokens([END])
    return made


def cost(size: int, folder: Path, rounds: int, characters: int) -> None:
    tokenizer = learned(size, characters)
    size = tokenizer.get_vocab_size()
    case = llama("1b", {"vocab_size": size, **SHAPE}, *plain(10000.0))
    make_decoder(folder, case, dtype=torch.bfloat16)
    tokenizer.save(str(folder / "tokenizer.json"))
    module = load(folder, layerwise_casting=True)
    model = TextModel("1b", module, load_tokenizer(folder), {}, 0.0)  # type: ignore[arg-type]
    start = time.perf_counter()
    vocabulary(model)
    built = time.perf_counter() - start
    start = time.perf_counter()
    constraint = Constraint(model, SCHEMA, None)
    compiled = time.perf_counter() - start
    ids = model.tokenizer.encode(ANSWER, add_special_tokens=False)
    masks, logits = [], torch.randn(1, size)
    for token in ids:
        start = time.perf_counter()
        logits.masked_fill(~torch.from_numpy(constraint.allowed()), -torch.inf)
        constraint.take(token)
        masks.append(1000 * (time.perf_counter() - start))
    with torch.inference_mode():
        cache = module.new_cache(1, 64 + rounds)  # type: ignore[operator]
        last = torch.tensor([ids[:64]])
        steps = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            last = module(last, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)
            steps.append(1000 * (time.perf_counter() - start))
    step, mask = statistics.median(steps[1:]), statistics.mean(masks)
    print(
        f"vocabulary of {size}: {len(ids)} tokens; mask mean {mask:.3f} ms, median {statistics.median(masks):.3f} ms, "
        f"most {max(masks):.3f} ms; step {step:.1f} ms; a mask is {mask / step:.2%} of a step; "
        f"once: vocabulary {built:.2f} s, schema {1000 * compiled:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--sizes", type=int, nargs="*", default=[32_000, 128_000])
    parser.add_argument("--characters", type=int, default=60_000_000, help="of Python files to learn pieces from")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        models_ = small_models(Path(made))
        for number, (name, model) in enumerate(models_.items()):
            start = time.perf_counter()
            share = len(range(number, options.samples, len(models_)))
            found = check(model, share, seed=number * options.samples)
            print(f"{name}: {dict(found)} in {time.perf_counter() - start:.0f} s")
        for size in options.sizes:
            cost(size, Path(made) / str(size), options.rounds, options.characters)


if __name__ == "__main__":
    main()

"""What gencli promises, and the tests that hold it.

promises.txt: every place where gencli reads something from outside. faults.txt: every fault that strangers' files and
days turned up once, by its number, and what is right since. A test that is renamed or removed must be replaced there:
`test_each_promise_is_held` looks for every name.
The fuzzer (`benchmarks/fuzz_kinds.py`) has a kind for each place that FUZZED names.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def rows(name: str) -> dict[str, list[str]]:
    """Return place → [promise, test, …] of a file that has `place: promise`, and below it its tests, one per line."""
    blocks = re.split(r"\n(?=\S)", (TESTS / name).read_text(encoding="utf-8").strip())
    parts = (block.partition(": ") for block in blocks)
    return {place: list(map(str.strip, rest.splitlines())) for place, _, rest in parts}


PLACES, FAULTS = rows("promises.txt"), rows("faults.txt")
FUZZED = {
    "safetensors": "safetensors", "index of shards": "index", "pickle": "pickle", "GGUF": "gguf",
    "image model in one file": "single file", "config.json": "config gpt2", "model_index.json": "diffusers",
    "tokenizer.json": "tokenizer", "tokenizer.model": "sentencepiece", "chat template": "template",
    "LoRA adapter": "adapter", "LoRA of images": "image lora", "embedding": "embedding", "image": "images",
    "metadata": "metadata", "preprocessor of a CLIP": "clip", "palette of an iGPT": "imagegpt",
    "prompt on stdin": "prompts", "examples, saved conversation": "conversations", "captions": "captions",
    "config file": "settings", "ollama's manifests": "ollama",
    "texts to train on": "texts", "state of a run": "state", "hub, paths": "hub",
    "argv": "command line", "scheduler_config.json": "stable diffusion", "systems of several models": "unclip",
    "ControlNet": "controlnet", "files beside a single file": "networks",
}  # fmt: skip


@pytest.mark.parametrize("row", [*PLACES.values(), *FAULTS.values()], ids=[*PLACES, *FAULTS])
def test_each_promise_is_held(row: list[str]):
    promise, *names = row
    assert promise and names
    for name in names:
        file, _, function = name.partition("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_places_are_fuzzed():
    source = "".join((TESTS.parent / "benchmarks" / f"fuzz_{name}.py").read_text() for name in ("kinds", "live"))
    kinds = set(re.findall(r'^    "([a-z0-9 ]+)": ', source, re.M)) | set(
        re.findall(r'"([a-z ]+)": [A-Za-z]+Kind', source)
    )
    assert FUZZED.keys() <= PLACES.keys() and set(FUZZED.values()) <= kinds

"""Every place where gencli reads something from outside, its promise there, and the tests that hold it: promises.txt.

A test that is renamed or removed must be replaced there: `test_each_promise_is_held` looks for every name.
The fuzzer (`benchmarks/fuzz_kinds.py`) has a kind for each place that FUZZED names.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# `place: promise`, and below it its tests, one a line
FILE = TESTS / "promises.txt"
ROWS = [block.splitlines() for block in re.split(r"\n(?=\S)", FILE.read_text(encoding="utf-8").strip())]
PLACES = [row[0].partition(": ")[0] for row in ROWS]
FUZZED = {
    "safetensors": "safetensors", "index of shards": "index", "pickle": "pickle", "GGUF": "gguf",
    "image model in one file": "single file", "config.json": "config gpt2", "model_index.json": "diffusers",
    "tokenizer.json": "tokenizer", "tokenizer.model": "sentencepiece", "chat template": "template",
    "LoRA adapter": "adapter", "LoRA of images": "image lora", "embedding": "embedding", "image": "images",
    "metadata": "metadata", "preprocessor of a CLIP": "clip", "palette of an iGPT": "imagegpt",
    "prompt on stdin": "prompts", "examples, saved conversation": "conversations", "captions": "captions",
    "config file": "settings",
    "texts to train on": "texts", "state of a run": "state", "hub, paths": "hub",
    "argv": "command line", "scheduler_config.json": "stable diffusion", "systems of several models": "unclip",
    "ControlNet": "controlnet", "files beside a single file": "networks",
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=PLACES)
def test_each_promise_is_held(row: list[str]):
    place, _, promise = row[0].partition(": ")
    assert place and promise and len(row) > 1
    for name in map(str.strip, row[1:]):
        file, _, function = name.partition("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_places_are_fuzzed():
    source = "".join((TESTS.parent / "benchmarks" / f"fuzz_{name}.py").read_text() for name in ("kinds", "live"))
    kinds = set(re.findall(r'^    "([a-z0-9 ]+)": ', source, re.M)) | set(
        re.findall(r'"([a-z ]+)": [A-Za-z]+Kind', source)
    )
    assert FUZZED.keys() <= set(PLACES) and set(FUZZED.values()) <= kinds

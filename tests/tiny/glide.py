"""Small seeded files of GLIDE under OpenAI's names, and the same as functions; a small vocabulary beside them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.oracles.glide import Glide
from tests.tiny.classes import write
from tests.tiny.text import bpe_files

BASE = {"mult": (1, 4), "attended": (2,)}
UPSAMPLE = {"mult": (1, 1, 4), "attended": (4,)}
KINDS = {
    "base": (3, BASE),
    "base_inpaint": (7, BASE),
    "upsample": (6, UPSAMPLE),
    "upsample_inpaint": (10, UPSAMPLE),
}


def make_glide(folder: Path, suffix: str = ".safetensors") -> dict[str, Glide]:
    """Every published file by its name, and its network."""
    networks = {name: make_glide_file(folder / f"{name}{suffix}", name) for name in KINDS}
    vocabulary, merges = bpe_files()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return networks


def make_glide_file(file: Path, name: str) -> Glide:
    """One of them, and its network."""
    inputs, shape = KINDS[name]
    network = Glide(**shape, inputs=inputs, seed=40 + [*KINDS].index(name))
    network.told(torch.zeros(1, inputs, 8, 8), 0.0, [0])
    network.state["out.2.weight"] *= 0.3  # else small differences grow to large ones in 27 steps
    write(file, network.state)
    return network

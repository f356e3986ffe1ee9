"""Training on from a checkpoint: its weights as copies, and what becomes of them written as the checkpoint has it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from gencli.checkpoints import layout
from gencli.checkpoints.tensors import Tensors
from gencli.models.base import Layout

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SMALL = ("generation_config.json", *layout.TOKENIZER, *(name for names in layout.SPLITTERS for name in names))


def own_memory(module: nn.Module) -> None:
    """Let all weights be trained: as copies, for what was opened may be the file's own memory."""
    for param in module.parameters():
        param.data = param.data.clone()
        param.requires_grad_(True)


def save_like(module: nn.Module, rows: Layout, source: Tensors, file: Path, *, own_names: bool = False) -> None:
    """Write a module's weights to `file` under the names, and in the precisions, that they have in `source`.

    rows: the architecture's table of names. own_names: under the module's own names, which is done too where weights
    were changed as they were read: an old file becomes a new one.
    """
    values = {name: param.detach() for name, param in module.named_parameters(remove_duplicate=False)}
    found = [(name, renamed) for name in source if (renamed := rows.rename(name)) and renamed[0] in values]
    own_names = own_names or any(transform is not None for _, (_, transform) in found)
    state = {
        target if own_names else name: values[target].to("cpu", DTYPES[source.dtype(name)]).clone().contiguous()
        for name, (target, _) in found
    }
    save_file(state, file, metadata={"format": "pt"})


def copy_small_files(source: Path, folder: Path, wanted: Iterable[str] = SMALL) -> None:
    """Copy the files of a folder that have one of these names, as they are: tokenizer, settings of generation."""
    patterns = tuple(wanted)
    for file in sorted(source.iterdir()):
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in patterns):
            shutil.copyfile(file, folder / file.name)


def write_json(path: Path, value: Mapping[str, Any], indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")

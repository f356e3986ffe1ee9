"""Writing checkpoints: weights, configs and copies of small files, in the layouts that the hub's libraries read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gencli.checkpoints import layout
from gencli.checkpoints.tensors import Tensors
from gencli.models.base import Layout

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SMALL = ("generation_config.json", *layout.TOKENIZER, *(name for names in layout.SPLITTERS for name in names))


def save_tensors(tensors: Mapping[str, Tensor], file: Path, dtype: torch.dtype | None = None) -> None:
    """Write tensors to one safetensors file: in `dtype`, or each in its own. No two may share memory."""
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    save_file(state, file, metadata={"format": "pt"})


def save_part(
    module: nn.Module, config: Mapping[str, object], folder: Path, stem: str, dtype: torch.dtype = torch.float16
) -> None:
    """Write a module under its own names: config.json and `stem`.safetensors, in a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(module.state_dict(), folder / f"{stem}.safetensors", dtype)
    write_json(folder / "config.json", config)


def save_like(module: nn.Module, layout: Layout, source: Tensors, file: Path, *, own_names: bool = False) -> None:
    """Write a module's weights to `file` under the names, and in the dtypes, that they have in `source`.

    layout: the architecture's table of names. own_names: write the module's own names instead. This also happens where
    weights were transformed as they were read, so an old file becomes a new one.
    """
    values = _with_stacks(module.state_dict(keep_vars=True), layout)
    saved = [(name, *renamed) for name in source if (renamed := layout.rename(name)) and renamed[0] in values]
    own_names = own_names or any(transform is not None for _, _, transform in saved)
    state = {
        target if own_names else name: values[target].detach().to("cpu", DTYPES[source.dtype(name)]).clone()
        for name, target, _ in saved
    }
    save_tensors(state, file)


def _with_stacks(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return a module's tensors, and those of all experts of a layer together, as its `layout` says."""
    values = dict(state)
    for end, parts in layout.stacked.items():
        experts = end.rpartition(".")[0]
        for before in [
            name.removesuffix(last) for name in state if name.endswith(last := f".{experts}.0.{parts[0]}.weight")
        ]:
            count = sum(
                name.startswith(f"{before}.{experts}.") and name.endswith(f".{parts[0]}.weight") for name in state
            )
            for kind in ("weight", "bias") if layout.in_turns else ("weight",):
                each = [
                    _stacked([state[f"{before}.{experts}.{number}.{part}.{kind}"] for part in parts], layout.in_turns)
                    for number in range(count)
                ]
                values[f"{before}.{end}" + "_bias" * (kind == "bias")] = torch.stack(each)
    return values


def _stacked(parts: Sequence[Tensor], in_turns: bool) -> Tensor:
    """Return matrices, or biases, of one expert in one tensor (see `Layout`)."""
    if not in_turns:
        return torch.cat(list(parts))
    turns = torch.stack(list(parts), dim=1).flatten(0, 1)
    return turns.t() if turns.dim() == 2 else turns


def copy_files(source: Path, folder: Path, patterns: Iterable[str] = SMALL) -> None:
    """Copy the files of a folder whose names match a pattern; by default tokenizer and generation config."""
    patterns = tuple(patterns)
    for file in sorted(source.iterdir()):
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in patterns):
            shutil.copyfile(file, folder / file.name)


def write_json(path: Path, value: Mapping[str, object], indent: int | None = 2) -> None:
    """Write a JSON object as one of a checkpoint's small files."""
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")

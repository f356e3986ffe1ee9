"""A found checkpoint → everything that continuing text needs: module, tokenizer, its own settings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gencli import devices
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.build import architecture_name, load
from gencli.checkpoints.find import Source
from gencli.checkpoints.tensors import Tensors
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.json_files import read_json
from gencli.models import PALETTES, architecture
from gencli.models.base import Layout
from gencli.models.module import describe
from gencli.tokens import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class TextModel:
    """A language model, ready to run. `load_seconds` is how long opening took.

    module: an nn.Module with `max_length`, `vocab_size`, `new_cache(batch, positions)` and
    `forward(ids (B, T), cache, last_only=…) -> logits (B, T, V)`.
    """

    name: str
    module: Any
    tokenizer: Tokenizer
    generation_config: Mapping[str, Any]
    load_seconds: float
    notes: tuple[str, ...] = ()  # what the user should know of how it was opened

    @property
    def max_length(self) -> int:
        """The context: the longest sequence the model can read, in tokens."""
        return self.module.max_length

    @property
    def vocab_size(self) -> int:
        return self.module.vocab_size

    @property
    def device(self) -> torch.device:
        return self.module.device

    def describe(self) -> str:
        """The model in one line: its size, precision, device and threads."""
        return describe(self.name, [self.module])


def open_model(
    source: Source,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    adapters: Sequence[LoraRef] = (),
    allow_pickle: bool = False,
) -> TextModel:
    """Open the language model at `source`; device and dtype are names as `gencli.devices` knows them.

    adapters: LoRA folders that are merged into the weights. allow_pickle: also open `.bin` and `.pt`, tensors alone.
    Raises GencliError for a checkpoint that is broken, not supported, or no language model.
    """
    start = time.perf_counter()
    devices.set_threads(threads)
    place = devices.pick_device(device)
    folder, weights = _folder_and_weights(source)
    gguf = None
    if weights.suffix == ".gguf":
        raw, tensors, gguf = _open_gguf(weights)
    else:
        raw = _config(source, folder)
        tensors = open_tensors(weights, allow_pickle=allow_pickle)
    layout = architecture(architecture_name(raw, folder)).LAYOUT
    stored = {tensors.dtype(name) for name in tensors if layout.rename(name) is not None}
    precision = devices.pick_dtype(dtype, place, stored)
    tokenizer = load_tokenizer(folder) if gguf is None else _gguf_tokenizer(weights, gguf)
    module = load(weights, device=place, dtype=precision, config=raw, tensors=tensors)
    notes = _merge(module, layout, source, adapters, allow_pickle) if adapters else ()
    file = folder / "generation_config.json"
    generation_config = read_json(file) if file.is_file() and gguf is None else {}
    return TextModel(source.name, module, tokenizer, generation_config, time.perf_counter() - start, notes)


def _merge(
    module: Any, layout: Layout, source: Source, adapters: Sequence[LoraRef], allow_pickle: bool
) -> tuple[str, ...]:
    """Merge adapters; notes of those that say they were made for a model of another name."""
    from gencli.checkpoints.lora import merge

    bases = merge(module, layout, adapters, allow_pickle=allow_pickle)
    own = Path(source.name.partition("@")[0]).name.lower()
    return tuple(
        f"{adapter.path} was made for {base}, and is used on {source.name}"
        for adapter, base in zip(adapters, bases, strict=True)
        if base and Path(base).name.lower() != own
    )


def _open_gguf(path: Path) -> tuple[dict[str, Any], Tensors, Mapping[str, Any]]:
    """Config, tensors and metadata of a GGUF file."""
    from gencli.checkpoints.gguf import open_gguf

    config, tensors, file = open_gguf(path)
    return config, tensors, file.metadata


def _gguf_tokenizer(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    from gencli.tokens.gguf import gguf_tokenizer

    return gguf_tokenizer(path, metadata)


def _folder_and_weights(source: Source) -> tuple[Path, Path]:
    """The folder of the small files, and what to open for tensors: the folder, or the one file that was named.

    A .gguf file has all in itself; a folder may hold one and no config.json.
    """
    if source.kind != "file":
        if not (source.path / "config.json").is_file() and not (source.path / "model_index.json").is_file():
            single = sorted(source.path.glob("*.gguf"))
            if len(single) > 1:
                some = ", ".join(file.name for file in single[:5])
                raise GencliError(f"{source.path} has {len(single)} GGUF files ({some})", "name the one that you want")
            if single:
                return source.path, single[0]
        return source.path, source.path
    if source.path.suffix == ".gguf":
        return source.path.parent, source.path
    if not (source.path.parent / "config.json").is_file():
        raise GencliError(f"{source.path}: a language model is a folder; there is no config.json beside this file")
    return source.path.parent, source.path


def _config(source: Source, folder: Path) -> dict[str, Any]:
    """config.json. Raises GencliError for a checkpoint that is no language model."""
    pictures = GencliError(f"{source.name} is no language model", "pictures are made by `gencli image`")
    if (folder / "model_index.json").is_file():
        raise pictures
    raw = read_json(folder / "config.json")
    name = architecture_name(raw, folder)
    if name in PALETTES or not hasattr(architecture(name).Model, "new_cache"):
        raise pictures
    return raw

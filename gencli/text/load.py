"""A found checkpoint → everything that continuing text needs: module, tokenizer, its own settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gencli import devices
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.build import load
from gencli.checkpoints.checkpoint import Checkpoint, Part
from gencli.checkpoints.find import Source
from gencli.checkpoints.formats.folders import kind_of
from gencli.checkpoints.formats.janus import is_janus, reader_of
from gencli.checkpoints.open import open_checkpoint
from gencli.checkpoints.packed_cache import open_packed
from gencli.checkpoints.uses import wrong_kind
from gencli.errors import GencliError
from gencli.models import architecture, architecture_name
from gencli.models.base import Layout
from gencli.models.module import LanguageModel, describe
from gencli.spec import ModelSpec
from gencli.text.generation_config import generation_config, not_followed
from gencli.tokens import Tokenizer

NO_WISHES = ModelSpec()


@dataclass(frozen=True)
class TextModel:
    """A language model, ready to run. load_seconds: how long opening took. notes: what the user should know of it."""

    name: str
    module: LanguageModel
    tokenizer: Tokenizer
    generation_config: Mapping[str, object]
    load_seconds: float
    notes: tuple[str, ...] = ()

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

    @property
    def converses(self) -> bool:
        """Whether it was taught to: it has a chat template."""
        return self.tokenizer.chat_template is not None

    def describe(self) -> str:
        """The model in one line: its size, precision, device and threads."""
        return describe(self.name, [self.module])


def open_model(
    source: Source,
    spec: ModelSpec = NO_WISHES,
    *,
    adapters: Sequence[LoraRef] = (),
    quantize: str | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> TextModel:
    """Open the language model at `source`, which was found under the name that `spec` has.

    adapters: the LoRA folders of `spec`, found, which are merged into the weights. quantize: a mix of types (`mixes`)
    that the weights are packed in, in a copy that is kept; progress: called while it is made, see `write_gguf`.
    Raises GencliError for a checkpoint that is broken, not supported, or no language model.
    """
    start = time.perf_counter()
    devices.set_threads(spec.threads)
    device = devices.pick_device(spec.device)
    checkpoint = open_checkpoint(source, allow_pickle=spec.allow_pickle)
    part, raw = language_model(checkpoint)
    if unknown := [key for key in spec.ignore_config if key not in raw]:
        raise GencliError(f"--ignore-config {unknown[0]}: the config of {source.name} has no such key")
    raw = {key: value for key, value in raw.items() if key not in spec.ignore_config}
    tensors = part.tensors()
    layout = architecture(str(raw["model_type"])).LAYOUT
    if quantize is not None:
        tensors = open_packed(part, raw, quantize, progress, device=device.type)
    stored = {tensors.dtype(name) for name in tensors if layout.rename(name) is not None}
    precision = devices.pick_dtype(spec.dtype, device, stored)
    tokenizer = checkpoint.tokenizer()
    # on a CPU weights stay as they are stored, unless float32 is asked for or a LoRA is to be exact
    casting = device.type == "cpu" and spec.dtype == "auto" and precision in (None, torch.float32)
    module = load(part.path, device=device, dtype=precision, config=raw, tensors=tensors, layerwise_casting=casting)
    assert isinstance(module, LanguageModel)  # `language_model` has looked
    notes = _merge(module, layout, source, adapters, spec.allow_pickle) if adapters else ()
    settings = generation_config(checkpoint.defaults, raw)
    notes = (*notes, *not_followed(source.name, settings))
    return TextModel(source.name, module, tokenizer, settings, time.perf_counter() - start, notes)


def _merge(
    module: LanguageModel, layout: Layout, source: Source, adapters: Sequence[LoraRef], allow_pickle: bool
) -> tuple[str, ...]:
    """Merge adapters; notes of those that say they were made for a model of another name."""
    from gencli.checkpoints.lora import merge

    check_adapts(module, source.name)
    bases = merge(module, layout, adapters, allow_pickle=allow_pickle)
    own = Path(source.name.partition("@")[0]).name.lower()
    return tuple(
        f"{adapter.path} was made for {base}, and is used on {source.name}"
        for adapter, base in zip(adapters, bases, strict=True)
        if base and Path(base).name.lower() != own
    )


def check_adapts(module: LanguageModel, name: str) -> None:
    """Raise GencliError for a model whose rows and columns are in another order than those of adapters."""
    if getattr(module.config, "value_heads_in_turns", False):
        raise GencliError(
            f"--lora: the heads in {name} are in llama.cpp's order, which adapters do not have",
            "take the model that it was made from",
        )


def language_model(checkpoint: Checkpoint) -> tuple[Part, Mapping[str, object]]:
    """Return the language model that a checkpoint is, and its config.

    Raise GencliError for a checkpoint that is none, is broken, or is of an unknown architecture.
    """
    if checkpoint.problem is not None and (checkpoint.kind == "text" or checkpoint.format == "gguf"):
        raise checkpoint.problem
    if checkpoint.kind == "text" or checkpoint.format == "gguf":
        return checkpoint.parts[""], checkpoint.parts[""].config
    if is_janus(checkpoint.contents):
        part = reader_of(checkpoint.contents)
        return part, part.config
    folder = not checkpoint.contents.is_file and checkpoint.contents.has("model_index.json")
    if folder or (checkpoint.kind == "image" and checkpoint.problem is None):
        raise wrong_kind(checkpoint, "text")
    part = checkpoint.only_part("a language model", "a .gguf file, or ")
    architecture_name(part.config, checkpoint.contents.folder / "config.json", LanguageModel)
    if kind_of(part.config) != "text":
        raise wrong_kind(checkpoint, "text")
    return part, part.config

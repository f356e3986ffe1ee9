"""The models of a server as ollama's clients see them: their names there, and what is told of each."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from gencli.checkpoints.checkpoint import Contents
from gencli.checkpoints.find import Source
from gencli.checkpoints.formats.janus import is_janus
from gencli.checkpoints.ollama import LATEST, PREFIX
from gencli.checkpoints.open import open_checkpoint
from gencli.checkpoints.report import Description, describe
from gencli.errors import GencliError, did_you_mean
from gencli.serve.engine import TextEngine
from gencli.serve.ollama_answers import stamp
from gencli.serve.pool import Pool, Wanted
from gencli.serve.refusal import NOT_FOUND, Refusal
from gencli.text.call_forms import form_of
from gencli.text.chat_template import switches

FOREVER = "9999-12-31T23:59:59Z"
SIZES = {  # of a model's config: ollama's key, after the architecture → the config's, in different families
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "vocab_size": ("vocab_size",),
}
PARAMETERS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


class Details(TypedDict):
    """A model in a few words."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


@dataclass(frozen=True)
class Known:
    """A language model that was looked at. wanted: as the pool opens it."""

    wanted: Wanted
    source: Source
    what: Description

    @property
    def digest(self) -> str:
        """What stands for its files: their places, sizes and times."""
        return hashlib.sha256(json.dumps([self.wanted.name, self.wanted.files]).encode()).hexdigest()

    @property
    def details(self) -> Details:
        family, dtypes = self.what.family, [dtype for one in self.what.components for dtype in one.dtypes]
        packed = [dtype for dtype in dtypes if dtype not in ("F64", "F32", "BF16", "F16")]
        stored = [dtype for dtype in dtypes if dtype != "F32"]
        return {
            "parent_model": "",
            "format": "gguf" if self.what.format == "gguf" else "safetensors",
            "family": family,
            "families": [family],
            "parameter_size": short(self.what.parameters or 0),
            "quantization_level": next(iter([*packed, *stored, *dtypes]), ""),
        }


class Models:
    """The language models of a pool, each looked at once as long as its files stay the same."""

    def __init__(self, pool: Pool):
        self.pool = pool
        self.known: dict[str, Known] = {}

    def names(self) -> dict[str, str]:
        """Return the name of each of the pool's models at ollama, which always has a tag → its name here."""
        return {called(name): name for name in reversed(self.pool.names())}

    def find(self, name: str) -> str:
        """Return the name here of a model that a client calls by a name of ollama's or of ours. Raise Refusal."""
        names = self.names()
        if name in names.values() or self.pool.fetches(name):
            return name
        if (found := names.get(called(name))) is None:
            near = did_you_mean(name[:200], [one.removesuffix(f":{LATEST}") for one in names])
            told = f"{near} " if near else ""
            message = f"model {name[:200]!r} not found ({told}GET /api/tags lists those that are here)"
            raise Refusal(NOT_FOUND, message, param="model")
        return found

    def look(self, name: str) -> Known | None:
        """Return what is known of the language model of a name here; None for another model, and for one that cannot be
        opened."""
        try:
            wanted = self.pool.wanted(name).text
            if wanted is None:
                return None
            known = self.known.get(name)
            if known is None or known.wanted.key != wanted.key:
                source = Source(wanted.name, wanted.paths[0], "file" if wanted.paths[0].is_file() else "folder")
                what = describe(source, allow_pickle=self.pool.spec.allow_pickle)
                known = self.known[name] = Known(wanted, source, what)
        except (GencliError, Refusal, OSError):
            return None
        return known

    def tags(self) -> list[dict[str, object]]:
        """Return what /api/tags lists."""
        found = []
        for shown, name in reversed(self.names().items()):
            if (known := self.look(name)) is not None:
                found.append({**_entry(shown, known), "modified_at": stamp(self.pool.written(name))})
        return found

    def loaded(self) -> list[dict[str, object]]:
        """Return what /api/ps lists: the models that are warm."""
        shown, found = {name: shown for shown, name in self.names().items()}, []
        for name in self.pool.names():
            named = self.pool.named.get(name)
            text = None if named is None else named.text
            warm = None if text is None else self.pool.warm.get(text.key)
            if warm is None or not isinstance(warm.engine, TextEngine) or (known := self.look(name)) is None:
                continue
            left = warm.until(self.pool.keep) - time.monotonic()
            on_gpu = warm.engine.model.device.type != "cpu"
            found.append(
                {
                    **_entry(shown[name], known),
                    "size": warm.engine.bytes,
                    "size_vram": warm.engine.bytes if on_gpu else 0,
                    "expires_at": FOREVER if math.isinf(left) else stamp(time.time() + min(left, 1e9)),
                    "context_length": warm.engine.model.max_length,
                }
            )
        return found

    def show(self, name: str) -> dict[str, object]:
        """Return what /api/show tells of a model, by its name here. Raise Refusal, GencliError."""
        known = self.look(name)
        if known is None:
            raise Refusal(NOT_FOUND, f"model {name[:200]!r} not found: it is no language model", param="model")
        checkpoint = open_checkpoint(Contents(known.source))
        template = checkpoint.tokenizer().chat_template or ""
        what, family = known.what, known.what.family
        inner = what.config.get("text_config")
        config = inner if isinstance(inner, dict) else what.config
        sizes = {f"{family}.{key}": _first(config, keys) for key, keys in SIZES.items()}
        lines = [f"{key} {checkpoint.defaults[key]}" for key in PARAMETERS if key in checkpoint.defaults]
        return {
            "modelfile": f"FROM {called(name)}\n",
            "parameters": "\n".join(lines),
            "template": template,
            "license": what.licence or "",
            "details": known.details,
            "model_info": {
                "general.architecture": family,
                "general.parameter_count": what.parameters,
                **{key: value for key, value in sizes.items() if value is not None},
            },
            "capabilities": [
                "completion",
                *(["vision"] if is_janus(checkpoint.contents) else []),
                *(["tools"] if form_of(template) else []),
                *(["thinking"] if switches(template, name) else []),
            ],
            "modified_at": stamp(self.pool.written(name)),
        }


def called(name: str) -> str:
    """Return what ollama's clients call a model: without the prefix of ollama's own, and always with a tag."""
    name = name.removeprefix(PREFIX)
    return name if ":" in name.rpartition("/")[2] else f"{name}:{LATEST}"


def short(number: int) -> str:
    """Return a number of parameters as ollama writes it: 124.44M, 1.2B."""
    for power, letter, digits in ((9, "B", 1), (6, "M", 2), (3, "K", 2)):
        if number >= 10**power:
            return f"{number / 10**power:.{digits}f}{letter}"
    return str(number)


def _entry(shown: str, known: Known) -> dict[str, object]:
    size = {"size": known.what.bytes, "digest": known.digest, "details": known.details}
    return {"name": shown, "model": shown, **size}


def _first(config: Mapping[str, object], keys: tuple[str, ...]) -> object:
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)

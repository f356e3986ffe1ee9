"""Which files of a repository or folder make up a checkpoint, by names and small JSON files alone. No torch.

Two layouts: transformers' (a model at the root) and diffusers' (model_index.json, and a folder per component).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

from gencli.checkpoints import gguf_names
from gencli.errors import GencliError

STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")
VARIANTS = (None, "fp16", "bf16")  # in this order, when the caller names none
SAFETENSORS, BIN = ".safetensors", ".bin"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
PICKLE_HINT = (
    "pickles can run code when opened; convert them to safetensors, name a revision that has it, "
    "or have nothing but tensors read from them with --allow-pickle"
)
VARIATIONS = "image_encoder"  # which only pipelines read that vary an image
VARYING = frozenset({"UnCLIPImageVariationPipeline", "StableUnCLIPImg2ImgPipeline", "KandinskyV22PriorPipeline"})
UNUSED = frozenset(  # never opened
    {
        "safety_checker",
        "feature_extractor",
        "image_encoder",
        "watermarker",
        "image_processor",
        "prior_image_processor",
        "processor",
    }
)
CARD = "README.md"  # for its licence
SETTINGS = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json")
TOKENIZER = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
# tokenizer.json says all that the others say
SPLITTERS = (("tokenizer.json",), ("vocab.json", "merges.txt", "*.model", "vocab.txt"))

# name of a file → the JSON object in it
Read = Callable[[str], Mapping[str, object]]


PartKind = Literal["model", "tokenizer", "scheduler"]


@dataclass(frozen=True)
class PartFolder:
    """A component of a checkpoint, or all of it (name ""). `prefix` is its folder with a slash, "" for the root."""

    name: str
    prefix: str
    kind: PartKind


def is_plain(name: str) -> bool:
    """Return whether a repository's file name stays inside its folder: no absolute path, no `..`, no character that a
    system treats specially."""
    parts = name.split("/")
    odd = any(part in ("", ".", "..") or len(part) > 200 for part in parts) or any(c in name for c in "\\:")
    return not odd and name.isprintable() and len(name) <= 1000


def parts(names: Collection[str], read: Read) -> list[PartFolder]:
    """Return the parts that gencli opens, models last, so that small files come first. Raise GencliError for an unknown
    layout."""
    if "model_index.json" not in names:
        if "config.json" not in names:
            raise GencliError("no model_index.json and no config.json", other_hint(names))
        found = [PartFolder("", "", "model")]
        if "scheduler_config.json" in names:
            found.insert(0, PartFolder("", "", "scheduler"))
        return found
    index = read("model_index.json")
    components = [name for name, value in index.items() if _is_component(name, value, index)]
    found = []
    for name in components:
        kind: PartKind = "scheduler" if name.endswith("scheduler") else "model"
        kind = "tokenizer" if "tokenizer" in name else kind
        inside = any(file.startswith(f"{name}/") for file in names)
        # Pipelines of one network may have it at the root (google/ddpm-cifar10-32).
        found.append(PartFolder(name, f"{name}/" if inside else "", kind))
    return sorted(found, key=lambda part: part.kind == "model")


def unused(read: Read) -> list[str]:
    """Return the components that model_index.json names and gencli does not open."""
    index = read("model_index.json")
    return [name for name, value in index.items() if _is_unused(name, index) and _is_pair(value)]


def named_parts(index: Mapping[str, object]) -> list[str]:
    """Return the names of the parts in model_index.json: entries that are pairs, and not [null, null]."""
    return [name for name, value in index.items() if _is_pair(value)]


def _is_unused(name: str, index: Mapping[str, object]) -> bool:
    return name in UNUSED and not (name == VARIATIONS and index.get("_class_name") in VARYING)


def _is_component(name: str, value: object, index: Mapping[str, object]) -> bool:
    return _is_pair(value) and not _is_unused(name, index) and is_plain(name) and "/" not in name


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[1] is not None


def choose(
    names: Collection[str],
    read: Read,
    variant: str | None = None,
    *,
    allow_pickle: bool = False,
    gguf: str | None = None,
) -> list[str]:
    """Return the files in `names` that opening needs: small ones first, weights in one variant, nothing twice.

    allow_pickle: a component without safetensors may have pickles. A component without weights in `variant` gets its
    ordinary ones. gguf: the type of a GGUF file, which is then all; so it is where nothing but GGUF files has weights.
    Raise GencliError if something is missing, or if no component has that variant.
    """
    if gguf is not None or is_gguf(names):
        return gguf_names.choose(names, gguf)
    chosen = [name for name in (CARD, "model_index.json", "generation_config.json") if name in names]
    heavy: list[str] = []
    for part in parts(names, read):
        chosen += _small(names, part)
        if part.kind == "model":
            heavy += weights(names, read, part.prefix, variant, allow_pickle=allow_pickle)
    if variant and not any(f".{variant}." in name for name in heavy):
        raise GencliError(f"no {variant} weights")
    return list(dict.fromkeys(chosen + heavy))


def is_gguf(names: Collection[str]) -> bool:
    """Return whether the only weights are in GGUF files."""
    others = (SAFETENSORS, *(pattern[1:] for pattern in PICKLES))
    return bool(gguf_names.by_type(names)) and not any(name.endswith(others) for name in names)


def _small(names: Collection[str], part: PartFolder) -> list[str]:
    here = [name.removeprefix(part.prefix) for name in names if name.startswith(part.prefix)]
    if part.kind == "scheduler":
        wanted: tuple[str, ...] = ("scheduler_config.json",)
    elif part.kind == "model" and part.name:
        wanted = ("config.json",)
    else:
        splitters = next((files for files in SPLITTERS if files[0] in here), SPLITTERS[-1])
        wanted = (*(SETTINGS if part.kind == "model" else ()), *TOKENIZER, *splitters)
    found = [name for pattern in wanted for name in sorted(here) if "/" not in name and fnmatch(name, pattern)]
    first = wanted[0]
    if part.kind != "tokenizer" and first not in found:
        raise GencliError(f"no {part.prefix}{first}")
    return [part.prefix + name for name in found]


def weights(
    names: Collection[str], read: Read, prefix: str = "", variant: str | None = None, *, allow_pickle: bool = False
) -> list[str]:
    """Return the files of a model's weights, after their index if there is one. Raise GencliError if there are none."""
    here = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    file = weight_file(here, variant) or weight_file(here, None)
    suffix = SAFETENSORS
    if file is None and allow_pickle:
        file, suffix = weight_file(here, variant, BIN) or weight_file(here, None, BIN), BIN
    if file is None:
        pickles = find_pickles(here)
        seen = f" (only {some(pickles)})" if pickles else ""
        what = f"{prefix}: " if prefix else ""
        raise GencliError(f"{what}no weights in safetensors{seen}", PICKLE_HINT if pickles else other_hint(here))
    if not file.endswith(".json"):
        return [prefix + file]
    shards = shard_names(read(prefix + file), prefix + file, suffix)
    if lost := [name for name in shards if name not in here]:
        raise GencliError(f"{prefix}{file} names {some(lost)}, which is not there")
    return [prefix + file, *(prefix + name for name in shards)]


def weight_file(names: Collection[str], variant: str | None, suffix: str = SAFETENSORS) -> str | None:
    """Return the one weights file of a folder, or its index; without `variant` the plain ones, else fp16, else bf16."""
    for wanted in [variant] if variant else VARIANTS:
        dotted = f".{wanted}" if wanted else ""
        for stem in STEMS:
            for name in (f"{stem}{dotted}{suffix}", f"{stem}{suffix}.index{dotted}.json"):
                if name in names:
                    return name
    return None


def shard_names(index: Mapping[str, object], file: str, suffix: str = SAFETENSORS) -> list[str]:
    """Return the files of a `*.index.json`. Raise GencliError for a name that is not one of a file beside it, or for
    several variants."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise GencliError(f"{file} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not is_plain(name) or "/" in name or not name.endswith(suffix):
            raise GencliError(f"{file}: {name!r} is not a plain name of a {suffix[1:]} file beside it")
    found = {wanted for wanted in VARIANTS for name in names if _is_variant(name, wanted)}
    if len(found) > 1:
        raise GencliError(f"{file} mixes variants: {some(names)}")
    return names


def _is_variant(name: str, variant: str | None) -> bool:
    """Return whether a shard's name has this variant: `model.fp16-00001-of-00002.safetensors`, or before the suffix."""
    middle = re.sub(r"-\d+-of-\d+", "", name).split(".")[1:-1]
    named = [word for word in middle if word in VARIANTS]
    return variant in named if variant else not named


def find_pickles(names: Iterable[str]) -> list[str]:
    """Return the files that may run code when they are opened."""
    return [name for name in names if "/" not in name and any(fnmatch(name, pattern) for pattern in PICKLES)]


def some(names: list[str]) -> str:
    """Return the first few of a list, in words."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def other_hint(names: Collection[str]) -> str:
    """Return what a folder or repository without a checkpoint in a known layout may be meant for."""
    if any(name.rpartition("/")[2] == "adapter_config.json" for name in names):
        return "it is a LoRA adapter: --lora names it, and -m the model that it was made for"
    if shards := sorted(name for name in names if re.fullmatch(r"[^/]+-\d{5}-of-\d{5}\.safetensors", name)):
        return f"the index of {shards[0]} and the files after it is not here: fetch *.index.json beside them"
    for suffix in (".gguf", ".safetensors"):
        single = sorted(name for name in names if name.endswith(suffix) and "/" not in name)
        first = [name for name in single if "-of-" not in name or "-00001-of-" in name]  # of several parts
        if single:
            several = f"{some(first)} are models in one file each: give the path of one"
            return several if len(first) > 1 else f"{(first or single)[0]} is a model in one file: give its path"
    if "config.json" in names:
        return "its config.json is here alone: fetch model.safetensors or diffusion_pytorch_model.safetensors beside it"
    inner = sorted(name.partition("/")[0] for name in names if name.endswith(("/config.json", "/model_index.json")))
    if inner and not any("/diffusion_pytorch_model" in name for name in names):
        return f"it holds the {'models' if len(inner) > 1 else 'model'} {some(inner)}: give the path of one"
    return "is it a model in the layout of transformers or diffusers?"

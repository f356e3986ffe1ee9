"""What a checkpoint's small files and tensor headers say of it: kind, family, parameters, size, licence. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gencli.checkpoints import hub_cache, layout
from gencli.checkpoints.class_file import ClassFile, open_class_file, open_named
from gencli.checkpoints.find import Source
from gencli.checkpoints.single_file import SingleFile, is_original, open_single_file
from gencli.errors import GencliError
from gencli.json_files import read_json
from gencli.models import ARCHITECTURES, PALETTES

CARD_LIMIT = 2**16  # bytes of a model card that are read
# Masks and tables that older files hold beside the parameters.
BUFFERS = re.compile(r"(.*\.)?(attn\.bias|masked_bias|position_ids|rotary_emb\.inv_freq)")
PARTS_ALONE = {"clip_text_model", "ldmbert"}  # `model_type`s that are a part of other models
KINDS = {"clip": "score", **dict.fromkeys(PALETTES, "image")}  # and those that are whole, but no language models


@dataclass(frozen=True)
class Component:
    """A part of a checkpoint (name "" when it is all there is); parameters and dtypes of models alone."""

    name: str
    family: str
    parameters: int | None = None
    dtypes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """A checkpoint in a few words. kind: text, image, score (compares both), part (of others), or other (nothing
    that gencli opens).

    files: name → bytes. problem: what keeps it from being opened, as far as can be told without its weights.
    """

    name: str
    kind: str
    family: str
    path: Path
    files: Mapping[str, int]
    components: tuple[Component, ...] = ()
    licence: str | None = None
    not_loaded: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    @property
    def parameters(self) -> int | None:
        counts = [component.parameters for component in self.components if component.parameters is not None]
        return sum(counts) if counts else None


def describe(source: Source, *, allow_pickle: bool = False) -> Description:
    """Read what a checkpoint says of itself. What is wrong with it is told in `problem`, not raised.

    allow_pickle: also count what lies in pickles (with torch).
    """
    if source.kind == "file":
        return _describe_file(source, allow_pickle)
    folder = source.path
    files = hub_cache.files(folder)

    def read(name: str) -> Mapping[str, Any]:
        return read_json(folder / name)

    kind, family, config, problem = "other", "", {}, None
    components: list[Component] = []
    not_loaded: list[str] = []
    try:
        config = dict(read("model_index.json" if "model_index.json" in files else "config.json"))
        kind, family = _kind(config, files)
        if "model_index.json" in files:
            not_loaded = layout.unused(read)
        elif family not in ARCHITECTURES:
            problem = f"unknown architecture {family!r}"
        for part in layout.parts(files, read):
            components.append(_component(folder, files, part, allow_pickle))
    except GencliError as error:
        problem = problem or error.message
    card = _licence(folder / layout.CARD)
    return Description(
        source.name, kind, family, folder, files, tuple(components), card, tuple(not_loaded), config, problem
    )


def _describe_file(source: Source, allow_pickle: bool) -> Description:
    files = {source.path.name: source.path.stat().st_size}
    try:
        if source.path.suffix == ".gguf":
            return _describe_gguf(source, files)
        parameters, dtypes = _count(source.path, allow_pickle)
        whole = (Component("", "", parameters, dtypes),)
        if is_original(source.path, allow_pickle=allow_pickle):
            return _describe_single(source, files, whole, allow_pickle)
        try:
            network = open_class_file(source.path, allow_pickle=allow_pickle)
        except GencliError as error:
            return Description(source.name, "image", "", source.path, files, whole, problem=error.message)
        if network is not None:
            return _describe_network(source, network, files, parameters, dtypes)
    except GencliError as error:
        return Description(source.name, "other", "", source.path, files, problem=error.message)
    return Description(source.name, "part", "", source.path, files, whole)


def _describe_network(
    source: Source, network: ClassFile, files: Mapping[str, int], parameters: int, dtypes: tuple[str, ...]
) -> Description:
    """One network in a file of its own code."""
    kind = "image" if network.pipeline else "part"
    family = network.pipeline or next(str(part.config["_class_name"]) for part in network.parts.values())
    (name, part), *_ = network.parts.items()
    found = Component(name, str(part.config["_class_name"]), parameters, dtypes, part.config)
    config = {"model": network.title}
    return Description(source.name, kind, family, source.path, files, (found,), config=config)


def _describe_single(
    source: Source, files: Mapping[str, int], whole: tuple[Component, ...], allow_pickle: bool
) -> Description:
    """A model for pictures in the original layout, or what is wrong with it."""
    try:  # whatever it predicts, its parts are the same
        single = open_single_file(source.path, allow_pickle=allow_pickle, prediction="epsilon")
    except GencliError as error:
        return Description(source.name, "image", "", source.path, files, whole, problem=error.message)
    parts = tuple(_single_part(single, name) for name in single.parts)
    licence = single.file.metadata.get("modelspec.license")
    return Description(
        source.name, "image", single.pipeline, source.path, files, parts, licence, config={"model": single.title}
    )


def _single_part(single: SingleFile, name: str) -> Component:
    sources, config = single.sources(name), single.parts[name].config
    dtypes = tuple(sorted({single.file.dtypes[source] for source in sources}))
    family = str(config.get("_class_name") or config["model_type"])
    return Component(name, family, sum(math.prod(single.file.shapes[source]) for source in sources), dtypes, config)


def _describe_gguf(source: Source, files: Mapping[str, int]) -> Description:
    """A GGUF file, which has its config in itself. Raises GencliError for one that gencli cannot open."""
    from gencli.checkpoints.gguf_file import GgufFile

    file = GgufFile(source.path)
    family = str(file.metadata.get("general.architecture"))
    licence = file.metadata.get("general.license")
    count = sum(math.prod(stored.shape) for stored in file.tensors.values())
    part = Component("", family, count, tuple(sorted({stored.kind for stored in file.tensors.values()})))
    known = family in ARCHITECTURES
    return Description(
        source.name,
        "text" if known else "other",
        family,
        source.path,
        files,
        (part,),
        licence if isinstance(licence, str) else None,
        problem=None if known else f"unknown architecture {family!r:.60}",
    )


def _kind(config: Mapping[str, Any], files: Mapping[str, int]) -> tuple[str, str]:
    family = str(config.get("model_type") or config.get("_class_name") or "")
    if "model_index.json" in files or (family.startswith("UNet") and "scheduler_config.json" in files):
        return "image", family
    if family not in ARCHITECTURES:
        return "other", family
    if family in KINDS:
        return KINDS[family], family
    return ("part" if family in PARTS_ALONE or "model_type" not in config else "text"), family


def _component(folder: Path, files: Mapping[str, int], part: layout.Part, allow_pickle: bool) -> Component:
    def read(name: str) -> Mapping[str, Any]:
        return read_json(folder / name)

    if part.kind == "tokenizer":
        file = f"{part.prefix}tokenizer_config.json"
        return Component(part.name, str(read(file).get("tokenizer_class") or "") if file in files else "")
    if part.kind == "scheduler":
        config = read(f"{part.prefix}scheduler_config.json")
        return Component(part.name, str(config.get("_class_name") or ""), config=config)
    config = read(f"{part.prefix}config.json")
    weights = layout.weights(files, read, part.prefix, allow_pickle=allow_pickle)
    counts = [_count(folder / file, allow_pickle) for file in weights if not file.endswith(".json")]
    dtypes = tuple(sorted({dtype for _, found in counts for dtype in found}))
    family = str(config.get("model_type") or config.get("_class_name") or "")
    return Component(part.name, family, sum(number for number, _ in counts), dtypes, config)


def _count(file: Path, allow_pickle: bool) -> tuple[int, tuple[str, ...]]:
    """Parameters of a file, and their dtypes as safetensors writes them. Raises GencliError for a broken one."""
    opened = open_named(file, allow_pickle=allow_pickle)
    kept = {name for name in opened.shapes if not BUFFERS.fullmatch(name)}
    return sum(math.prod(opened.shapes[name]) for name in kept), tuple({opened.dtypes[name] for name in kept})


def _licence(card: Path) -> str | None:
    """`license:` in a model card's front matter, or `license_name:` where that says `other`."""
    try:
        with card.open("rb") as stream:
            text = stream.read(CARD_LIMIT).decode("utf-8", "replace")
    except OSError:
        return None
    match = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if match is None:
        return None
    values = {}
    for key in ("license", "license_name"):
        if found := re.search(rf"^{key}:[ \t]*(?:\n[ \t]*-[ \t]*)?([^\n#]*)", match[1], re.MULTILINE):
            values[key] = found[1].strip().strip("'\"[]")
    name = values.get("license")
    return (values.get("license_name") or name if name == "other" else name) or None

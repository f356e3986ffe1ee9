"""Descriptions of checkpoints → lines for people, and objects for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from gencli.checkpoints.catalogue import FORMATS, Entry
from gencli.cli.download import in_words
from gencli.errors import counted

if TYPE_CHECKING:
    from gencli.checkpoints.find import Source
    from gencli.checkpoints.report import Description
    from gencli.cli.models_settings import Stage

WHERE = {"embedded": "embedded", "hub": "cached", "folder": "folder", "file": "file", "ollama": "ollama"}
# What matters of a config: words → its keys in different families
SUMMARY = {
    "context": ("max_position_embeddings", "n_positions"),
    "vocabulary": ("vocab_size",),
    "layers": ("num_hidden_layers", "n_layer"),
    "width": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "key/value heads": ("num_key_value_heads",),
    "sliding window": ("sliding_window",),
}


def row(source: Source, what: Description) -> dict[str, object]:
    """Return a checkpoint as `list --json` has it."""
    return {
        "name": what.name,
        "kind": what.kind,
        "family": what.family,
        "parameters": what.parameters,
        "bytes": what.bytes,
        "licence": what.licence,
        "where": WHERE[source.kind],
        "path": str(what.path),
        "problem": what.problem,
    }


def everything(
    source: Source,
    what: Description,
    defaults: Mapping[str, object],
    stages: Sequence[Stage],
    tokenizer: Mapping[str, object],
) -> dict[str, object]:
    """Return a checkpoint as `show --json` has it."""
    return {
        **row(source, what),
        "revision": revision(source),
        "components": [dataclasses.asdict(part) for part in what.components],
        "not_loaded": list(what.not_loaded),
        "config": dict(what.config),
        "tokenizer": dict(tokenizer) or None,
        "defaults": dict(defaults),
        "stages": [dict(stage) for stage in stages],
        "files": dict(what.files),
        "quantized": _copies(source),
    }


def _copies(source: Source) -> dict[str, int]:
    """The types of the copies that --quantize keeps, and their bytes."""
    from gencli.checkpoints import packed_cache

    return packed_cache.mixes(source.path)


def revision(source: Source) -> str | None:
    """Return the commit of a snapshot in the cache; None for other sources."""
    if source.kind != "hub":
        return None
    parts = source.path.parts
    return parts[-parts[::-1].index("snapshots")] if "snapshots" in parts else None


def table(shown: Iterable[tuple[Source, Description]], *, with_problems: bool) -> list[str]:
    """Return a heading and one line per checkpoint."""
    rows = [["NAME", "KIND", "FAMILY", "PARAMETERS", "SIZE", "LICENCE", "WHERE", "PROBLEM"]]
    for source, what in shown:
        rows.append(
            [
                what.name,
                what.kind,
                what.family or "-",
                "-" if what.parameters is None else _short(what.parameters),
                in_words(what.bytes),
                what.licence or "-",
                WHERE[source.kind],
                what.problem or "-",
            ]
        )
    return columns(rows if with_problems else [cells[:-1] for cells in rows], right={3, 4})


def available(entries: Iterable[Entry], memory: int) -> list[str]:
    """Return a heading and one line per well-known model. memory: bytes of this machine."""
    heads = ["NAME", "TASK", "FOR", "LICENCE", "DOWNLOAD", "MEMORY", "Q8_0", "Q4_K_M", "HERE"]
    rows = [
        [
            entry.name,
            entry.task,
            entry.good_for,
            f"{entry.licence}{' (gated)' if entry.gated else ''}",
            in_words(entry.download),
            *(in_words(entry.formats[name]) if name in entry.formats else "-" for name in ("stored", *FORMATS)),
            entry.fit(memory),
        ]
        for entry in entries
    ]
    return columns([heads, *rows], right={4, 5, 6, 7})


def page(
    source: Source,
    what: Description,
    defaults: Mapping[str, object],
    stages: Sequence[Stage],
    tokenizer: Mapping[str, object],
    needs: str | None = None,
) -> list[str]:
    """Return what `show` prints. needs: the other half that it cannot do without."""
    dtypes = sorted({dtype for part in what.components for dtype in part.dtypes})
    facts = {
        "name": what.name,
        "kind": what.kind,
        "family": what.family,
        "parameters": f"{what.parameters:,} ({', '.join(dtypes)})" if what.parameters is not None else None,
        "size": f"{in_words(what.bytes)} in {counted(len(what.files), 'file')}",
        "licence": what.licence,
        "path": str(what.path),
        "revision": revision(source),
        "needs": needs,
        "problem": what.problem,
        **{word: _first(what.config, keys) for word, keys in SUMMARY.items()},
        "tokenizer": tokenizer.get("kind"),
        "chat template": ("yes" if tokenizer["chat_template"] else "no") if tokenizer else None,
        "reasoning": _wishes(tokenizer.get("think")),
        "tools": "--tools FILE|JSON" if tokenizer.get("tools") else "",
        "not loaded": ", ".join(what.not_loaded),
    }
    lines = columns([[f"{name}:", str(value)] for name, value in facts.items() if value not in (None, "")])
    parts = [
        [part.name, part.family, "" if part.parameters is None else f"{_short(part.parameters)}", *part.dtypes]
        for part in what.components
        if part.name
    ]
    lines += _section("components", parts)
    lines += _section("stages", [_stage(stage) for stage in stages])
    lines += _section("default settings", [[name, _value(value)] for name, value in defaults.items()])
    lines += _section("quantized copies", [[mix, in_words(size)] for mix, size in _copies(source).items()])
    return lines + _section("files", [[name, in_words(size)] for name, size in what.files.items()])


def _wishes(think: object) -> str:
    """Return what --think can be for a model whose template has a switch."""
    return f"--think {', '.join(map(str, think))}" if isinstance(think, list) else ""


def _stage(stage: Stage) -> list[str]:
    size = [
        _short(stage["parameters"] or 0),
        in_words(stage["bytes"]),
        counted(stage["steps"], "step"),
        stage["sampler"],
    ]
    guided = [f"cfg-scale {stage['guidance']:g}"] if "guidance" in stage else []
    return [f"{stage['name']} (main)" if stage["main"] else stage["name"], stage["network"], *size, *guided]


def _section(title: str, rows: Sequence[list[str]]) -> list[str]:
    return ["", f"{title}:", *("  " + line for line in columns(rows))] if rows else []


def columns(rows: Sequence[list[str]], right: set[int] | frozenset[int] = frozenset()) -> list[str]:
    """Return rows of cells as aligned lines: columns in `right` at the right, the others at the left."""
    clean = [[" ".join(str(cell).split()) for cell in cells] for cells in rows]
    widths = [max(len(cells[i]) for cells in clean if i < len(cells)) for i in range(max(map(len, clean)))]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=False))
        ).rstrip()
        for cells in clean
    ]


def _first(config: Mapping[str, object], keys: Iterable[str]) -> object:
    inner = config.get("text_config")  # of models that also see
    config = inner if isinstance(inner, dict) else config
    return next((config[key] for key in keys if isinstance(config.get(key), (int, str))), None)


def _short(number: int) -> str:
    """Return a number of parameters as people say it: 124.4M, 1.1B."""
    for power, letter in ((9, "B"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.1f}{letter}"
    return str(number)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) if value != "" else '""'

"""What the recipes think of a checkpoint: whether they can open it, and the settings that they would run it with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gencli.checkpoints.describe import Description, describe
from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.json_files import read_json
from gencli.models import PALETTES


def judge(
    source: Source, what: Description, prediction: str | None = None, *, allow_pickle: bool = False
) -> Description:
    """The description, with what the picture recipe has against it; `prediction` as its option. No torch."""
    if what.kind != "image" or what.problem:
        return what
    from gencli.image.checkpoint import open_checkpoint
    from gencli.image.palette import open_palette

    try:
        if what.family in PALETTES:
            open_palette(source)
        else:
            open_checkpoint(source, prediction=prediction, allow_pickle=allow_pickle)
    except GencliError as error:
        return dataclasses.replace(what, problem=error.message)
    return what


def default_settings(source: Source, what: Description, *, allow_pickle: bool = False) -> dict[str, Any]:
    """What holds for this checkpoint when the command line says nothing."""
    if what.problem:
        return {}
    try:
        if what.family in PALETTES:
            return _of_palette(source)
        if what.kind == "image":
            return _of_image(source, allow_pickle)
        return _of_text(source.path) if what.kind == "text" else {}
    except GencliError:
        return {}  # `check` says what is wrong


def _of_text(folder: Path) -> dict[str, Any]:
    from gencli.text.request import TextRequest

    return TextRequest().resolve(_generation_config(folder)).completed()


def _of_image(source: Source, allow_pickle: bool) -> dict[str, Any]:
    from gencli.image.checkpoint import open_checkpoint
    from gencli.image.resolve import built_in

    checkpoint = open_checkpoint(source, allow_pickle=allow_pickle)
    own = {name: value for name, value in checkpoint.defaults.items() if checkpoint.prompt != "none" or name == "steps"}
    scheduler = {key: checkpoint.configs["scheduler"].get(key) for key in ("prediction_type", "timestep_spacing")}
    named = {"prediction": scheduler["prediction_type"], "spacing": scheduler["timestep_spacing"]}
    size = {} if checkpoint.size is None else dict(zip(("width", "height"), checkpoint.size, strict=True))
    found = {**built_in(checkpoint), **own, **size}
    return found | {name: value for name, value in named.items() if value is not None}


def _of_palette(source: Source) -> dict[str, Any]:
    from gencli.image.palette import BUILT_IN, open_palette

    palette = open_palette(source)
    width, height = palette.size
    return {**BUILT_IN, **palette.defaults, "width": width, "height": height, "colours": len(palette.colours)}


def _generation_config(folder: Path) -> Mapping[str, Any]:
    file = folder / "generation_config.json"
    return read_json(file) if file.is_file() else {}


def small_problems(source: Source, *, weights_are_fine: bool, allow_pickle: bool = False) -> Iterator[str]:
    """What is wrong beside the weights: config, tokenizer, scheduler, settings."""
    what = describe(source, allow_pickle=allow_pickle)
    what = judge(source, what, _any_prediction(source), allow_pickle=allow_pickle)
    if what.problem and weights_are_fine:  # else it has been said in other words
        yield what.problem
    try:
        if what.kind == "text" and source.kind != "file":
            from gencli.text.request import TextRequest
            from gencli.tokens import load_tokenizer

            load_tokenizer(source.path)
            TextRequest().resolve(_generation_config(source.path))
        elif what.kind == "score" and not what.problem:
            from gencli.image.files.preprocess import CLIP, FILE, from_settings, read_settings
            from gencli.tokens import load_tokenizer

            from_settings(read_settings(source.path), CLIP, str(source.path / FILE))
            load_tokenizer(source.path)
        elif what.kind == "image" and what.family not in PALETTES and not what.problem:
            _open_image(source, allow_pickle)
    except GencliError as error:
        yield error.message


def _any_prediction(source: Source) -> str | None:
    """For a file that need not say what it predicts: whole it is all the same."""
    return "epsilon" if source.kind == "file" else None


def _open_image(source: Source, allow_pickle: bool) -> None:
    """Raises GencliError for what the picture recipe would stumble over before its weights."""
    from gencli.image.checkpoint import open_checkpoint
    from gencli.image.request import ImageRequest
    from gencli.image.resolve import resolve

    checkpoint = open_checkpoint(source, prediction=_any_prediction(source), allow_pickle=allow_pickle)
    for part in checkpoint.parts:
        if part.startswith("tokenizer"):
            checkpoint.tokenizer(part)
    reads: dict[str, dict[str, Any]] = {"mask": {"init": "?", "mask": "?"}, "picture": {"init": "?"}}
    given = reads.get(checkpoint.also_reads or "", {})
    resolve(ImageRequest(width=checkpoint.multiple, height=checkpoint.multiple, **given), checkpoint)

"""The one door: what lies at a path is decided here, by the table of formats, and every command takes its answer."""

from __future__ import annotations

import dataclasses

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Part
from gencli.checkpoints.find import Source
from gencli.checkpoints.formats import FORMATS
from gencli.checkpoints.formats.folders import whole_file
from gencli.errors import GencliError

NO_HINTS = Hints()


def open_checkpoint(source: Source | Contents, *, allow_pickle: bool = False, hints: Hints = NO_HINTS) -> Checkpoint:
    """Return what lies at a path, told by small files and headers alone; weights are opened as they are used.

    source: a `Contents` remembers what has been read of it. allow_pickle: open pickles, for their tensors and nothing
    else. hints: what the user says of it. Nothing is raised for what is broken or of no known kind: the checkpoint's
    `problem` says what is wrong, and so do its parts when they are opened.
    """
    contents = source if isinstance(source, Contents) else Contents(source, allow_pickle=allow_pickle)
    format = next(row for row in FORMATS if row.recognise(contents))
    try:
        seen = [row.network for row in FORMATS if format.network and row.network and row.recognise(contents)]
        if len(seen) > 1:
            raise GencliError(f"its tensors are those of two networks, {' and '.join(seen)}")
        found = format.read(contents, hints)
    except GencliError as error:
        problem = GencliError(f"{contents.path}: {error.message}", error.hint)
        found = Checkpoint(contents, format.kind, parts={"": whole_file(contents)}, problem=problem)
    return dataclasses.replace(found, format=format.name)


def replace_part(checkpoint: Checkpoint, name: str, part: Part) -> Checkpoint:
    """Return the checkpoint with another part in the place of its own, or beside its own."""
    return dataclasses.replace(checkpoint, parts={**checkpoint.parts, name: dataclasses.replace(part, name=name)})

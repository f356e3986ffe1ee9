"""`gencli image --info`: what an image says about how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gencli.cli.console import Console
from gencli.cli.prompts import image_data
from gencli.cli.sinks import write_lines, write_object
from gencli.errors import GencliError
from gencli.image.request import ImageRequest
from gencli.options import rows

if TYPE_CHECKING:
    from gencli.image.files.metadata import Found


def print_info(console: Console, paths: Sequence[str], *, json: bool) -> None:
    """Print what images say about how they were made: of several each with its path, and on stderr what is wrong with
    one. Raise GencliError if one says nothing."""
    from gencli.image.files.pictures import read_request

    failed = 0
    for number, path in enumerate(paths):
        try:
            found = read_request(image_data(path, "--info - reads the image"))
        except GencliError as error:
            if len(paths) == 1:
                raise
            console.error(error)
            failed += 1
            continue
        if json:
            write_object({"path": path, **_values(found), "left_out": list(found.left_out)})
        else:
            write_lines(
                ([] if number == 0 else [""]) + ([f"{'file':18}{path}"] if len(paths) > 1 else []) + _page(found)
            )
    if failed:
        raise GencliError(f"{failed} of {len(paths)} files do not say how they were made")


def _values(found: Found) -> dict[str, object]:
    return {name: value for name, value in found.values.items() if name != "hashes"}


def _page(found: Found) -> list[str]:
    words = {name: option.listed_as(name).replace("_", "-") for name, option in rows(ImageRequest)}
    lines = [(words.get(name, name), text) for name, value in _values(found).items() for text in _typed(value)]
    lines += [("left out", ", ".join(found.words))] if found.left_out else []
    return [f"{name:18}{text}" for name, text in lines]


def _typed(value: object) -> list[str]:
    """A value as one would type it: of what may be given several times one text each, and none for an empty one."""
    if isinstance(value, Mapping):
        return [f"{name}={text}" for name, one in value.items() for text in _typed(one)]
    if isinstance(value, list | tuple):
        return [text for one in value for text in _typed(one)]
    if isinstance(value, bool):
        return ["true" if value else "false"]
    return [] if value in ("", None) else [f"{value:g}" if isinstance(value, float) else str(value)]

"""`gencli image --info`: what an image says about how it was made."""

from __future__ import annotations

from collections.abc import Mapping

from gencli.cli.sinks import write_lines, write_object
from gencli.image.request import ImageRequest
from gencli.options import rows


def print_info(path: str, *, json: bool) -> None:
    """Print what an image says about how it was made. Raise GencliError if it says nothing."""
    from gencli.image.files.pictures import read_request

    found = read_request(path)
    values = {name: value for name, value in found.values.items() if name != "hashes"}
    if json:
        write_object({**values, "left_out": list(found.left_out)})
        return
    words = {name: option.listed_as(name).replace("_", "-") for name, option in rows(ImageRequest)}
    lines = [(words.get(name, name), text) for name, value in values.items() for text in _typed(value)]
    lines += [("left out", ", ".join(found.left_out))] if found.left_out else []
    write_lines([f"{name:18}{text}" for name, text in lines])


def _typed(value: object) -> list[str]:
    """A value as one would type it: of what may be given several times one text each, and none for an empty one."""
    if isinstance(value, Mapping):
        return [f"{name}={text}" for name, one in value.items() for text in _typed(one)]
    if isinstance(value, list | tuple):
        return [text for one in value for text in _typed(one)]
    if isinstance(value, bool):
        return ["true" if value else "false"]
    return [] if value in ("", None) else [f"{value:g}" if isinstance(value, float) else str(value)]

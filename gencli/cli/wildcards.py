"""Prompts with wildcards, as AUTOMATIC1111's users write them: `{red|green} apple`, `__colors__ apple`.

`{a|b|2::c}` stands for one of its parts, of which c is twice as likely; parts may be empty and hold further wildcards.
`__name__` stands for a line of name.txt, here or in the folder wildcards/; blank lines and those after # do not count.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gencli.errors import GencliError, UsageError

if TYPE_CHECKING:
    from gencli.image.request import ImageRequest

INNER = re.compile(r"\{([^{}]*)\}|__([\w./ -]+?)__")
FOLDERS = (Path(), Path("wildcards"))
LIMIT = 1000  # replacements in one prompt: files may name each other in a circle
SIZE_LIMIT = 2**24  # bytes of a file


def expand(prompt: str, seed: int) -> str:
    """Return a prompt with every wildcard replaced; the same seed makes the same choices. Raise GencliError."""
    draw = random.Random(seed)
    for _ in range(LIMIT):
        found = INNER.search(prompt)
        if found is None:
            return " ".join(prompt.split())
        chosen = _line(found[2], draw) if found[2] is not None else _part(found[1], draw)
        prompt = prompt[: found.start()] + chosen + prompt[found.end() :]
    raise GencliError(f"the wildcards of {prompt[:60]!r} do not come to an end", "does a file name itself?")


def _part(text: str, draw: random.Random) -> str:
    parts, weights = [], []
    for part in text.split("|"):
        weight, marked, rest = part.partition("::")
        known = marked and re.fullmatch(r"\s*\d+(\.\d+)?\s*", weight)
        parts.append(rest if known else part)
        weights.append(float(weight) if known else 1.0)
    return draw.choices(parts, weights if any(weights) else None)[0]


def _line(name: str, draw: random.Random) -> str:
    """Return one line of the file of a name. Raise GencliError if there is none."""
    for folder in FOLDERS:
        file = folder / f"{name}.txt"
        if file.is_file():
            break
    else:
        raise GencliError(f"no file for the wildcard __{name}__", f"it is a line of {name}.txt or wildcards/{name}.txt")
    try:
        with file.open("rb") as stream:
            text = stream.read(SIZE_LIMIT).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise GencliError(f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    lines = [line for line in (line.partition("#")[0].strip() for line in text.splitlines()) if line]
    if not lines:
        raise GencliError(f"{file} has no lines to choose from")
    return draw.choice(lines)


def choices(
    lines: Iterator[str | GencliError] | None, prompt: str, request: ImageRequest
) -> tuple[Iterator[str | GencliError], ImageRequest]:
    """Return a prompt for each image, chosen by its seed from the wildcards of lines, or of the one prompt without
    them, and a request for one image of each. Images of lines that lack the same file have the same error.

    Raise UsageError for --best, which compares images of one prompt, GencliError for the one prompt as `expand`.
    """
    if request.best is not None:
        raise UsageError("--best cannot be combined with --wildcards")
    seed, count, errors = request.seed or 0, request.count, dict[str, GencliError]()

    def chosen() -> Iterator[str | GencliError]:
        for number, line in enumerate(lines or ()):
            for index in range(number * count, (number + 1) * count):
                try:
                    yield line if isinstance(line, GencliError) else expand(line, seed + index)
                except GencliError as error:
                    yield errors.setdefault(error.message, error)

    made = chosen() if lines is not None else iter([expand(prompt, seed + index) for index in range(count)])
    return made, request.replace(count=1, prompt="")

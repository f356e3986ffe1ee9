"""Infotext, the form in which most tools say how they made an image: the prompt, `Negative prompt: …`, and one line of
settings, `Steps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 1, Size: 512x512, …`. In one pass, whatever the text holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

NEGATIVE = "Negative prompt:"
# The line of settings: that of gencli, and what all other tools have in it (a prompt with a few colons has it not).
SETTINGS = re.compile(r"(?:^|,) *(?:Steps: *(?:\d+ *(?:,|$)|[^,]*, *Sampler: )|Version: gencli )")
TEMPLATE = re.compile(r"(?:Negative )?Template: ")  # what dynamic prompts were made from; it follows the settings
PLAIN_KEY = re.compile(r"[\w .+/()'-]{1,60}")  # others are pieces of a value that should have been in quotes
QUOTED = re.compile(  # a string of JSON
    r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"'
)


@dataclass(frozen=True)
class Recipe:
    """What an image says of its making, in no tool's own form. settings: by infotext's keys. weighted: whether the
    prompts have weights in brackets, None where that is not known. left_out: what the reader did not follow."""

    prompt: str
    negative: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    weighted: bool | None = None
    left_out: tuple[str, ...] = ()


def parse(text: str) -> Recipe | None:
    """Return what infotext says, or None for a text without a line of settings."""
    lines = text.strip().split("\n")
    at = _find_settings(lines)
    if at is None:
        return None
    settings: dict[str, str] = {}
    for key, value in pairs(lines[at]):
        settings.setdefault(key, value)
    rest = [line for line in lines[at + 1 :] if line.strip()]
    left_out = [line.partition(":")[0] if TEMPLATE.match(line) else line[:40] for line in rest[:3]]
    prompt, negative = split_prompts(lines[:at])
    return Recipe(prompt, negative, settings, left_out=tuple(left_out))


def _find_settings(lines: list[str]) -> int | None:
    """Return the index of the last line of settings before any template, which may look like one."""
    found = None
    for index, line in enumerate(lines):
        if found is not None and TEMPLATE.match(line):
            return found
        if SETTINGS.search(line) and line.count(":") >= 3:
            found = index
    return found


def split_prompts(lines: list[str]) -> tuple[str, str | None]:
    """Split the lines before the settings into the prompt and the negative prompt, if there is one."""
    at = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[at:])[len(NEGATIVE) :].strip() if at < len(lines) else None
    return "\n".join(lines[:at]).strip(), negative


def quote(text: str) -> str:
    """Return a value as it is, or as a JSON string if it has a comma, colon or line break."""
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text


def pairs(line: str) -> Iterator[tuple[str, str]]:
    """Yield the `key: value` pairs of a line of settings; values may be JSON strings.

    In one pass: a JSON string ends at the next quote without a backslash, where no other value can have begun before.
    """
    at = 0
    while (colon := line.find(":", at)) >= 0:
        key = line[at:colon].rpartition(",")[2].strip()
        start = colon + 1
        while start < len(line) and line[start] == " ":
            start += 1
        quoted = QUOTED.match(line, start)
        comma = line.find(",", quoted.end() if quoted else start)
        comma = len(line) if comma < 0 else comma
        yield key, json.loads(quoted[0]) if quoted else line[start:comma].strip()
        at = comma + 1

"""What a request says of a model's reasoning and of its chat template, checked before anything is opened. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping

from gencli.errors import GencliError, UsageError
from gencli.json_files import as_unicode, parse_json

ON, OFF, AUTO = "on", "off", "auto"
LEVELS = ("low", "medium", "high")
WISHES = (ON, OFF, *LEVELS)
# The words of other programs: OpenAI's efforts, and what stands for true and false.
SAME = {
    **dict.fromkeys(("true", "yes", "1"), ON),
    **dict.fromkeys(("false", "no", "0", "none"), OFF),
    "minimal": "low",
    **dict.fromkeys(("xhigh", "max"), "high"),
}


def read_wish(word: str | None) -> str | None:
    """Return the wish that a word stands for, None for what leaves it to the template; another word as it is."""
    name = (word or AUTO).lower()
    return None if name == AUTO else SAME.get(name, name if name in WISHES else word)


def check_values(name: str, text: object) -> None:
    """Raise UsageError for what is no JSON object of plain values."""
    try:
        read_values(text)
    except GencliError as error:
        raise UsageError(f"{name}: {error.message}", """as in '{"enable_thinking": false}'""") from None


def read_values(text: object) -> Mapping[str, object]:
    """Return the values of a JSON object. Raise GencliError for others, and for numbers that JSON has not."""
    found = parse_json(text, "the value") if isinstance(text, str) else None
    if not isinstance(found, dict):
        raise GencliError("wants a JSON object")
    try:
        as_unicode(json.dumps(found, ensure_ascii=False, allow_nan=False), "the value")
    except (ValueError, RecursionError):
        raise GencliError("a number in it is not finite") from None
    return found

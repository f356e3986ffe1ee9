"""Requests as text inside images, and back: JSON, which is complete, and infotext, which other tools read too.

Infotext is what AUTOMATIC1111's web UI writes under the key `parameters`: the prompt, a line `Negative prompt: …`,
then one line `Steps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 1, Size: 512x512, …`. Both follow the fields of
`ImageRequest`. No torch in here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gencli import __version__
from gencli.errors import GencliError, UsageError
from gencli.image.request import ImageRequest
from gencli.options import Option, rows

INFOTEXT, JSON = "parameters", "gencli"  # the keys in a picture
LIMIT = 2**20  # characters of either; a claim of more is refused
NEGATIVE = "Negative prompt:"
KARRAS_SUFFIX = " Karras"  # of a sampler, as the web UI wrote it before version 1.9
QUOTED = re.compile(  # a string of JSON
    r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"'
)
ALIASES = {"Eta DDIM": "Eta"}
# Keys that another tool's picture does not lead anywhere with: names of models, and what goes with a file of its own.
FOREIGN = {"Model", "VAE", "Denoising strength", "Refiner", "Refiner switch at"}
INERT = {"Version", "Model hash", "VAE hash", "Size-1", "Size-2"}  # keys of others that say nothing about the pixels


ROWS = dict(rows(ImageRequest))
DEFAULTS = {field.name: field.default for field in dataclasses.fields(ImageRequest)}


@dataclasses.dataclass(frozen=True)
class Found:
    """What an image says about how it was made: values for `ImageRequest`, and the keys that were left out."""

    values: Mapping[str, Any]
    left_out: tuple[str, ...] = ()


def to_dict(request: ImageRequest) -> dict[str, Any]:
    """Return a request in JSON's types, without the values that are not set."""
    values = {name: getattr(request, name) for name in ROWS}
    values["sampler_options"] = dict(request.sampler_options) or None
    return {name: value for name, value in values.items() if value is not None and value != ()}


def to_json(request: ImageRequest) -> str:
    """Return the whole request as one line of ASCII JSON; `version` is gencli's."""
    return json.dumps({"version": __version__, **to_dict(request)})


def from_json(text: str) -> Found:
    """Read what `to_json` wrote. Raise GencliError for text that is not from gencli, or from a later one."""
    try:
        raw = json.loads(_limited(text))
    except (ValueError, RecursionError):
        raise GencliError(f"its {JSON!r} text is not valid JSON") from None
    if not isinstance(raw, dict):
        raise GencliError(f"its {JSON!r} text holds no JSON object")
    version = raw.pop("version", "?")
    if unknown := sorted(set(raw) - set(ROWS)):
        raise GencliError(
            f"its {JSON!r} text (version {version!s:.20}) has {', '.join(unknown)[:80]}, unknown to {__version__}",
            "a later gencli may know it",
        )
    try:
        ImageRequest(**raw)
    except UsageError as error:
        raise GencliError(f"its {JSON!r} text: {error.message.removeprefix('--')}", error.hint) from None
    return Found(raw)


def to_infotext(request: ImageRequest) -> str:
    """Return the request as AUTOMATIC1111's web UI would write it, with further keys for what it does not have."""
    lines = [request.prompt]
    if request.negative:
        lines.append(f"{NEGATIVE} {request.negative}")
    values = to_dict(request)
    pairs = []
    for name, option in ROWS.items():
        value = values.get(name)
        if option.infotext and value is not None and value != DEFAULTS[name]:
            pairs.append((option.infotext, _write(option, value)))
        if name == "weighted" and not value and any(bracket in lines[0] + lines[-1] for bracket in "([\\"):
            pairs.append((str(option.infotext), option.labels[False]))  # else the web UI would take them for weights
        if name == "height" and request.width and request.height:
            pairs.append(("Size", f"{request.width}x{request.height}"))
    if not any(key == "Model" for key, _ in pairs):
        pairs.append(("Model", request.model))
    pairs.append(("Version", f"gencli {__version__}"))
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in pairs))
    return "\n".join(lines)


def from_infotext(text: str) -> Found:
    """Read infotext, gencli's own or another tool's.

    What another tool's picture says that gencli does not know goes to `left_out`; its model too, since a bare name
    does not say where the model is. Raise GencliError when nothing in the text can be understood.
    """
    lines = _limited(text).strip().split("\n")
    pairs = dict(_pairs(lines[-1]))
    if len(pairs) >= 3:
        lines.pop()
    else:
        pairs = {}
    prompt, negative = _prompts(lines)
    values: dict[str, Any] = {"prompt": prompt} | ({} if negative is None else {"negative": negative})
    ours = pairs.get("Version", "").startswith("gencli ")
    if pairs and not ours:
        values["weighted"] = True  # the web UI's prompts are, unless it says so
    left_out = []
    fields = {option.infotext: name for name, option in ROWS.items() if option.infotext}
    for key, value in pairs.items():
        key = ALIASES.get(key, key)
        if key in INERT:
            continue
        known = _read_size(value) if key == "Size" else _read(fields.get(key), value)
        if known and (ours or key not in FOREIGN):
            values.update(known)
        else:
            left_out.append(key)
    if not pairs and not prompt:
        raise GencliError(f"its {INFOTEXT!r} text is empty")
    return Found(values, tuple(left_out))


def _prompts(lines: list[str]) -> tuple[str, str | None]:
    """Split the lines before the parameters into the prompt and the negative prompt, if there is one."""
    at = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[at:])[len(NEGATIVE) :].strip() if at < len(lines) else None
    return "\n".join(lines[:at]).strip(), negative


def _write(option: Option, value: Any) -> str:
    if isinstance(value, Mapping | tuple):
        return json.dumps(value)
    if value in option.labels:
        return option.labels[value]
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _read(field: str | None, text: str) -> dict[str, Any] | None:
    """Return the values of one parameter, or None if it is not understood."""
    if field is None:
        return None
    option, more = ROWS[field], dict[str, Any]()
    if field == "sampler" and text.endswith(KARRAS_SUFFIX):
        text, more = text.removesuffix(KARRAS_SUFFIX), {"karras": True}
    try:
        value = _parse(option, text)
        option.check(field, tuple(value) if option.several and isinstance(value, list) else value)
    except (KeyError, TypeError, ValueError, RecursionError, UsageError):
        return None
    return {field: value, **more}


def _parse(option: Option, text: str) -> Any:
    """Parse a value of the row's kind. Raise KeyError or ValueError."""
    labels = {label: value for value, label in option.labels.items()}
    if option.kind is bool:
        return (labels or {"True": True, "False": False})[text]
    if option.several or option.kind is Mapping:
        return json.loads(text)
    return option.kind(text) if option.kind in (int, float) else labels.get(text, text)


def _read_size(text: str) -> dict[str, Any] | None:
    width, _, height = text.partition("x")
    try:
        size = {"width": int(width), "height": int(height)}
        for name, value in size.items():
            ROWS[name].check(name, value)
    except (ValueError, UsageError):
        return None
    return size


def _quote(text: str) -> str:
    """Return a value as it is, or as a JSON string if it has a comma, colon or line break."""
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """Yield the `key: value` pairs of the parameter line; values may be JSON strings.

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


def _limited(text: str) -> str:
    if len(text) > LIMIT:
        raise GencliError(f"its text of {len(text)} characters is too long to be a request")
    return text

"""A request as text inside a picture, and back: JSON, which is complete, and infotext, which other tools read too.

Infotext is what AUTOMATIC1111's web UI writes under the key `parameters`: the prompt, a line `Negative prompt: …`,
then one line `Steps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 1, Size: 512x512, …`. Both follow the fields of
`ImageRequest`. No torch in here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from gencli import __version__
from gencli.errors import GencliError, UsageError
from gencli.image.request import ImageRequest

INFOTEXT, JSON = "parameters", "gencli"  # the keys in a picture
LIMIT = 2**20  # characters of either; a claim of more is refused
NEGATIVE = "Negative prompt:"
KARRAS = "Karras"
WEIGHTED, PLAIN = "Original", "None"  # what the web UI calls its ways to read brackets in prompts
# Names as the web UI shows them; a sampler that it lacks goes by its own name.
SAMPLER_LABELS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "lcm": "LCM",
}
ALIASES = {"Eta DDIM": "Eta"}
# Keys that another tool's picture does not lead anywhere with: names of models, and what goes with a file of its own.
FOREIGN = {"Model", "VAE", "Denoising strength", "Refiner", "Refiner switch at"}
INERT = {"Version", "Model hash", "VAE hash", "Size-1", "Size-2"}  # keys of others that say nothing about the pixels


@dataclasses.dataclass(frozen=True)
class Found:
    """What a picture says about its making: values for `ImageRequest`, and what had to be left out."""

    values: Mapping[str, Any]
    left_out: tuple[str, ...] = ()


def _fields() -> Iterator[dataclasses.Field[Any]]:
    return iter(dataclasses.fields(ImageRequest))


def to_dict(request: ImageRequest) -> dict[str, Any]:
    """A request as JSON's types, without the values that are not set."""
    values = {field.name: getattr(request, field.name) for field in _fields()}
    values["sampler_options"] = dict(request.sampler_options) or None
    return {name: value for name, value in values.items() if value is not None and value != ()}


def to_json(request: ImageRequest) -> str:
    """The whole request as one line of ASCII JSON; `version` is gencli's."""
    return json.dumps({"version": __version__, **to_dict(request)})


def from_json(text: str) -> Found:
    """Read what `to_json` wrote. Raises GencliError for text that is not from gencli, or from a later one."""
    try:
        raw = json.loads(_limited(text))
    except (ValueError, RecursionError):
        raise GencliError(f"its {JSON!r} text is not valid JSON") from None
    if not isinstance(raw, dict):
        raise GencliError(f"its {JSON!r} text holds no JSON object")
    version = raw.pop("version", "?")
    if unknown := sorted(set(raw) - {field.name for field in _fields()}):
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
    """The request as AUTOMATIC1111's web UI would write it, with further keys for what it does not have."""
    lines = [request.prompt]
    if request.negative:
        lines.append(f"{NEGATIVE} {request.negative}")
    values = to_dict(request)
    pairs = []
    for field in _fields():
        key, value = field.metadata["infotext"], values.get(field.name)
        if key and value is not None and value != field.default:
            pairs.append((key, _write(field, value)))
        if field.name == "weighted" and not value and any(bracket in lines[0] + lines[-1] for bracket in "([\\"):
            pairs.append((key, PLAIN))  # else the web UI would take them for weights
        if field.name == "height" and request.width and request.height:
            pairs.append(("Size", f"{request.width}x{request.height}"))
    if not any(key == "Model" for key, _ in pairs):
        pairs.append(("Model", request.model))
    pairs.append(("Version", f"gencli {__version__}"))
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in pairs))
    return "\n".join(lines)


def from_infotext(text: str) -> Found:
    """Read infotext, gencli's own or another tool's.

    What another tool's picture says that gencli does not know goes to `left_out`; its model too, since a bare name
    does not say where the model is. Raises GencliError when nothing in the text can be understood.
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
    fields = {field.metadata["infotext"]: field for field in _fields()}
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
    """The lines before the parameters: the prompt, and what follows `Negative prompt:`, if that is there."""
    at = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[at:])[len(NEGATIVE) :].strip() if at < len(lines) else None
    return "\n".join(lines[:at]).strip(), negative


def _write(field: dataclasses.Field[Any], value: Any) -> str:
    if field.name == "sampler":
        return SAMPLER_LABELS.get(value, value)
    if field.name == "karras":
        return KARRAS if value else "Automatic"
    if field.name == "weighted":
        return WEIGHTED if value else PLAIN
    if isinstance(value, Mapping | tuple):
        return json.dumps(value)
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _read(field: dataclasses.Field[Any] | None, text: str) -> dict[str, Any] | None:
    """The values that one parameter stands for; None when it is not understood."""
    if field is None:
        return None
    if field.name == "sampler":
        return _read_sampler(text)
    if field.name == "karras":
        return {"karras": text == KARRAS} if text in (KARRAS, "Automatic") else None
    if field.name == "weighted":
        return {"weighted": text == WEIGHTED} if text in (WEIGHTED, PLAIN) else None
    kind = field.metadata["kind"]
    try:
        value: Any = {"True": True, "False": False}[text] if kind is bool else text
        several = field.metadata.get("several")
        value = json.loads(text) if kind is Mapping or several else value
        value = kind(text) if kind in (int, float) and not several else value
        values: dict[str, Any] = {"init": "?"} if field.name in ("mask", "strength", "keep_rows") else {}
        if field.name == "refiner_start":
            values = {"refiner": "?"}
        if field.name == "best":
            values = {"count": value}
        if field.name.startswith("control"):
            values = {name: ["?"] * len(value) for name in ("control", "control_image")}
        ImageRequest(**{**values, field.name: value})
    except (KeyError, TypeError, ValueError, RecursionError, UsageError):
        return None
    return {field.name: value}


def _read_sampler(text: str) -> dict[str, Any] | None:
    from gencli.image.diffusion import samplers

    label = text.removesuffix(f" {KARRAS}")  # how the web UI wrote it before version 1.9
    name = next((name for name, known in SAMPLER_LABELS.items() if known == label), label)
    if name not in samplers.names():
        return None
    return {"sampler": name, "karras": True} if label != text else {"sampler": name}


def _read_size(text: str) -> dict[str, Any] | None:
    width, _, height = text.partition("x")
    try:
        size = {"width": int(width), "height": int(height)}
        ImageRequest(**size)  # type: ignore[arg-type]
    except (ValueError, UsageError):
        return None
    return size


def _quote(text: str) -> str:
    """A value with a comma, a colon or a line break is written as a JSON string."""
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """`key: value` pairs of the parameter line, in one pass; values may be JSON strings."""
    at = 0
    while (colon := line.find(":", at)) >= 0:
        key = line[at:colon].rpartition(",")[2].strip()
        start = colon + 1
        while start < len(line) and line[start] == " ":
            start += 1
        value, end = "", start
        if line[start : start + 1] == '"':
            try:
                value, end = json.JSONDecoder().raw_decode(line, start)
            except ValueError:
                end = start
        comma = line.find(",", end)
        at = len(line) if comma < 0 else comma + 1
        yield key, value if end > start else line[start : len(line) if comma < 0 else comma].strip()


def _limited(text: str) -> str:
    if len(text) > LIMIT:
        raise GencliError(f"its text of {len(text)} characters is too long to be a request")
    return text

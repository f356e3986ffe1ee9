"""Requests as text inside images, and back: JSON, which is complete, and infotext, which other tools read too.

Both follow the fields of `ImageRequest`. What other tools write is read in `recipes`. No torch in here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping

from gencli import __version__
from gencli.errors import GencliError, UsageError, shorten
from gencli.image.diffusion import samplers
from gencli.image.files.infotext import NEGATIVE, PLAIN_KEY, Recipe, quote
from gencli.image.request import ImageRequest
from gencli.image.values import SCHEDULE_LABELS
from gencli.options import TEXT_LIMIT, Option, make, rows, typed

INFOTEXT, JSON = "parameters", "gencli"  # the keys in a picture
LIMIT = 32 * TEXT_LIMIT  # characters of either: two prompts of that length, each character as two JSON escapes
ALIASES = {"Eta DDIM": "Eta", "Guidance Scale": "CFG scale"}
TOLD = "Distilled CFG Scale"  # Forge's word for the guidance that FLUX.1 dev is told, which is gencli's
INERT = {"Version", "Model hash", "VAE hash", "App", "Size-1", "Size-2"}  # say nothing about the pixels
USUAL = ("automatic", "normal", "native", "default")  # words of other tools for no schedule of their own
TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{1,200}>")
NO_RECIPE_HINT = "gencli (without --no-metadata) and many other tools embed them; many programs strip them"


ROWS = dict(rows(ImageRequest))
DEFAULTS = {field.name: field.default for field in dataclasses.fields(ImageRequest)}


@dataclasses.dataclass(frozen=True)
class Found:
    """What an image says about how it was made: values for `ImageRequest`, and the keys that were left out.

    said: what those keys say, where it is known. usual: of those keys that the model settles instead the fields.
    """

    values: Mapping[str, object]
    left_out: tuple[str, ...] = ()
    said: Mapping[str, str] = dataclasses.field(default_factory=dict)
    usual: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """What was left out, with what it says."""
        return [f"{key}: {shorten(self.said[key], 40)}" if key in self.said else key for key in self.left_out]


def to_dict(request: ImageRequest) -> dict[str, object]:
    """Return a request in JSON's types, without the values that are not set."""
    values = {name: getattr(request, name) for name in ROWS}
    for name in ("sampler_options", "hashes"):
        values[name] = dict(values[name]) or None
    return {name: value for name, value in values.items() if value is not None and value != ()}


def to_json(request: ImageRequest) -> str:
    """Return the whole request as one line of ASCII JSON; `version` is gencli's."""
    return json.dumps({"version": __version__, **to_dict(request)})


def from_json(text: str) -> Found:
    """Read what `to_json` wrote. Raise GencliError for text that is not from gencli, or from a later one."""
    try:
        raw = json.loads(limited(text))
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
        make(ImageRequest, raw)
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
    lines.append(", ".join(f"{key}: {quote(value)}" for key, value in pairs))
    return "\n".join(lines)


def settle(recipe: Recipe) -> Found:
    """Return a recipe as values for `ImageRequest`: all of its settings if gencli wrote it, else those that mean the
    same here. What another tool says besides goes to `left_out`, as does what its sampler has and ours lacks."""
    ours = recipe.settings.get("Version", "").startswith("gencli ")
    values: dict[str, object] = {"prompt": recipe.prompt}
    values |= {} if recipe.negative is None else {"negative": recipe.negative}
    weighted = True if recipe.weighted is None and recipe.settings and not ours else recipe.weighted
    values |= {} if weighted is None else {"weighted": weighted}
    left_out, settings = list(recipe.left_out), dict(recipe.settings)
    if TOLD in settings:
        left_out += [] if settings.get("CFG scale", "1") in ("1", "1.0") else ["CFG scale"]
        settings["CFG scale"] = settings.pop(TOLD)
    for key, value in settings.items():
        key = ALIASES.get(key, key)
        field = next((name for name, option in ROWS.items() if option.infotext == key), None)
        if key in INERT or not PLAIN_KEY.fullmatch(key):
            continue
        if not ours and field not in SHARED and key != "Size":
            known = None
        else:
            known = _read_size(value) if key == "Size" else _read(field, value, ours)
        if known is None:
            left_out.append(key)
        else:
            values.update(known)
    if not ours:
        left_out += _drop_sampler_options(values)
        left_out += _drop_tags(values)
    lost = tuple(dict.fromkeys(left_out))
    fields = {"Size": "width", **{str(ROWS[field].infotext): field for field in SHARED if field != "seed"}}
    usual = {key: field for key in lost if (field := fields.get(ALIASES.get(key, key), "prompt")) not in values}
    return Found(values, lost, {key: recipe.settings[key] for key in lost if key in recipe.settings}, usual)


def _drop_sampler_options(values: dict[str, object]) -> list[str]:
    """Drop the options that the sampler does not have: another tool's, or one that is not known. Return their keys."""
    name = typed(values, "sampler", str)
    options = samplers.get(name).options if name else {}
    lost = [field for field in ("eta", "karras") if field in values and field not in options]
    return [str(ROWS[field].infotext) for field in lost if values.pop(field) is not False]  # Automatic is the usual one


def _drop_tags(values: dict[str, object]) -> list[str]:
    """Drop what names further files inside a prompt of the web UI. Return it."""
    found: list[str] = []
    for field in ("prompt", "negative") if values.get("weighted") else ():
        if text := typed(values, field, str):
            found += TAG.findall(text)
            values[field] = TAG.sub("", text).strip()
    return found


def _write(option: Option, value: object) -> str:
    if isinstance(value, Mapping | tuple):
        return json.dumps(value)
    if value in option.labels:
        return option.labels[value]
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _read(field: str | None, text: str, ours: bool) -> dict[str, object] | None:
    """Return the values of one parameter, or None if it is not understood."""
    if field is None:
        return None
    option, more = ROWS[field], dict[str, object]()
    try:
        if not ours and field in SHARED:
            text, more = SHARED[field](text)
        value = _parse(option, text)
        option.check(field, tuple(value) if option.several and isinstance(value, list) else value)
    except (KeyError, TypeError, ValueError, RecursionError, UsageError):
        return None
    return {field: value, **more}


def _sampler_words(text: str) -> tuple[str, dict[str, object]]:
    """Return a sampler as gencli calls it, by the names of the web UI, k-diffusion and others, and its schedule."""
    name, karras = samplers.find(text)
    return name, {} if karras is None else {"karras": karras}


def _schedule_words(text: str) -> tuple[str, dict[str, object]]:
    """Return the web UI's word for a schedule of sigmas, by that of others."""
    word = text.lower()
    return SCHEDULE_LABELS[True] if word == "karras" else SCHEDULE_LABELS[False] if word in USUAL else text, {}


def _same(text: str) -> tuple[str, dict[str, object]]:
    return text, {}


def _parse(option: Option, text: str) -> object:
    """Parse a value of the row's kind. Raise KeyError or ValueError."""
    labels = {label: value for value, label in option.labels.items()}
    if option.kind is bool:
        return (labels or {"True": True, "False": False})[text]
    if option.several or option.kind is Mapping:
        return json.loads(text)
    return option.kind(text) if option.kind in (int, float) else labels.get(text, text)


def _read_size(text: str) -> dict[str, object] | None:
    width, _, height = text.partition("x")
    try:
        size: dict[str, object] = {"width": int(width), "height": int(height)}
        for name, value in size.items():
            ROWS[name].check(name, value)
    except (ValueError, UsageError):
        return None
    return size


def limited(text: str) -> str:
    """Return a text that is not too long to be read. Raise GencliError."""
    if len(text) > LIMIT:
        raise GencliError(f"its text of {len(text)} characters is too long to be a request")
    return text


# Fields that another tool's settings fill → how its words become ours.
SHARED: dict[str, Callable[[str], tuple[str, dict[str, object]]]] = {
    "sampler": _sampler_words,
    "karras": _schedule_words,
    **dict.fromkeys(("steps", "guidance", "guidance_rescale", "clip_skip", "seed", "eta", "weighted"), _same),
}

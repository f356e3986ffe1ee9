"""The settings that `/set` of a conversation shows and changes: numbers of a request, by their options' names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

from gencli.errors import UsageError, did_you_mean
from gencli.options import KINDS, Option, make, rows
from gencli.text.request import SamplingParams, TextRequest

if TYPE_CHECKING:
    from typing_extensions import Never


def names() -> list[str]:
    """Return the names of all settings."""
    return [option.listed_as(field) for field, option in _settings()]


def split(text: str) -> tuple[str, str]:
    """Return the name and the value in `temperature 0.2`, `temperature=0.2` or `--temperature 0.2`; "" for none."""
    name, _, value = re.sub(r"[\s=]+", " ", text.strip(), count=1).partition(" ")
    return name.lstrip("-").lower().replace("_", "-"), value


def find(name: str, commands: Collection[str]) -> str:
    """Return the field of a setting. commands: those of the conversation, for hints. Raise UsageError."""
    known = {flag.lstrip("-"): field for field, option in _settings() for flag in option.flags}
    if name in known:
        return known[name]
    own = f"that is a command: /{name}" if f"/{name}" in commands else None
    hint = own or did_you_mean(name, known) or f"settings: {', '.join(names())}"
    raise UsageError(f"no setting {name!r:.80}", hint)


def changed(request: TextRequest, field: str, word: str) -> TextRequest:
    """Return a request with another value in a field: `default` is the model's, or the usual one. Raise UsageError."""
    option = dict(_settings())[field]
    name = option.listed_as(field)
    try:
        value = None if word == "default" else (option.read or option.kind)(cast("Never", word))
    except ValueError:
        message = f"/set {name}: {word!r:.80} is not {KINDS[option.kind]}"
        raise UsageError(message, f"as in /set {name} {option.usual}") from None
    if value is not None:
        dataclasses.replace(option, called=f"/set {name}").check(field, value)
    if hasattr(request, field):
        return make(type(request), {**vars(request), field: value})
    return dataclasses.replace(request, sampling=make(SamplingParams, {**vars(request.sampling), field: value}))


def shown(request: TextRequest, config: Mapping[str, object], field: str | None) -> str:
    """Return a setting and its value; for None a table of all. config: the checkpoint's generation_config.json."""
    resolved = request.resolve(config)
    values = {name: getattr(resolved, name, None) or "auto" for name, _ in _settings()} | resolved.completed()
    if field is not None:
        return f"{dict(_settings())[field].listed_as(field)} {values[field]}"
    return "\n".join(f"{option.listed_as(name):18}{values[name]}" for name, option in _settings())


def _settings() -> list[tuple[str, Option]]:
    """Return the fields that a conversation may change, with their rows."""
    found = [*rows(SamplingParams), *rows(TextRequest)]
    return [(field, option) for field, option in found if option.usage and (option.usual is not None or option.choices)]

"""Tools that a chat model may call: checked, put into the form that chat templates take, and calls as it writes them.

A tool is a function with a name, a description and a JSON schema of its arguments, in the form of OpenAI's API. No
torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gencli.errors import GencliError, UsageError, did_you_mean
from gencli.json_files import as_unicode, parse_json, read_text
from gencli.text.grammar import schema_problem

AUTO, REQUIRED, NONE = "auto", "required", "none"
MOST, LIMIT = 128, 2**20  # tools of a request, and characters of all of them
NAME = re.compile("[a-zA-Z0-9_.-]{1,128}")  # as Anthropic's API has it; OpenAI's has half
CALL_ID = re.compile("[a-zA-Z0-9]{9}")  # what templates of Mistral want; others take any
EXAMPLE = """as in '[{"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}]'"""
Schema = Mapping[str, object]


@dataclass(frozen=True)
class Call:
    """A call of a tool. arguments: a JSON object, as text."""

    name: str
    arguments: str

    def values(self) -> dict[str, object]:
        """Return the arguments by name."""
        found: dict[str, object] = json.loads(self.arguments)
        return found


@dataclass(frozen=True)
class Tools:
    """The tools of a request. listed: as chat templates take them. must: the model has to call one. several: it may
    call more than one at once."""

    listed: tuple[Mapping[str, object], ...]
    must: bool = False
    several: bool = True

    @property
    def schemas(self) -> dict[str, Schema]:
        """The JSON schemas of the arguments, by the tool's name."""
        return {str(_function(one)["name"]): _schema(_function(one)) for one in self.listed}


def read_tools(word: str | None) -> str | None:
    """Return the tools that an argument is, or whose file it names. Raise UsageError."""
    if word is None or word.lstrip()[:1] in ("[", "{"):
        return word
    path = Path(os.path.expanduser(word))
    if not word or not path.exists() or path.is_dir():  # a pipe is a file too
        raise UsageError(f"--tools {word!r:.80}: no such file", f"written out they look {EXAMPLE}")
    try:
        return read_text(path)
    except GencliError as error:
        raise UsageError(f"--tools: {error.message}", error.hint) from None


def check_tools(name: str, text: object) -> None:
    """Raise UsageError for what is no list of tools."""
    listed(name, text)


def listed(name: str, text: object) -> tuple[Mapping[str, object], ...]:
    """Return tools as chat templates take them, of JSON: a tool, or a list of them. Raise UsageError, which calls them
    `name`."""
    if not isinstance(text, str) or len(text) > LIMIT:
        raise UsageError(f"{name}: more than {LIMIT} characters" if isinstance(text, str) else f"{name}: no JSON")
    try:
        found = parse_json(as_unicode(text, "the value"), "the value")
        as_unicode(json.dumps(found, ensure_ascii=False, allow_nan=False), "the value")
    except GencliError as error:
        raise UsageError(f"{name}: {error.message}", EXAMPLE) from None
    except (ValueError, RecursionError):
        raise UsageError(f"{name}: a number in it is not finite", EXAMPLE) from None
    several = found if isinstance(found, list) else [found]
    if not several or len(several) > MOST:
        raise UsageError(f"{name}: wants 1 to {MOST} tools", EXAMPLE)
    tools = tuple(_tool(name, number, one) for number, one in enumerate(several))
    names = [str(_function(one)["name"]) for one in tools]
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise UsageError(f"{name}: two tools have the name {twice!r}")
    return tools


def tools_of(tools: str | None, choice: str | None, *, several: bool = True) -> Tools | None:
    """Return the tools of a request, or None where there are none, or none may be called. choice: auto, required, none
    or the name of the one that is to be called. Raise UsageError."""
    if tools is None:
        if choice not in (None, AUTO, NONE):
            raise UsageError(f"--tool-choice {choice!r:.80}: there are no tools", "--tools says what can be called")
        return None
    found = listed("--tools", tools)
    if choice == NONE:
        return None
    if choice in (None, AUTO, REQUIRED):
        return Tools(found, choice == REQUIRED, several)
    chosen = tuple(one for one in found if _function(one)["name"] == choice)
    if not chosen:
        names = [str(_function(one)["name"]) for one in found]
        known = did_you_mean(str(choice)[:80], names) or f"there are {', '.join(names)}"
        raise UsageError(f"--tool-choice {choice!r:.80}: there is no such tool", known)
    return Tools(chosen, must=True, several=False)


def call_id(given: object) -> str:
    """Return an id of a call as every template takes it: one that is not so is replaced, always by the same."""
    text = str(given)
    return text if CALL_ID.fullmatch(text) else hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:9]


def _tool(name: str, number: int, value: object) -> Mapping[str, object]:
    """Return a tool, whole or the function alone, as chat templates take it. Raise UsageError."""
    where = f"{name}: tool {number + 1}"
    outer = value if isinstance(value, dict) else {}
    if outer.get("type", "function") != "function" and "function" in outer:
        raise UsageError(f"{where}: of the types only function is known", EXAMPLE)
    inner = outer.get("function", outer)
    given = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(given, str):
        raise UsageError(f"{where}: wants an object with a name", EXAMPLE)
    if not NAME.fullmatch(given):
        raise UsageError(f"{where}: the name {given!r:.80} has other than 1 to 128 letters, digits, _, . and -")
    description, schema = inner.get("description"), inner.get("parameters", inner.get("input_schema"))
    if not isinstance(description, str | None):
        raise UsageError(f"{where}: the description is a text")
    if not isinstance(schema, dict | None) or (schema or {}).get("type", "object") != "object":
        raise UsageError(f"{where}: parameters is a JSON schema of type object", EXAMPLE)
    if problem := schema_problem(schema or {}):
        raise UsageError(f"{where}: parameters: {problem}")
    rest = {
        key: one for key, one in inner.items() if key not in ("input_schema", *(("type",) if inner is outer else ()))
    }
    return {"type": "function", "function": {**rest, "parameters": _whole(schema or {})}}


def _whole(schema: Mapping[str, object]) -> dict[str, object]:
    """Return a schema with the keys that templates read without asking."""
    properties = schema.get("properties")
    missing: dict[str, object] = {} if isinstance(properties, dict) else {"properties": {}}
    return {**({} if "type" in schema else {"type": "object"}), **schema, **missing}


def _function(tool: Mapping[str, object]) -> Mapping[str, object]:
    found = tool["function"]
    assert isinstance(found, Mapping)
    return found


def _schema(function: Mapping[str, object]) -> Schema:
    found = function["parameters"]
    assert isinstance(found, Mapping)
    return found

"""What a text has to follow: a JSON schema, a regular expression or a grammar. No torch; llguidance is imported at use.

A grammar is told by its form: `{` begins a JSON schema, `/…/` on one line is a regular expression, `::=` makes it
llama.cpp's GBNF, and anything else is Lark's notation (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from gencli.errors import GencliError, UsageError
from gencli.json_files import read_text

LIMIT = 2**20  # characters
# Space between the parts of JSON: none, one, or a new line with its indentation. More would never have to end.
SPACE = {"whitespace_pattern": r"( |\n[ \t]{0,40})?"}
# A mask is to have every token that may come next, not the one alone that a tokenizer would write a certain text with.
OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# How messages of llguidance about JSON schemas begin → what helps.
HINTS = {
    "Unimplemented keys": "leave these keys out, and check the text for what they ask",
    "Unknown format": "leave `format` out; `pattern` says what a text looks like",
    "oneOf": "anyOf is followed, and is the same where no value fits two of its schemas",
    "Resource": "a $ref is followed inside the schema itself, as in #/$defs/NAME",
    "Pointer": "a $ref names a place inside the schema itself, as in #/$defs/NAME",
    "Invalid type": "types are object, array, string, number, integer, boolean and null",
}
GBNF = re.compile(r"^[ \t]*[\w-]+\s*::=", re.MULTILINE)


def read_schema(word: str | None) -> str | None:
    """Return the schema that an argument is, or whose file it names. Raise UsageError."""
    return (
        word if word is None or word.lstrip().startswith("{") else _read("--schema", word, "--schema '{\"type\": …}'")
    )


def read_grammar(word: str | None) -> str | None:
    """Return the regular expression that an argument is, or the grammar of the file that it names. Raise UsageError."""
    return word if word is None or _is_regex(word) else _read("--grammar", word, "--grammar '/[0-9]+/'")


def check_schema(name: str, text: object) -> None:
    """Raise UsageError for what is no JSON schema, or asks for what cannot be followed."""
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        raise UsageError(f"{name}: a JSON schema is a JSON object")
    check_grammar(name, text)


def check_grammar(name: str, text: object) -> None:
    """Raise UsageError for what is no grammar, and if llguidance is not installed."""
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"{name}: the grammar is empty")
    if len(text) > LIMIT:
        raise UsageError(f"{name}: {len(text)} characters are too many (at most {LIMIT})")
    try:
        text.encode()
    except UnicodeEncodeError:  # what an argument that is not UTF-8 comes as
        raise UsageError(f"{name} is not UTF-8 text") from None
    if problem := _problem(text):
        raise UsageError(f"{name}: {problem[0]}", problem[1])


def schema_problem(schema: Mapping[str, object]) -> str | None:
    """Return what is wrong with a JSON schema of which only what can be followed is; None if nothing is, or llguidance
    is not installed."""
    if find_spec("llguidance") is None:
        return None
    problem = _problem(json.dumps({"x-guidance": {"lenient": True}, **schema}))
    return problem[0] if problem else None


def translated(text: str) -> str:
    """Return a grammar in llguidance's own notation. Raise ValueError for JSON or GBNF that is none."""
    from llguidance import regex_to_lark
    from llguidance.gbnf_to_lark import any_to_lark

    text = text.strip()
    if text.startswith("{"):
        text = f"start: %json {json.dumps({'x-guidance': SPACE, **json.loads(text)})}"
    elif _is_regex(text):
        text = f"start: /{regex_to_lark(text[1:-1], '')}/"
    elif GBNF.search(text):
        try:
            text = any_to_lark(text)
        except Exception as error:  # a class of its own, and whatever a slip leads to
            raise ValueError(str(error)) from None
    return text + OPTIONS


def on_one_line(schema: str) -> str:
    """Return a JSON schema whose texts have no line breaks between their parts."""
    return json.dumps({"x-guidance": {"whitespace_pattern": " ?"}, **json.loads(schema)})


def first_line(message: str) -> str:
    """Return a message of llguidance, which goes on with where it is, as one line."""
    if "regex parse error" in message:
        message = f"not a regular expression: {message.rpartition('error: ')[2]}"
    return message.partition("\n")[0].rpartition("failed to compile JSON schema: ")[2][:300]


@functools.lru_cache(64)
def _problem(text: str) -> tuple[str, str | None] | None:
    """Return what is wrong with a grammar, and a hint; None if it can be followed."""
    try:
        from llguidance import LLMatcher

        wrong, messages = LLMatcher.validate_grammar_with_warnings(translated(text))
    except ImportError:
        return "llguidance is not installed", "pip install 'gencli[grammar]'"
    except (ValueError, RecursionError) as error:  # of JSON and of GBNF too
        what = "invalid JSON" if text.lstrip().startswith("{") else "not a grammar of llama.cpp"
        return f"{what}: {first_line(str(error))}", None
    if not wrong:
        return None
    message = first_line(messages[0])
    if text.lstrip()[0] in "{/":
        return message, next((hint for begin, hint in HINTS.items() if message.startswith(begin)), None)
    return message, "a grammar has a rule `start: …`; a regular expression stands in /…/"


def _is_regex(text: str) -> bool:
    text = text.strip()
    return len(text) > 2 and text[0] == text[-1] == "/" and "\n" not in text


def _read(name: str, word: str, example: str) -> str:
    """Return the text of a file that an option names. Raise UsageError."""
    path = Path(os.path.expanduser(word))
    if word and path.is_dir():
        raise UsageError(f"{name} {word!r:.80} is a folder", f"name a file; written out it looks like {example}")
    if not word or not path.exists():  # a pipe is a file too
        raise UsageError(f"{name} {word!r:.80}: no such file", f"written out it looks like {example}")
    try:
        return read_text(path)
    except GencliError as error:
        raise UsageError(f"{name}: {error.message}", error.hint) from None

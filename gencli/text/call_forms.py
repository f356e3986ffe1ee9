"""How families of models write calls of tools: one row each. No torch.

To add a form: a function that reads it, one that writes its grammar, and its row in FORMS. The forms were taken from
the families' own chat templates and documentation.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gencli.text.call_grammars import (
    ARG_VALUE,
    QUOTE,
    XML,
    Grammar,
    Mark,
    Schemas,
    action,
    around,
    gemma,
    listed,
    python,
)
from gencli.text.tools import NAME, Call

Read = Callable[[str, Schemas], list[Call]]  # raises ValueError for what is no call
NAMES, ARGUMENTS = ("name", "tool_name", "function"), ("arguments", "parameters", "args")
VARIABLE = re.compile(r"(?<![\w'\".])tools\b(?!['\"])")  # and not builtin_tools, or a word that is printed


@dataclass(frozen=True)
class Form:
    """needs: texts that a chat template of the form has, all of them. opens: what stands before calls, best first; of
    several the first is written where a call is required. read: what comes after that → calls. grammar: the rules
    of the same in Lark's notation, but for `start`, whose first is `call` and describes one. between, after: what
    stands between calls, and after the last. inside: the text of `opens` is a part of the call, and calls stand at
    the beginning of an answer alone. again: every call has its own `opens`."""

    needs: tuple[str, ...]
    opens: tuple[str, ...]
    read: Read
    grammar: Grammar
    between: str = ""
    after: str = ""
    inside: bool = False
    again: bool = False

    def rules(self, schemas: Schemas, mark: Mark, *, several: bool) -> str:
        """Return the grammar of what follows `opens`. several: more than one call may come."""
        parts = [self.between, self.opens[0] if self.again else ""]
        joined = " ".join(mark(part) for part in parts if part)
        more = f" ({joined} call)*" if several and (joined or self.after) else ""  # a list has them all
        after = f" {mark(self.after)}" if self.after else ""
        return f"start: call{more}{after}\n{self.grammar(schemas, mark, several)}"


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


# A number beyond all floats is the largest one: what is written of it has to be JSON again.
_DECODER = json.JSONDecoder(
    parse_float=lambda text: max(-sys.float_info.max, min(float(text), sys.float_info.max)), parse_constant=_no_number
)


def form_of(template: str) -> Form | None:
    """Return the form in which a model with this chat template writes calls, None for one that knows no tools."""
    if VARIABLE.search(template) is None:
        return None
    return next(form for form in FORMS if all(need in template for need in form.needs))


def _objects(text: str) -> Iterator[object]:
    """Yield the JSON values of a text, whatever stands between them. Raise ValueError if there is none."""
    decoder, at, found = _DECODER, 0, 0
    while (begin := re.compile(r"[\[{]").search(text, at)) is not None:
        try:
            value, at = decoder.raw_decode(text, begin.start())
        except ValueError:
            if found:  # the mark of an end, which begins with a bracket too
                return
            raise
        found += 1
        yield value
    if not found:
        raise ValueError("there is no JSON in it")


def _read_json(text: str, schemas: Schemas) -> list[Call]:
    """Read calls as JSON objects, or lists of them."""
    found = [one for value in _objects(text) for one in (value if isinstance(value, list) else [value])]
    return [_call(one) for one in found]


def _call(value: object) -> Call:
    if not isinstance(value, dict):
        raise ValueError("a call is an object")
    inner = value.get("function")
    value = inner if isinstance(inner, dict) else value
    name = next((value[key] for key in NAMES if isinstance(value.get(key), str)), None)
    arguments: object = next((value[key] for key in ARGUMENTS if key in value), {})
    if name is None:
        raise ValueError("a call has a name")
    return made(name, _DECODER.decode(arguments) if isinstance(arguments, str) else arguments)


def read_call(name: str, text: str) -> Call | None:
    """Return a call whose arguments are JSON; None where they are not."""
    try:
        return made(name, _DECODER.decode(text or "{}"))
    except (ValueError, RecursionError):
        return None


def made(name: str, arguments: object) -> Call:
    """Return a call. Raise ValueError for what is none."""
    if not isinstance(arguments, dict) or not NAME.fullmatch(name):
        raise ValueError("a call is of a tool, and its arguments are an object")
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except TypeError:
        raise ValueError("JSON has no such values") from None
    return Call(name, text.encode("utf-8", "replace").decode())  # a half of a surrogate pair is no character


def _read_named(pattern: str) -> Read:
    """Return the reader of names with JSON after them, by a pattern that ends where the JSON begins."""
    head = re.compile(pattern)

    def read(text: str, schemas: Schemas) -> list[Call]:
        calls, at = [], 0
        while (match := head.search(text, at)) is not None:
            value, at = _DECODER.raw_decode(text, match.end())
            calls.append(made(match["name"], value))
        if not calls:
            raise ValueError("there is no call in it")
        return calls

    return read


def _typed(text: str, name: str, key: str, schemas: Schemas) -> object:
    """Return a value that is written without quotes: a text where the schema says so, else JSON if it is any."""
    properties = schemas.get(name, {}).get("properties")
    schema = properties.get(key) if isinstance(properties, Mapping) else None
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return text
    try:
        return _DECODER.decode(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _read_pairs(call: str, pair: str) -> Read:
    """Return the reader of calls whose arguments are texts between marks."""

    def read(text: str, schemas: Schemas) -> list[Call]:
        calls = []
        for match in re.finditer(call, text, re.DOTALL):
            name = match["name"].strip()
            pairs = re.findall(pair, match["rest"], re.DOTALL)
            calls.append(made(name, {key.strip(): _typed(value, name, key.strip(), schemas) for key, value in pairs}))
        if not calls:
            raise ValueError("there is no call in it")
        return calls

    return read


def _read_python(text: str, schemas: Schemas) -> list[Call]:
    """Read a list of calls as Python writes them, whose arguments are constants."""
    try:
        tree = ast.parse(text.partition("<|tool_call_end|>")[0].strip(), mode="eval").body
        found = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
        calls = []
        for one in found:
            if not isinstance(one, ast.Call) or one.args:
                raise ValueError("a call has names for its arguments")
            arguments = {key.arg or "": _finite(ast.literal_eval(key.value)) for key in one.keywords}
            calls.append(made(ast.unparse(one.func), arguments))
    except (SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("it is no call in Python") from None
    return calls


def _finite(value: object) -> object:
    """Return a value with the largest float in place of numbers beyond it, as JSON is read."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return max(-sys.float_info.max, min(value, sys.float_info.max)) if isinstance(value, float) else value


def _read_gemma(text: str, schemas: Schemas) -> list[Call]:
    """Read calls as Gemma 4 writes them: `call:NAME{key:value}`, with texts between marks of their own."""
    calls, texts = [], list[str]()

    def keep(match: re.Match[str]) -> str:
        texts.append(match[1])
        return f'"{len(texts) - 1}"'

    plain = re.sub(f"{re.escape(QUOTE)}(.*?){re.escape(QUOTE)}", keep, text, flags=re.DOTALL)
    quoted = re.sub(r'([{,]\s*)([^\s"{},:\[\]]+)\s*:', lambda match: f"{match[1]}{json.dumps(match[2])}:", plain)

    def restored(value: object, *, key: bool = False) -> object:
        if isinstance(value, dict):
            return {name: restored(one) for name, one in value.items()}
        if isinstance(value, list):
            return [restored(one) for one in value]
        return texts[int(value)] if isinstance(value, str) else value

    for match in re.finditer(r"call:(?P<name>[\w.-]+)\s*(?=\{)", quoted):
        value, _ = _DECODER.raw_decode(quoted, match.end())
        calls.append(made(match["name"], restored(value)))
    if not calls:
        raise ValueError("there is no call in it")
    return calls


DEEPSEEK = "<｜tool▁call▁begin｜>"
FORMS = (
    Form(  # Qwen 3 Coder, Qwen 3.5
        ("<function=", "<tool_call>"),
        ("<tool_call>", "<function="),
        _read_pairs(
            r"(?:<function=|^)(?P<name>[^>\n]+)>\s*(?P<rest>.*?)(?:</function>|$)",
            r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>",
        ),
        XML,
        between="\n",
        again=True,
    ),
    Form(  # GLM 4.5 and later
        ("<arg_key>", "<tool_call>"),
        ("<tool_call>",),
        _read_pairs(
            r"(?:<tool_call>|^)\s*(?P<name>[^\s<]+)(?P<rest>.*?)(?:</tool_call>|$)",
            r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>",
        ),
        ARG_VALUE,
        between="\n",
        again=True,
    ),
    Form(  # Mistral, from version 11 of its tokenizers on
        ("[TOOL_CALLS]", "[ARGS]"),
        ("[TOOL_CALLS]",),
        _read_named(r"(?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]\s*(?=\{)"),
        around("NAME[ARGS]"),
        again=True,
    ),
    Form(("[TOOL_CALLS]",), ("[TOOL_CALLS]",), _read_json, listed),  # Mistral, before
    Form(  # DeepSeek V3 and R1
        (DEEPSEEK, "```json"),
        ("<｜tool▁calls▁begin｜>",),
        _read_named(r"<｜tool▁sep｜>(?P<name>[\w.-]+)\s*```json\s*(?=\{)"),
        around(f"{DEEPSEEK}function<｜tool▁sep｜>NAME\n```json\n", "\n```<｜tool▁call▁end｜>"),
        between="\n",
        after="<｜tool▁calls▁end｜>",
    ),
    Form(  # DeepSeek V3.1
        (DEEPSEEK,),
        ("<｜tool▁calls▁begin｜>",),
        _read_named(r"<｜tool▁call▁begin｜>(?P<name>[\w.-]+)<｜tool▁sep｜>\s*(?=\{)"),
        around(f"{DEEPSEEK}NAME<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
        after="<｜tool▁calls▁end｜>",
    ),
    Form(("<|START_ACTION|>",), ("<|START_ACTION|>",), _read_json, action),  # Command R7B, Command A
    Form(("<|tool_call_start|>",), ("<|tool_call_start|>",), _read_python, python),  # LFM 2
    Form(("<|tool_call>",), ("<|tool_call>",), _read_gemma, gemma, again=True),  # Gemma 4
    Form(("<|tool_call|>",), ("<|tool_call|>",), _read_json, listed),  # Granite 3, Phi 4 mini
    Form(  # Hermes, Qwen 2.5 and 3, SmolLM 3, Granite 4 and many others
        ("<tool_call>",),
        ("<tool_call>",),
        _read_json,
        around('\n{"name": "NAME", "arguments": ', "}\n</tool_call>"),
        between="\n",
        again=True,
    ),
    Form(  # Llama 3.1 to 3.3
        ('"parameters"', "<|python_tag|>"),
        ("{", "<|python_tag|>"),
        _read_json,
        around('{"name": "NAME", "parameters": ', "}"),
        between="; ",
        inside=True,
    ),
    Form((), ("{",), _read_json, around('{"name": "NAME", "arguments": ', "}"), between="; ", inside=True),
)

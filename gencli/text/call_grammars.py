"""The grammars of calls of tools, in Lark's notation as llguidance reads it. No torch.

A writer takes the schemas of the arguments by the tool's name, what writes a text in a grammar, and whether several
calls may come where they are one list. It returns rules, of which the first is `call` and describes one call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gencli.text.tools import Schema

Schemas = Mapping[str, Schema]  # of arguments, by the tool's name
Mark = Callable[[str], str]  # a text → what a grammar writes for it: the name of a token, or the text in quotes
Grammar = Callable[[Schemas, Mark, bool], str]
QUOTE = '<|"|>'  # Gemma 4's
SPACE = r"/[ \n]*/"
ANY = r"/(.|\n)"  # begins the pattern of any text
DEPTH = 12  # of a schema whose values are no JSON; what lies deeper may be anything


def json_of(schema: Schema) -> str:
    """Return a JSON schema in a grammar: on one line, and without what cannot be followed."""
    inner = {key: value for key, value in schema.items() if key != "x-guidance"}
    return f"%json {json.dumps({'x-guidance': {'whitespace_pattern': ' ?', 'lenient': True}, **inner})}"


def one_of(schema: Schema) -> str:
    """Return the grammar of arguments alone."""
    return f"start: {json_of(schema)}"


def _each(schemas: Schemas, write: Callable[[int, str, Schema], list[str]]) -> str:
    """Return the rules of a call of one of several tools. write: the rules of a tool, by its number; the first is
    `call_NUMBER`."""
    rules = [rule for number, (name, schema) in enumerate(schemas.items()) for rule in write(number, name, schema)]
    return "\n".join([f"call: {' | '.join(f'call_{number}' for number in range(len(schemas)))}", *rules])


def _json_call(schemas: Schemas, mark: Mark, before: str, after: str) -> str:
    """Return the rules of a call whose arguments are JSON between two texts, in which NAME stands for the tool's."""

    def write(number: int, name: str, schema: Schema) -> list[str]:
        parts = [mark(before.replace("NAME", name)), f"args_{number}", *([mark(after)] if after else [])]
        return [f"call_{number}: {' '.join(parts)}", f"args_{number}: {json_of(schema)}"]

    return _each(schemas, write)


def around(before: str, after: str = "") -> Grammar:
    """Return the grammar of single calls, as `_json_call` describes them."""
    return lambda schemas, mark, several: _json_call(schemas, mark, before, after)


def listed(schemas: Schemas, mark: Mark, several: bool) -> str:
    """Return the grammar of calls in a list of JSON."""
    return _list(_json_call(schemas, mark, '{"name": "NAME", "arguments": ', "}"), mark(", "), several)


def _list(rules: str, comma: str, several: bool, space: str = "", end: str = "") -> str:
    """Return the rules of a list of calls. end: what stands behind it."""
    more = f" ({comma} one)*" if several else ""
    parts = ['"["', space, f"one{more}", space, '"]"', end]
    return f"call: {' '.join(part for part in parts if part)}\n{rules.replace('call: ', 'one: ', 1)}"


def action(schemas: Schemas, mark: Mark, several: bool) -> str:
    """Return the grammar of a list of actions, as Command R7B and A write them."""

    def write(number: int, name: str, schema: Schema) -> list[str]:
        head = f"{mark('{')} SPACE {mark(chr(34) + 'tool_call_id' + chr(34) + ': ' + chr(34))} /[0-9][0-9]?/"
        named = mark(f'", "tool_name": {json.dumps(name)}, "parameters": ')
        return [
            f"call_{number}: {head} {named} args_{number} SPACE {mark('}')}",
            f"args_{number}: {json_of(schema)}",
        ]

    rules = _list(_each(schemas, write), f"{mark(',')} SPACE", several, "SPACE", mark("<|END_ACTION|>"))
    return f"{rules}\nSPACE: {SPACE}"


def harmony(schemas: Schemas, mark: Mark) -> str:
    """Return the grammar of a message with a call in channels, as gpt-oss writes it."""
    begin = mark("<|start|>assistant<|channel|>commentary to=functions.")
    return f"start: {begin} call\n{_json_call(schemas, mark, 'NAME <|constrain|>json<|message|>', '')}"


def _properties(schema: Schema) -> list[tuple[str, Schema, bool]]:
    """Return name and schema of each argument, and whether it is needed."""
    needed, properties = schema.get("required"), schema.get("properties")
    found = properties if isinstance(properties, Mapping) else {}
    must = needed if isinstance(needed, Sequence) else ()
    return [(name, one if isinstance(one, Mapping) else {}, name in must) for name, one in found.items()]


def _referred(reference: str, whole: Schema) -> object:
    """Return the part of a whole schema that a reference names."""
    found: object = whole
    for key in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _may_be_text(schema: object, whole: Schema, depth: int = 0) -> bool:
    """Return whether a value of a schema, which is a part of a whole one, may be a text."""
    if not isinstance(schema, Mapping) or depth > DEPTH:
        return True
    if isinstance(reference := schema.get("$ref"), str):
        return _may_be_text(_referred(reference, whole), whole, depth + 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(several := schema.get(key), Sequence) and several:
            return any(_may_be_text(one, whole, depth + 1) for one in several)
    if "enum" in schema or "const" in schema:
        return any(isinstance(one, str) for one in _constants(schema))
    kinds = schema.get("type")
    return kinds is None or kinds == "string" or (isinstance(kinds, list) and "string" in kinds)


def _tagged(begin: str, pair: str, mark_after: str, end: str) -> Grammar:
    """Return the grammar of calls whose arguments are texts between tags: what a schema calls a text as it is, any
    other value as JSON. begin: before the arguments, with the tool's NAME. pair: before a value, with its KEY;
    mark_after: what ends it. end: of the call. In all of them ~ stands for line ends that may be there."""

    def grammar(schemas: Schemas, mark: Mark, several: bool) -> str:
        def text(pattern: str) -> str:
            return " LINE ".join(mark(part) if part else "" for part in pattern.split("~")).strip()

        def write(number: int, name: str, schema: Schema) -> list[str]:
            parts, rules = [], []
            for at, (key, inner, needed) in enumerate(_properties(schema)):
                rule = f"arg_{number}_{at}"
                parts.append(rule if needed else f"{rule}?")
                head = text(pair.replace("KEY", key))
                if "enum" in inner or "const" in inner:
                    value = " | ".join(mark(_plain(one)) for one in _constants(inner))
                    rules.append(f"{rule}: {head} ({value}) {text(mark_after)}")
                elif _may_be_text(inner, schema):
                    rules.append(f"{rule}: {head} text")
                else:
                    rules.append(f"{rule}: {head} {rule}_json {text(mark_after)}")
                    rules.append(f"{rule}_json: {json_of(_within(inner, schema))}")
            return [f"call_{number}: {text(begin.replace('NAME', name))} {' '.join(parts)} {text(end)}", *rules]

        tag = mark_after.replace("~", "")
        last = f"text: free LINE\nfree[lazy]: {ANY}*{_escaped(tag)}/"
        return f"{_each(schemas, write)}\n{last}\nLINE: /\\n?/"

    return grammar


def _escaped(text: str) -> str:
    """Return a text as a pattern of the grammar has it."""
    return re.sub(r"[][.^$*+?(){}|\\/]", r"\\\g<0>", text).replace("\n", r"\n")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _constants(schema: Schema) -> list[object]:
    found = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return list(found) if isinstance(found, Sequence) else []


def _within(schema: Schema, whole: Schema) -> Schema:
    """Return a part of a schema with the definitions of the whole, to which it may refer."""
    return {**{key: whole[key] for key in ("$defs", "definitions") if key in whole}, **schema}


XML = _tagged("~<function=NAME>~", "<parameter=KEY>\n", "\n</parameter>~", "</function>~</tool_call>")
ARG_VALUE = _tagged("NAME~", "<arg_key>KEY</arg_key>~<arg_value>", "</arg_value>~", "</tool_call>")


@dataclass
class _Values:
    """Values that are written in another way than JSON. words: true, false and null. comma: between two. text: what a
    string of a schema is. key: what stands before a value in an object. constant: writes a string that is known."""

    mark: Mark
    words: tuple[str, str, str]
    comma: str
    text: Callable[[Schema], str]
    key: Callable[[str], str]
    constant: Callable[[str], str]
    any_key: str
    rules: list[str] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)  # $ref → its rule

    def add(self, rule: str) -> str:
        """Add a rule. Return its name."""
        self.rules.append(f"value_{len(self.rules)}: {rule}")
        return f"value_{len(self.rules) - 1}"

    def of(self, schema: object, whole: Schema, depth: int = 0) -> str:
        """Return what writes a value of a schema, which is a part of a whole one."""
        if not isinstance(schema, Mapping) or depth > DEPTH:
            return "any"
        if isinstance(reference := schema.get("$ref"), str):
            return self._named(reference, whole, depth)
        if "enum" in schema or "const" in schema:
            return f"({' | '.join(self._constant(one) for one in _constants(schema))})"
        for key in ("anyOf", "oneOf"):
            if isinstance(several := schema.get(key), Sequence) and several:
                return f"({' | '.join(self.of(one, whole, depth + 1) for one in several)})"
        kinds = schema.get("type")
        if isinstance(kinds, list):
            return f"({' | '.join(self.of({**schema, 'type': kind}, whole, depth + 1) for kind in kinds)})"
        true, false, null = map(self.mark, self.words)
        simple = {"boolean": f"({true} | {false})", "null": null}
        if isinstance(kinds, str) and kinds in simple:
            return simple[kinds]
        if kinds == "string":
            return self.text(schema)
        if kinds in ("integer", "number"):
            return self.add(json_of(schema))
        if kinds == "array":
            return self._array(schema, whole, depth)
        if kinds == "object" and schema.get("properties"):
            pairs = [
                (f"{self.key(name)} {self.of(one, whole, depth + 1)}", needed)
                for name, one, needed in _properties(schema)
            ]
            return f"{self.mark('{')} {self.joined(pairs)} {self.mark('}')}"
        return "dict" if kinds == "object" else "any"

    def joined(self, parts: Sequence[tuple[str, bool]]) -> str:
        """Return what writes parts in their order with commas between them, of which some may be left out."""
        comma, rest, first = self.mark(self.comma), '""', '""'
        for part, needed in reversed(parts):
            alone = self.add(part)
            first = self.add(f"{alone} {rest}" if needed else f"{alone} {rest} | {first}")
            rest = self.add(f"{comma} {alone} {rest}" if needed else f"({comma} {alone})? {rest}")
        return first

    def _array(self, schema: Schema, whole: Schema, depth: int) -> str:
        item = self.add(self.of(schema.get("items"), whole, depth + 1))
        least, most = schema.get("minItems"), schema.get("maxItems")
        low = least if isinstance(least, int) else 0
        high = str(most - 1) if isinstance(most, int) and most > 0 else ""
        items = f"{item} ({self.mark(self.comma)} {item}){{{max(low - 1, 0)},{high}}}"
        if most == 0:
            items = '""'
        return f"{self.mark('[')} {items if low else f'({items})?'} {self.mark(']')}"

    def _named(self, reference: str, whole: Schema, depth: int) -> str:
        if reference not in self.known:
            self.known[reference] = name = f"known_{len(self.known)}"
            self.rules.append(f"{name}: {self.of(_referred(reference, whole), whole, depth + 1)}")
        return self.known[reference]

    def _constant(self, value: object) -> str:
        if isinstance(value, str):
            return self.constant(value)
        if isinstance(value, bool) or value is None:
            return self.mark(self.words[2 if value is None else 1 - value])
        return self.mark(json.dumps(value)) if isinstance(value, int | float) else "any"

    def all(self) -> Iterator[str]:
        """Yield the rules: those that were added, and of what may be anything."""
        mark, comma = self.mark, self.mark(self.comma)
        words = " | ".join(map(mark, self.words))
        yield from self.rules
        yield f"any: {self.text({})} | number | list | dict | {words}"
        yield f"number: {json_of({'type': 'number'})}"
        yield f"list: {mark('[')} (any ({comma} any)*)? {mark(']')}"
        yield f"dict: {mark('{')} ({self.any_key} any ({comma} {self.any_key} any)*)? {mark('}')}"


def python(schemas: Schemas, mark: Mark, several: bool) -> str:
    """Return the grammar of a list of calls in Python, as LFM2 writes them."""

    def text(schema: Schema) -> str:
        return values.add(json_of({**schema, "type": "string"})) if schema else "string"

    def quoted(name: str) -> str:
        return mark(json.dumps(name, ensure_ascii=False))

    def write(number: int, name: str, schema: Schema) -> list[str]:
        pairs = [(f"{mark(key + '=')} {values.of(one, schema)}", must) for key, one, must in _properties(schema)]
        return [f"call_{number}: {mark(name + '(')} {values.joined(pairs)} {mark(')')}"]

    any_key = f"string {mark(': ')}"
    values = _Values(
        mark, ("True", "False", "None"), ", ", text, lambda name: f"{quoted(name)} {mark(': ')}", quoted, any_key
    )
    calls = _list(_each(schemas, write), mark(", "), several, end=mark("<|tool_call_end|>"))
    return "\n".join([calls, *values.all(), f"string: {json_of({'type': 'string'})}"])


def gemma(schemas: Schemas, mark: Mark, several: bool) -> str:
    """Return the grammar of a call as Gemma 4 writes it: keys without quotes, and texts between marks of their own."""
    quote = mark(QUOTE)

    def text(schema: Schema) -> str:
        if not quote.startswith("<["):  # a text itself, which ends the other at its first
            return "string"
        low, high = (schema.get(key) for key in ("minLength", "maxLength"))
        if isinstance(low, int) or isinstance(high, int):
            within = f"{{{low if isinstance(low, int) else 0},{high if isinstance(high, int) else ''}}}"
            inner = values.add(ANY + within + "/")
            return f"{quote} {inner} {quote}"
        return "string"

    def write(number: int, name: str, schema: Schema) -> list[str]:
        pairs = [(f"{mark(key + ':')} {values.of(one, schema)}", must) for key, one, must in _properties(schema)]
        return [f"call_{number}: {mark(f'call:{name}{{')} {values.joined(pairs)} {mark('}<tool_call|>')}"]

    any_key = r'/[^\s"{},:\[\]<>|]+:/'
    values = _Values(
        mark, ("true", "false", "null"), ",", text, lambda name: mark(f"{name}:"),
        lambda value: f"{quote} {mark(value)} {quote}", any_key,
    )  # fmt: skip
    free = f"string: {quote} {ANY}*/ {quote}"
    if not quote.startswith("<["):
        free = f"string: {quote} free\nfree[lazy]: {ANY}*{_escaped(QUOTE)}/"
    calls = _each(schemas, write)
    return "\n".join([calls, *values.all(), free])

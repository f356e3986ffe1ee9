"""The process that renders chat templates (see `chat_template`): requests on stdin, texts on stdout.

One JSON object per line each way: `{"template", "values", "seconds", "characters"}` → `{"text"}` or `{"error"}`.
Without `values` the text is what the template reads (see `variables`), as JSON.
The limits hold for the whole, not for each request: what one has used of the processor, the next ones lack.
"""

from __future__ import annotations

import functools
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from datetime import datetime

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 2**29  # bytes of address space; the interpreter with jinja2 takes a fifth
ERROR_LIMIT = 1000  # characters
REGAINED = 0.5  # seconds of processor time that each request adds to what is left, up to the limit


class Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks answers for training; the block prints as if it were not there."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def environment() -> ImmutableSandboxedEnvironment:
    """Make the environment of transformers: trimmed blocks, two functions, and `tojson` without HTML escapes."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return a value as JSON; jinja2's own filter would also escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: object) -> None:
    """Let a template refuse a conversation. Raises TemplateError."""
    raise jinja2.TemplateError(f"{message}")


@functools.lru_cache(4)
def compiled(template: str) -> jinja2.Template:
    return environment().from_string(template)


def render(template: str, values: dict[str, object], characters: int) -> dict[str, str]:
    """Answer one request. Whatever goes wrong in the template becomes an `error`."""
    parts, size = [], 0
    try:
        for part in compiled(template).generate(**values):
            parts.append(part)
            size += len(part)
            if size > characters:
                return {"error": f"it writes more than {characters} characters"}
        return {"text": "".join(parts)}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"[:ERROR_LIMIT]}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # a template is a program: it can fail in any way
        kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
        return {"error": f"{kind}{error}"[:ERROR_LIMIT]}


def variables(template: str) -> dict[str, list[str]]:
    """Return the values that a template wants from outside: name → the texts that it compares the value with.

    A name that it gives a value of its own before it first reads it is none of them.
    """
    tree = environment().parse(template)
    first: dict[str, str] = {}
    for used in _names(tree):
        first.setdefault(used.name, used.ctx)
    compared: dict[str, list[str]] = {}
    for comparison in tree.find_all(nodes.Compare):
        texts = [one.value for one in comparison.find_all(nodes.Const) if isinstance(one.value, str)]
        for name in {one.name for one in comparison.find_all(nodes.Name)}:
            compared[name] = [*compared.get(name, []), *texts]
    undeclared = sorted(meta.find_undeclared_variables(tree))  # at last: it replaces nodes
    return {name: compared.get(name, []) for name in undeclared if first.get(name) == "load"}


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    """Yield the names in a template in the order in which they are used."""
    if isinstance(node, nodes.Name):
        yield node
    children = list(node.iter_child_nodes())
    for child in reversed(children) if isinstance(node, nodes.Assign) else children:  # its value comes first
        yield from _names(child)


def described(template: str) -> dict[str, str]:
    """Answer a request for what a template reads. One that cannot be compiled reads nothing: to render it tells why."""
    try:
        return {"text": json.dumps(variables(template))}
    except Exception:  # a template is a program: it can fail in any way
        return {"text": "{}"}


def serve() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the answer, not for this process
    limit_memory()
    left = math.inf
    for line in sys.stdin.buffer:
        request = json.loads(line)
        began, left = time.process_time(), min(left, request["seconds"])
        limit_time(math.ceil(left))
        template, values = request["template"], request.get("values")
        answer = described(template) if values is None else render(template, values, request["characters"])
        left = max(left - (time.process_time() - began), 0) + REGAINED
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def limit_memory() -> None:
    """Limit the address space to MEMORY and write no core dumps, where the system supports it."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, OSError, ValueError):
        pass


def limit_time(seconds: int) -> None:
    """Let the system end this process (SIGXCPU) after so many more seconds of processor time, where it can."""
    try:
        import resource

        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    except (ImportError, OSError, ValueError):
        pass

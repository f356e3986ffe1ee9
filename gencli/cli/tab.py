"""The answer to a TAB from what an earlier one left behind: typer is not imported, and no command is built.

A file per command, in gencli's cache, says what there is to complete: its commands, and its parameters with their names
and values. It holds as long as the files that it was made of are the same; a file that is damaged, or that others can
write, counts as none, as does a command line out of the ordinary. Then the parser answers, and `remember` leaves the
files for the next TAB. Names of models are looked up each time.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections import deque

from gencli import __version__, cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TypedDict

    Items = list[tuple[str, str]]  # words, and what they mean

    class Param(TypedDict):
        """A parameter. opts: its names; other: those that turn it off; both are empty for an argument. valued: whether
        a word follows. several: whether it may be given again. values: those it may have; models: the task of those
        that it names, in place of values; others: names elsewhere. asks: whether its values depend on what stands
        before them, and are found by the parser alone."""

        opts: list[str]
        other: list[str]
        help: str
        hidden: bool
        valued: bool
        several: bool
        values: Items
        models: list[str | None]
        others: Items
        asks: bool

    class Command(TypedDict):
        """A command, or a group, which has commands."""

        params: list[Param]
        commands: Items | None


PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ASKED, WORDS, COLON = "_GENCLI_COMPLETE", "_TYPER_COMPLETE_ARGS", "_GENCLI_COLON"
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


class UnusualError(Exception):
    """The parser has to answer."""


def quick() -> int | None:
    """Print the answer to the question that the environment asks, and return the exit code; None if it cannot."""
    os.environ.pop(COLON, None)
    instruction, _, shell = os.environ[ASKED].partition("_")
    if instruction != "complete" or shell not in SHELLS:
        return None
    try:
        args, incomplete = question(shell)
        found = items(args, incomplete)
    except (UnusualError, LookupError, TypeError, ValueError, AttributeError):
        return None
    if shell == "fish" and os.environ.get("_TYPER_COMPLETE_FISH_ACTION") != "get-args":
        return 0 if found else 1
    print(behind_equals(written(shell, found)), end="", flush=True)
    return 0


def question(shell: str) -> tuple[list[str], str]:
    """Return the whole words that are typed behind `gencli`, and the one that is not whole yet."""
    if shell == "bash":
        join_values()
        words, at = split(os.environ["COMP_WORDS"]), int(os.environ["COMP_CWORD"])
        return words[1:at], words[at] if at < len(words) else ""
    typed = os.environ.get(WORDS, "")
    words = split(typed)[1:]
    if shell in ("powershell", "pwsh"):
        incomplete = os.environ.get("_TYPER_COMPLETE_WORD_TO_COMPLETE", "")
        return words[:-1] if incomplete else words, incomplete
    return (words[:-1], words[-1]) if words and not typed.endswith(" ") else (words, "")


def join_values() -> None:
    """Have bash's words as the other shells have them: bash cuts `--sampler=dd` into three."""
    words = os.environ.get("COMP_WORDS", "").split("\n")
    at = int(os.environ.get("COMP_CWORD") or 0)
    kept = [(number, word) for number, word in enumerate(words) if word != "=" or number == at]
    if len(words) > 1 and "=" in words:
        os.environ["COMP_WORDS"] = "\n".join(word if word != "=" else "" for _, word in kept)
        os.environ["COMP_CWORD"] = str(sum(number < at for number, _ in kept))
    _join_colons()


def _join_colons() -> None:
    """The same for `-m qwen3:4b`, which bash cuts into three words; it replaces what stands behind the last colon."""
    words, at = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD") or 0)
    made: list[str] = []
    cursor = at
    for number, word in enumerate(words):
        joins = made and (word == ":" or made[-1].endswith(":"))
        made = [*made[:-1], made[-1] + word] if joins else [*made, word]
        if number == at:
            cursor = len(made) - 1
            os.environ[COLON] = made[-1][: made[-1].rfind(":") + 1] if joins else ""
    if len(made) < len(words):
        os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(made), str(cursor)


def split(line: str) -> list[str]:
    """Return the words of a command line, of which the last may lack the end of its quotes."""
    import shlex

    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    found: list[str] = []
    try:
        while (word := lexer.get_token()) is not None:
            found.append(word)
    except ValueError:
        found.append(lexer.token)
    return found


def items(args: list[str], incomplete: str) -> Items:
    """Return what fits behind whole words. Raise UnusualError."""
    words = deque(args)
    path: list[str] = []
    command = load(path)
    while command["commands"] is not None and words:
        if words[0] not in dict(command["commands"]):
            raise UnusualError
        path.append(words.popleft())
        command = load(path)
    given, count = parsed(command, words)  # as _resolve_incomplete of typer and click goes on
    last = args[-1] if args else ""
    if incomplete == "=":
        incomplete = ""
    elif incomplete.startswith("-") and "=" in incomplete:
        last, _, incomplete = incomplete.partition("=")
    params = command["params"]
    if not incomplete.startswith("-"):
        arguments = [param for param in params if not param["opts"]]
        open_ = [param for number, param in enumerate(arguments) if param["several"] or number >= count]
        asked = [param for param in params if param["valued"] and last in param["opts"] and last.startswith("-")]
        if here := [*asked, *open_]:
            return fitting(values(here[0]), here[0]["others"], incomplete)
    found = [item for item in command["commands"] or [] if item[0].startswith(incomplete)]
    for number, param in enumerate(params):
        if incomplete.startswith("-") and not param["hidden"] and (param["several"] or number not in given):
            names = [*param["opts"], *param["other"]]
            found += [(name, param["help"]) for name in names if name.startswith(incomplete)]
    return found


def parsed(command: Command, words: deque[str]) -> tuple[set[int], int]:
    """Return the numbers of the parameters that are given, and how many words are arguments, as the parser finds them.

    Raise UnusualError for what it would not accept.
    """
    names = {name: (n, param) for n, param in enumerate(command["params"]) for name in param["opts"] + param["other"]}
    given: set[int] = set()
    count = 0
    while words:
        word = words.popleft()
        name, equals, _ = word.partition("=")
        if word == "--":
            raise UnusualError
        if not word.startswith("-") or word == "-":
            count += 1
            continue
        glued = len(name) == 2 or name not in names
        if glued and word.startswith("--"):
            raise UnusualError
        for place, letter in enumerate(word[1:] if glued else " ", 2):
            number, param = names.get(f"-{letter}" if glued else name) or _unusual()
            if param["valued"]:
                if not (word[place:] if glued else equals):
                    if not words:
                        return given, 0  # what it lacks is being typed
                    words.popleft()
                given.add(number)
                break
            if equals and not glued:
                raise UnusualError
            given.add(number)
    return given, count


def _unusual() -> tuple[int, Param]:
    raise UnusualError


def fitting(items: Items, others: Items, incomplete: str) -> Items:
    """Return the items whose word begins so, or else those of `others`, in the letters that are typed."""
    found = [item for item in items if item[0].startswith(incomplete)]
    size = len(incomplete)
    return found or [(incomplete + w[size:], what) for w, what in others if w.lower().startswith(incomplete.lower())]


def values(param: Param) -> Items:
    """Return all values of a parameter that are known. Raise UnusualError if they depend on the command line."""
    if param["asks"]:
        raise UnusualError
    if not param["models"]:
        return param["values"]
    from gencli.checkpoints.find import known_names

    return list(known_names(*param["models"]))


def written(shell: str, found: Items) -> str:
    """Return words as a shell wants them."""
    if shell == "zsh":
        rows = [":".join(f'"{_in_zsh(word)}"' for word in item if word) for item in found]
        return "_arguments '*: :((" + "\n".join(rows) + "))'\n" if rows else "_files\n"
    if shell == "fish":
        lines = [(name, "".join(" " if char.isspace() else char for char in help)) for name, help in found]
        rows = ["\t".join(filter(None, line)) for line in lines]
    elif shell == "bash":
        rows = [name for name, _ in found]
    else:
        rows = [f"{name}:::{help or ' '}" for name, help in found]
    return "\n".join(rows) + "\n"


def _in_zsh(text: str) -> str:
    pairs = (('"', '""'), ("'", "''"), ("$", "\\$"), ("`", "\\`"), (":", "\\\\:"))
    for char, safe in pairs:
        text = text.replace(char, safe)
    return text


def behind_equals(text: str) -> str:
    """Return an answer with `--option=` before each word, where that is typed: bash looks for the values alone, and the
    other shells for words that begin as the one that is typed."""
    if colon := os.environ.get(COLON):
        return "".join(line.removeprefix(colon) for line in text.splitlines(keepends=True))
    option, equals, _ = os.environ.get(WORDS, "").rpartition(" ")[2].partition("=")
    if not (equals and option.startswith("--")) or text.startswith("_files"):
        return text
    import re

    before = r'((?<=\(\()|^)"' if text.startswith("_arguments") else r"^(?=.)"  # zsh's list, in quotes
    return re.sub(before, lambda found: f"{found[0]}{option}=", text, flags=re.M)


def load(path: list[str]) -> Command:
    """Return a command by the words that lead to it. Raise UnusualError if nothing that holds is known of it."""
    try:
        with open(_file(path), "rb") as file:
            own = cache.is_own(os.fstat(file.fileno()))
            head, _, body = file.read().partition(b"\n")
        if not own or int(head, 16) != zlib.crc32(body):
            raise UnusualError
        made = json.loads(body)
        if made["of"] != _origin() or any(_state(name) != state for name, state in made["files"].items()):
            raise UnusualError
    except (OSError, ValueError):
        raise UnusualError from None
    found: Command = made["command"]
    return found


def remember(root: Any) -> None:
    """Leave what the next TAB in the same place needs. root: the command `gencli`."""
    import contextlib
    from pathlib import Path

    from gencli.atomic import write_over

    with contextlib.suppress(OSError, UnusualError, LookupError, ValueError):
        words = question(os.environ[ASKED].partition("_")[2])[0]
        for path, command in _described(root, words):
            body = json.dumps({"of": _origin(), "files": _files(), "command": command}).encode()
            file = Path(_file(path))
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_over(file, b"%08x\n" % zlib.crc32(body) + body)
            file.chmod(0o600)


def _described(command: Any, words: list[str]) -> Iterator[tuple[list[str], Command]]:
    """Yield the commands that words lead to, and those words."""
    ctx, path = None, list[str]()
    while command is not None:
        with command.make_context(path[-1] if path else "gencli", [], parent=ctx, resilient_parsing=True) as ctx:
            group = hasattr(command, "list_commands")
            params = [_param(param, ctx) for param in command.get_params(ctx)]
            inner = [(item.value, item.help or "") for item in command.shell_complete(ctx, "")] if group else None
            yield path, {"params": params, "commands": inner}
            word = words[len(path)] if group and len(path) < len(words) else ""
            command = command.get_command(ctx, word) if word in dict(inner or ()) else None
            path = [*path, word]


def _param(param: Any, ctx: Any) -> Param:
    """Return what there is to know of a parameter. Raise UnusualError for one of a kind that gencli has not."""
    import inspect

    argument = param.param_type_name == "argument"
    declared = inspect.signature(ctx.command.callback, eval_str=True).parameters.get(param.name)
    said = getattr(declared and declared.annotation, "__metadata__", (None,))[0]
    complete = getattr(said, "autocompletion", None)
    known = None
    if complete is not None:
        from gencli.completions import COMPLETED

        known = COMPLETED.get(complete)
    given = [] if known and (known.tasks or known.asks) else param.shell_complete(ctx, "")
    if param.nargs not in ((1, -1) if argument else (1,)):
        raise UnusualError
    return {
        "opts": [] if argument else param.opts,
        "other": [] if argument else param.secondary_opts,
        "help": param.help or "",
        "hidden": bool(param.hidden),
        "valued": not argument and not param.is_flag,
        "several": param.nargs == -1 if argument else param.multiple,
        "values": [(item.value, item.help or "") for item in given],
        "models": [*known.tasks] if known else [],
        "others": [*known.others] if known else [],
        "asks": known is not None and known.asks,
    }


def _file(path: list[str]) -> str:
    return os.path.join(cache.folder("completion"), "-".join(["gencli", *path]) + ".json")


def _origin() -> list[str]:
    return [__version__, PACKAGE, sys.prefix]


def _state(path: str) -> list[int]:
    found = os.stat(path)
    return [found.st_mtime_ns, found.st_size]


def _files() -> dict[str, list[int]]:
    """Return the modules that a command is made of, and their folders, in which one may be added."""
    modules = [module for name, module in sys.modules.items() if name == "typer" or name.startswith("gencli")]
    files = {str(module.__file__) for module in modules if getattr(module, "__file__", None)}
    return {path: _state(path) for path in sorted(files | set(map(os.path.dirname, files)))}

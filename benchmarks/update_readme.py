"""Write what is generated into README.md: `python -m benchmarks.update_readme`, or `… help` for the help pages alone.

Between `<!-- NAME -->` and `<!-- /NAME -->` stand the help pages of the commands, the tables of families, and
examples with the output that the embedded models gave on this machine. tests/unit/test_readme.py checks the help pages.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
COMMANDS = ("text", "image")
EXAMPLES = (
    'gencli text --echo "Once upon a time" --seed 1',
    'gencli text --echo "Once upon a time" --seed 2',
    'gencli text --echo "Once upon a time" --seed 3',
    'gencli text "The dog was sad because" --num-samples 3 -n 12 --seed 1',
    'gencli text "Hello" -n 4 --seed 1 --json',
)


def help_page(command: str) -> str:
    """`gencli COMMAND --help` as it looks in a pipe on a wide terminal, as a block."""
    environment = {**os.environ, "COLUMNS": "100", "GENCLI_CONFIG": os.devnull}
    run = [sys.executable, "-m", "gencli", command, "--help"]
    page = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    return f"```text\n$ gencli {command} --help\n{page.strip()}\n```"


def example(line: str) -> str:
    """A command line and what it prints, as a block."""
    words = shlex.split(line)
    run = [sys.executable, "-m", *words]
    output = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    return f"```console\n$ {line}\n{output.rstrip()}\n```"


def section(text: str, name: str) -> str:
    """What stands between the marks of `name`."""
    match = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)
    if match is None:
        raise ValueError(f"README.md has no marks for {name}")
    return match[1]


def replaced(text: str, name: str, content: str) -> str:
    """The text with `content` between the marks of `name`."""
    section(text, name)
    new = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
    return re.sub(rf"<!-- {name} -->\n.*?<!-- /{name} -->", lambda _: new, text, flags=re.DOTALL)


def main(what: list[str]) -> None:
    text = README.read_text(encoding="utf-8")
    for command in COMMANDS:
        text = replaced(text, f"help:{command}", help_page(command))
    if what != ["help"]:
        from benchmarks.parity_table import picture_table, table

        text = replaced(text, "example:text", "\n\n".join(map(example, EXAMPLES)))
        text = replaced(text, "parity:text", table())
        text = replaced(text, "parity:image", picture_table())
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

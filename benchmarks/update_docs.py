"""Write what is generated into README.md and gencli/docs/: `python -m benchmarks.update_docs`.

Between `<!-- NAME -->` and `<!-- /NAME -->` stand the tables of families, and examples with the output that the
embedded models gave on this machine.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.parity_table import picture_table, table

ROOT = Path(__file__).parents[1]
EXAMPLES = (
    'gencli text --echo "Once upon a time" --seed 1',
    'gencli text "The dog was sad because" --num-samples 3 -n 12 --seed 1',
    'gencli text "Hello" -n 4 --seed 1 --json',
)


def example(line: str) -> str:
    """A command line and what it prints, as a block."""
    words = shlex.split(line)
    run = [sys.executable, "-m", *words]
    output = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    return f"```console\n$ {line}\n{output.rstrip()}\n```"


def update(page: str, name: str, content: str) -> None:
    """Write `content` between the marks of `name` in a page."""
    path = ROOT / page
    new = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
    pattern = rf"<!-- {name} -->\n.*?<!-- /{name} -->"
    text, count = re.subn(pattern, lambda _: new, path.read_text(encoding="utf-8"), flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{page} has {count} places for {name}")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="It takes a few minutes."
    ).parse_args()
    update("README.md", "example:text", "\n\n".join(map(example, EXAMPLES)))
    update("gencli/docs/text.md", "parity:text", table())
    update("gencli/docs/images.md", "parity:image", picture_table())

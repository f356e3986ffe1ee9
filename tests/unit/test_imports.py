"""What needs no torch imports without it: the command line, and every module whose docstring says "No torch"."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gencli

ROOT = Path(gencli.__file__).parent
WORK = {"gencli.cli.chat_commands"}  # imported by commands once the work begins
IMPORT_EACH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.exit(f"{name} imports torch")
"""


def without_torch():
    for file in sorted(ROOT.rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if (parts[1] == "cli" and name not in WORK) or "no torch" in docstring.lower():
            yield name


@pytest.mark.slow
def test_modules_that_say_so_import_without_torch():
    modules = list(without_torch())
    assert {"gencli.cli.app", "gencli.text.request", "gencli.image.request"} <= set(modules)
    process = subprocess.run([sys.executable, "-c", IMPORT_EACH, *modules], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_tests_take_nothing_from_other_tests():
    """What several need is in `tests/tiny`, `tests/oracles` or `tests/shell/process.py`."""
    taken = [
        f"{file.name}: {node.module}"
        for file in sorted((ROOT.parent / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and ".test_" in (node.module or "")
    ]
    assert taken == []

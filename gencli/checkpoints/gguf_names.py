"""What the names of GGUF files say: their type of weights, and which parts belong together. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from gencli.errors import GencliError

SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
TYPE = re.compile(r"(?:^|[-._/ ])((?:ud-)?(?:i?q|tq)\d\w*|b?f16|f32|fp16|fp32|mxfp4\w*)(?=$|[-._/])", re.IGNORECASE)
ENDING = r":(?P<type>[A-Za-z][\w.-]*)"
NAMED = re.compile(rf"(?P<name>[^:]+/[^:]+){ENDING}")
FOLDER = re.compile(rf"(?P<name>.+){ENDING}", re.DOTALL)
USUAL = "Q4_K_M"  # where none is named, as llama.cpp takes it
OTHERS = re.compile(r"(.*/)?(mmproj|imatrix)[^/]*|.*[-._](mmproj|imatrix)[^/]*", re.IGNORECASE)  # no language models


def split_name(name: str) -> tuple[str, str | None]:
    """Return the repository and the type of `org/repo:TYPE`; the name and None for any other."""
    match = NAMED.fullmatch(name.removeprefix("https://").removeprefix("http://"))
    return (match["name"], match["type"]) if match else (name, None)


def split_folder(path: str) -> tuple[Path, str | None]:
    """Return the folder and the type of `folder:TYPE`; the path and None for any other. A file may be called so too."""
    match = FOLDER.fullmatch(path)
    return (Path(match["name"]), match["type"]) if match else (Path(path), None)


def type_of(file: str) -> str:
    """Return the type in a file's name, the last that looks like one: Q4_K_M of `model-Q4_K_M-00001-of-00002.gguf`.

    A file without one is called by its name.
    """
    match = SPLIT.fullmatch(file)
    stem = match[1] if match else file.removesuffix(".gguf")
    found = TYPE.findall(stem)
    return found[-1].upper() if found else stem.rpartition("/")[2]


def by_type(names: Collection[str]) -> dict[str, list[str]]:
    """Return the language models among the names of files: type → its file, or the parts of a split one in order.

    A split model with a part that is not there is left out. Of two of one type each has its name in the place of it.
    """
    wholes: dict[str, list[str]] = {}
    for name in sorted(name for name in names if name.endswith(".gguf") and not OTHERS.fullmatch(name)):
        match = SPLIT.fullmatch(name)
        wholes.setdefault(f"{match[1]}.gguf" if match else name, []).append(name)
    found: dict[str, list[str]] = {}
    kinds = [type_of(whole) for whole in wholes]
    for kind, (whole, parts) in zip(kinds, wholes.items(), strict=True):
        match = SPLIT.fullmatch(parts[0])
        if match is None or len(parts) == int(match[3]):
            found[kind if kinds.count(kind) == 1 else whole.removesuffix(".gguf").rpartition("/")[2]] = parts
    return found


def choose(names: Collection[str], wanted: str | None) -> list[str]:
    """Return the files of a type, which may be written in small letters; without one the only model, or the usual type.

    Raise GencliError if it is not there, with the names of those that are.
    """
    found = by_type(names)
    for kind in [wanted, f"UD-{wanted}"] if wanted else [USUAL, *(found if len(found) == 1 else ())]:
        for own, files in found.items():
            if own.upper() == kind.upper():
                return files
    there = f"there are {', '.join(found)}" if found else None
    if wanted is None:
        raise GencliError(
            f"it has {len(found)} GGUF files, none of the type {USUAL}", f"{there}: add :TYPE to the name"
        )
    raise GencliError(f"no GGUF file of the type {wanted[:60]}", there)

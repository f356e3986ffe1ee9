"""The state of a run on disk: written whole or not at all, and read back only into the run that it belongs to."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from gencli.atomic import replace_file
from gencli.errors import GencliError

DIGESTS = {"data": "the data (texts, or images and captions)", "validation": "the validation texts"}
SIZES = "sizes"  # key of a recipe's part that no flag can change


def save(path: Path, state: Mapping[str, object]) -> None:
    """Write a state in place of an older one. After a kill or a power cut, `path` holds one of the two."""
    with replace_file(path) as partial, partial.open("wb") as file:
        torch.save(dict(state), file)


def load(path: Path) -> dict[str, Any] | None:
    """Return the state saved at `path`, its tensors on the CPU, or None. Raise GencliError for any other file."""
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not isinstance(recipe := found.get("recipe"), dict | None):
            raise ValueError("it has no table of a run")
        if recipe is not None and not isinstance(recipe.get(SIZES, {}), dict):
            raise ValueError("it has no sizes")
        return found
    except Exception as error:  # pickle, zip and torch each raise their own
        what = " ".join(str(error).split())[:100]
        raise GencliError(f"{path} is not a state of a run: {what}", "choose another -o to start again") from None


def check_recipe(where: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any], *, changes: bool) -> None:
    """Raise GencliError if a run would continue with another recipe than it was begun with.

    `before` and `now` map names of options to plain values. Those under SIZES can never change, the others only with
    `changes`. A state without a recipe is accepted.
    """
    if before is None:
        return
    fixed = _differences(before.get(SIZES, {}), now.get(SIZES, {}))
    if fixed:
        raise GencliError(
            f"{where} was started with other sizes: {'; '.join(fixed)}", "choose another -o to start again"
        )
    loose = _differences(
        {key: value for key, value in before.items() if key != SIZES},
        {key: value for key, value in now.items() if key != SIZES},
    )
    if loose and not changes:
        raise GencliError(
            f"{where} was started with other settings: {'; '.join(loose)}",
            "use the same, another -o, or --allow-changes",
        )


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    names = sorted(name for name in before if before[name] != now.get(name))
    told = [f"{name} {_short(before[name])}, now {_short(now.get(name))}" for name in names if name not in DIGESTS]
    return told or [f"{DIGESTS[name]} are others" for name in names]  # settings change what these are of


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """Return a digest of data parts in their order."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()[:16]


@contextlib.contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Lock a run's folder, made if need be, to this process until it ends. Raise GencliError if another one has it.

    A run that ends before it has written anything leaves no folder of its own.
    """
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (out / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GencliError(f"{out} is in use by another training run", "choose a different -o") from None
        except OSError:  # a file system that knows no locks
            pass
        try:
            yield
        except BaseException:
            if new and [path.name for path in out.iterdir()] == ["lock"]:
                (out / "lock").unlink()
                out.rmdir()
            raise

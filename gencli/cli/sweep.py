"""`--sweep cfg-scale=1,3,7 --sweep seed=1..4`: the same image with every combination of some settings."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gencli.errors import UsageError, did_you_mean
from gencli.image.request import ImageRequest
from gencli.options import rows

LIMIT = 1000  # combinations
WHOLE = {"count", "batch", "grid", "best", "clip", "truncate", "width", "height"}  # of all images together


@dataclass(frozen=True)
class Variant:
    """One combination: what it changes, by field, and how it is labelled."""

    values: dict[str, object]
    label: str


@dataclass(frozen=True)
class Sweep:
    """All combinations, the last setting changing fastest. columns: its number of values."""

    variants: tuple[Variant, ...]
    columns: int

    def repeats_seeds(self, count: int) -> bool:
        """Return whether two images have the same seed, with so many images of each combination."""
        seeds = {one.values.get("seed") for one in self.variants}
        return len(self.variants) > 1 and (count > 1 or len(seeds) < len(self.variants))


def parse(texts: Sequence[str]) -> Sweep:
    """Parse KEY=A,B,C or KEY=FIRST..LAST, each. Raise UsageError."""
    settings = [
        (field, option)
        for field, option in rows(ImageRequest)
        if option.usage and not option.reload and not option.several and option.kind in (int, float, str)
        if field not in WHOLE
    ]
    known = {flag[2:]: row for row in settings for flag in row[1].flags if flag.startswith("--")}
    others = {"size", *(option.name(field)[2:] for field, option in rows(ImageRequest) if option.usage)} - known.keys()
    listed = f"settings: {', '.join(option.name(field)[2:] for field, option in settings)}"
    axes: list[list[tuple[str, str, object]]] = []
    for text in texts:
        key, equals, words = text.partition("=")
        key = key.strip().lstrip("-")
        if not equals or not words:
            raise UsageError(f"--sweep {text!r:.80}: expected KEY=A,B,C or KEY=1..4", "as in cfg-scale=1,3,7")
        if key in ("prompt", "prompts"):
            raise UsageError(f"--sweep {text!r:.80}: a prompt is no setting", "--lines draws one after the other")
        if key in others:
            raise UsageError(f"--sweep {text!r:.80}: {key} is the same for all images of a sweep", listed)
        if key not in known:
            hint = did_you_mean(key, known) or listed
            raise UsageError(f"--sweep {text!r:.80}: no setting {key!r}", hint)
        field, option = known[key]
        span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", words) if option.kind is int else None
        if span and int(span[2]) - int(span[1]) >= LIMIT:
            raise UsageError(f"--sweep {text!r:.80}: more than {LIMIT} values")
        parts = [str(n) for n in range(int(span[1]), int(span[2]) + 1)] if span else words.split(",")
        axis = []
        for word in parts:
            try:
                value = option.kind(word.strip())
            except ValueError:
                kind = "an integer" if option.kind is int else "a number"
                raise UsageError(
                    f"--sweep {text!r:.80}: {word!r:.40} is not {kind}", _range(key, word, option.kind)
                ) from None
            option.check(field, value)
            axis.append((field, f"{key} {word.strip()}", value))
        if not axis:
            raise UsageError(f"--sweep {text!r:.80}: no values", "the first of a range is not above the last")
        axes.append(axis)
    combined = list(itertools.islice(itertools.product(*axes), LIMIT + 1))
    if len(combined) > LIMIT:
        raise UsageError(f"--sweep: more than {LIMIT} combinations")
    variants = (
        Variant({field: value for field, _, value in one}, ", ".join(label for _, label, _ in one)) for one in combined
    )
    return Sweep(tuple(variants), len(axes[-1]) if axes else 1)


def _range(key: str, word: str, kind: type) -> str | None:
    """Return a hint for a word that looks like a range of numbers."""
    span = re.fullmatch(r" *(\d{1,9}) *(?:\.\.|-|:) *(\d{1,9}) *", word)
    if span is None:
        return None
    whole = f"did you mean {key}={span[1]}..{span[2]}?"
    return whole if kind is int else f"FIRST..LAST is for whole numbers; list them, as in {key}={span[1]},{span[2]}"

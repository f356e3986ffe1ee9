"""What `gencli train` prints: JSON lines of a run, its progress line, and notes. No torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from gencli import signals
from gencli.cli.console import Console, is_terminal
from gencli.errors import counted
from gencli.train.recipe import ImageRecipe, TextRecipe

if TYPE_CHECKING:
    from gencli.train.trainer import Progress

TOLD_EVERY = 50  # steps between two lines on stdout
WORSE = 1.03  # times the best score, from which on a worse one is told


def note_rate(console: Console, recipe: TextRecipe | ImageRecipe) -> None:
    """Note a run that ends before its learning rate has reached --lr."""
    if recipe.warmup > recipe.steps * (1 - recipe.cooldown):
        console.note(
            f"the learning rate falls before it has reached {recipe.lr:g}: of {counted(recipe.steps, 'step')}, "
            f"--warmup takes {recipe.warmup} and --cooldown {recipe.cooldown:g} of all"
        )


def follow(
    console: Console, recipe: TextRecipe | ImageRecipe, run: Generator[Progress, None, object], items: str, score: str
) -> None:
    """Draw a run's progress line, and now and then write a JSON line: where it is, with its scores under `score`."""
    scores: dict[str, list[tuple[float, int]]] = {}
    at = None
    with closing(run), _told_where_it_stopped(console, lambda: at):
        for now in run:
            if at is None:  # not of a run that is finished, or cannot begin
                note_rate(console, recipe)
            at = now
            stage = {} if at.stage == "text" else {"stage": at.stage}
            rate = f"{at.rate:.0f}" if at.rate >= 100 else f"{at.rate:.1f}"
            label = " ".join([*stage.values(), "loss", f"{at.loss:.3f}"])
            console.progress(label, at.step, at.steps, f"{rate} {items}/s", at.left)
            if at.validation is None and at.step % TOLD_EVERY and at.step != at.steps:
                continue
            told: dict[str, object] = {**stage, "step": at.step, "loss": round(at.loss, 5), "lr": float(f"{at.lr:.4g}")}
            told |= {items: at.seen, "seconds": round(at.seconds, 1), f"{items}_per_second": float(rate)}
            if at.validation is not None:
                for name, value in at.validation.items():
                    scores.setdefault(name, []).append((value, at.step))
                told[score] = {name: round(value, 5) for name, value in at.validation.items()}
            write(console, told)

    for name, values in scores.items():
        (best, step), (last, _) = min(values), values[-1]
        if last > best * WORSE:
            which = "" if name in ("all", "seen", "held_out") else f" of {name}"
            console.note(
                f"the score{which} was best at step {step} ({best:.3f}) and is {last:.3f} now: fewer --steps, "
                "or --dropout, keep a model from learning its texts by heart"
            )


@contextmanager
def _told_where_it_stopped(console: Console, where: Callable[[], Progress | None]) -> Iterator[None]:
    """Say where a run was stopped by a signal."""
    try:
        yield
    except (KeyboardInterrupt, signals.Terminated):
        at = where()
        if at is None:
            console.note("stopped before a step was taken; the same command goes on")
        else:
            stage = "" if at.stage == "text" else f" of stage {at.stage}"
            console.note(f"stopped after step {at.step}{stage}; the same command goes on from there")
        raise


def write(console: Console, line: Mapping[str, object]) -> None:
    """Write a JSON line on stdout; on a terminal, the same in words."""
    console.clear()
    text = "  ".join(as_words(line)) if is_terminal(sys.stdout) else json.dumps(line, ensure_ascii=False)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def as_words(line: Mapping[str, object], before: str = "") -> Iterator[str]:
    """Yield the values of a JSON line, each after its name."""
    for key, value in line.items():
        name = f"{before}{key}".replace("_", " ").replace(" per second", "/s")
        if isinstance(value, Mapping):
            yield from as_words(value, f"{name} ")
        else:
            yield f"{name} {value:<9}" if isinstance(value, float | int) else f"{name} {value}"

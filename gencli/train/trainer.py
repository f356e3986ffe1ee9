"""The training loop, the same for every recipe: update, validate, save, report.

Whatever a step draws at random follows from (seed, step) alone and comes from CPU generators, so a run that was
killed and resumed sees what an unbroken one sees, on every device; on a CPU it ends in the same bits.
"""

from __future__ import annotations

import copy
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.signals import ENDING
from gencli.train import state
from gencli.train.curve import Curve
from gencli.train.optim import Optimizers, learning_rate_factor
from gencli.train.precision import Precision
from gencli.train.recipe import Recipe

DRAW_EVERY = 30.0  # seconds between two drawings of the curve


@dataclass(frozen=True)
class Progress:
    """The state of a stage after a step.

    loss: of this step. seen: items (tokens, images) so far. seconds: spent on training so far, in all sessions.
    rate: items per second in this session. left: estimated seconds to the end. validation: scores, if taken now.
    """

    stage: str
    step: int
    steps: int
    loss: float
    lr: float
    seen: int
    seconds: float
    rate: float
    left: float
    validation: dict[str, float] | None = None


M_co = TypeVar("M_co", bound=nn.Module, covariant=True)


class Average(Generic[M_co]):
    """An exponential moving average of a model's parameters, begun as their plain average (Karras et al. 2023)."""

    def __init__(self, model: M_co, decay: float):
        self.model, self.average, self.decay = model, copy.deepcopy(model).requires_grad_(False), decay

    @torch.no_grad()
    def update(self, done: int) -> None:
        """Set average to d · average + (1 − d) · model after `done` steps."""
        decay = min(self.decay, done / (done + 10))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)


T = TypeVar("T")


def ahead(draw: Callable[[int], T], steps: int, precision: Precision) -> Callable[[int], T]:
    """Return a function that gives the batch of a step, as `draw` does.

    On a GPU the batch of the step after is then drawn in another thread, while the GPU computes.
    """
    if precision.device.type == "cpu":
        return draw
    pool, waiting = ThreadPoolExecutor(1), dict[int, Future[T]]()

    def get(step: int) -> T:
        batch = waiting.pop(step) if step in waiting else pool.submit(draw, step)
        if step + 1 < steps:
            waiting[step + 1] = pool.submit(draw, step + 1)
        return batch.result()

    return get


class DeferSignals:
    """Ctrl-C, SIGTERM and SIGHUP wait while a step is half done (and validated), so that a whole state can be saved.

    Signals reach the main thread's handlers whatever thread the system picks, so handlers defer them, not a mask.
    """

    def __init__(self) -> None:
        self.deferring, self.pending = False, 0
        self.handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if callable(handler := signal.getsignal(number)):
                    self.handlers[number] = handler
                    signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.deferring:
            self.pending = number
        else:
            self.handlers[number](number, frame)

    def begin(self) -> None:
        """Defer signals from now on."""
        self.deferring = True

    def end(self) -> None:
        """Stop deferring, and handle the signal that came meanwhile."""
        self.deferring = False
        if self.pending:
            number, self.pending = self.pending, 0
            self.handlers[number](number, None)

    def close(self) -> None:
        """Restore the handlers that were there before."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


class Trainer:
    """One stage of a run, kept in `recipe.out`/`state_file`. identity: see `state.check_recipe`.

    names_for_adam: see `Optimizers`.
    """

    def __init__(
        self,
        stage: str,
        recipe: Recipe,
        state_file: str,
        identity: Mapping[str, object],
        model: nn.Module,
        curve: Curve,
        precision: Precision,
        *,
        names_for_adam: tuple[str, ...],
        average: Average[nn.Module] | None = None,
    ):
        self.stage, self.recipe, self.identity = stage, recipe, identity
        self.state_file = Path(recipe.out) / state_file
        self.model, self.curve, self.average, self.steps = model, curve, average, recipe.steps
        self.optimizers = Optimizers(
            model,
            recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            names_for_adam=names_for_adam,
            dtype=precision.dtype,
        )
        self.done, self.seen, self.seconds = 0, 0, 0.0  # steps, items, and time that they took
        self._is_updating = False

    def rate_factor(self, step: int) -> float:
        """Return the factor on the learning rate."""
        return learning_rate_factor(step, self.recipe.steps, self.recipe.warmup, self.recipe.cooldown)

    def run(
        self,
        update: Callable[[int], tuple[Tensor, int]],
        validate: Callable[[int], dict[str, float] | None] = lambda done: None,
    ) -> Generator[Progress, None, None]:
        """Take the remaining steps; yield after each, of a run that a signal ends also after the last it took.

        update: maps a step to its loss, with its graph, and its number of items. validate: maps the number of steps
        done to scores, if it is time for them. Raise GencliError for a loss that is not finite, and for a state of
        another run.
        """
        self._resume()
        first, before = self.done, self.seconds
        begun = saved = drawn = time.monotonic()
        at_first = self.seen
        untold: Progress | None = None
        signals = DeferSignals()
        try:
            for step in range(first, self.steps):
                torch.manual_seed(self.recipe.seed * 1_000_003 + step)  # dropout
                loss, items = update(step)
                loss.backward()
                value = loss.item()
                if not math.isfinite(value):
                    raise GencliError(f"the loss is {value} at step {step + 1}", "a lower --lr learns more steadily")
                signals.begin()
                self._is_updating = True
                self.optimizers.step(self.rate_factor(step))
                self.done, self.seen = step + 1, self.seen + items
                if self.average is not None:
                    self.average.update(self.done)
                scores = validate(self.done)
                now = time.monotonic()
                spent = now - begun
                self.seconds = before + spent
                lr = self.optimizers.lr * self.rate_factor(step)
                self.curve.add(self.done, value, lr, self.seen, self.seconds, scores)
                rate = (self.seen - at_first) / max(spent, 1e-9)
                left = (self.steps - self.done) * spent / (self.done - first)
                untold = Progress(
                    self.stage, self.done, self.steps, value, lr, self.seen, self.seconds, rate, left, scores
                )
                self._is_updating = False
                signals.end()
                last = self.done == self.steps
                if last or now - saved >= self.recipe.save_every:
                    self._save()
                    saved = time.monotonic()
                if last or now - drawn >= DRAW_EVERY:
                    self.curve.draw()
                    drawn = time.monotonic()
                progress, untold = untold, None
                yield progress
        except BaseException:  # Ctrl-C and a closed generator lose no whole step
            if not self._is_updating and self.done > first and not sys.is_finalizing():
                self._save()
                self.curve.draw()
                if untold is not None:
                    yield untold
            raise
        finally:
            signals.close()

    def _save(self) -> None:
        self.curve.sync()  # before the state: what it says was done is in the curve
        parts: dict[str, object] = {"model": self._values(self.model), "optimizers": self.optimizers.state_dict()}
        if self.average is not None:
            parts["ema"] = self.average.average.state_dict()
        counts = {"step": self.done, "seen": self.seen, "seconds": self.seconds}
        state.save(self.state_file, {**parts, **counts, "recipe": dict(self.identity)})

    def _resume(self) -> None:
        """Continue from the state file, or start at step 0."""
        self.done, self.seen, self.seconds, self._is_updating = 0, 0, 0.0, False
        saved = state.load(self.state_file)
        if saved is not None:
            state.check_recipe(
                self.state_file.parent, saved.get("recipe"), self.identity, changes=self.recipe.allow_changes
            )
            try:
                self._fill(self.model, saved["model"])
                if self.average is not None:
                    self.average.average.load_state_dict(saved["ema"])
                self.optimizers.load_state_dict(saved["optimizers"])
                self.done = int(saved["step"])
            except (KeyError, ValueError, RuntimeError, TypeError) as error:
                what = " ".join(str(error).split())[:100]
                raise GencliError(
                    f"{self.state_file} is of another model: {what}", "choose another -o to start again"
                ) from None
            self.seen, self.seconds = int(saved.get("seen", 0)), float(saved.get("seconds", 0.0))
        self.curve.begin(self.done)

    @staticmethod
    def _values(model: nn.Module) -> dict[str, Tensor]:
        """Return the trained parameters."""
        return {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}

    @staticmethod
    @torch.no_grad()
    def _fill(model: nn.Module, values: Mapping[str, Tensor]) -> None:
        for name, param in model.named_parameters():
            if param.requires_grad:
                if values[name].shape != param.shape:
                    raise ValueError(f"{name} is {list(values[name].shape)}, not {list(param.shape)}")
                param.copy_(values[name])

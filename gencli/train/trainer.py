"""The walk through the steps of a run, the same for every recipe: update, validate, save, tell.

Whatever a step draws at random follows from (seed, step) alone and comes from CPU generators, so a run that was
killed and resumed sees what an unbroken one sees, on every device; on a CPU it ends in the same bits.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.train import state
from gencli.train.curve import Curve
from gencli.train.optim import Optimizers

DRAW_EVERY = 30.0  # seconds between two drawings of the curve


@dataclass(frozen=True)
class Progress:
    """Where a stage is after a step.

    loss: of this step; seen: items (tokens, pictures) so far; seconds: spent training so far, in all sittings;
    rate: items a second in this sitting; left: seconds to the end; validation: scores, where they were taken.
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


class Average:
    """An exponential moving average of a model's parameters, begun as their plain average (Karras et al. 2023)."""

    def __init__(self, model: nn.Module, average: nn.Module, decay: float):
        self.model, self.average, self.decay = model, average.requires_grad_(False), decay

    @torch.no_grad()
    def update(self, done: int) -> None:
        """average ← d · average + (1 − d) · model after `done` steps."""
        decay = min(self.decay, done / (done + 10))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)


class Held:
    """Ctrl-C and SIGTERM wait while a step is half done (and validated), so that what is whole can be saved.

    Signals come to the main thread's handlers whatever thread the system picks, so handlers hold them, not a mask.
    """

    def __init__(self) -> None:
        self.holding, self.waiting = False, 0
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    self.before[number] = handler
                    signal.signal(number, self._came)

    def _came(self, number: int, frame: Any) -> None:
        if self.holding:
            self.waiting = number
        else:
            self.before[number](number, frame)

    def begin(self) -> None:
        self.holding = True

    def end(self) -> None:
        """Let come what came in between."""
        self.holding = False
        if self.waiting:
            number, self.waiting = self.waiting, 0
            self.before[number](number, None)

    def close(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)


@dataclass
class Trainer:
    """One stage of a run. `state_file` and the curve lie in the run's folder; `recipe`: see `state.check_recipe`."""

    stage: str
    state_file: Path
    recipe: Mapping[str, Any]
    model: nn.Module
    optimizers: Optimizers
    curve: Curve
    seed: int
    steps: int
    factor: Callable[[int], float]  # step → share of the highest learning rate
    average: Average | None = None
    save_every: float = 180.0  # seconds
    changes: bool = False  # go on with another recipe than the run was begun with
    done: int = field(default=0, init=False)  # steps
    seen: int = field(default=0, init=False)  # items
    seconds: float = field(default=0.0, init=False)
    _between: bool = field(default=False, init=False)  # in the middle of a step's changes

    def run(
        self,
        update: Callable[[int], tuple[Tensor, int]],
        validate: Callable[[int], dict[str, float] | None] = lambda done: None,
    ) -> Generator[Progress, None, None]:
        """Take the steps that are left; yields after each.

        update: step → its loss, with its graph, and how many items it is of. validate: steps done → scores, if it is
        time for them. Raises GencliError for a loss that is no number, and for a state that is of another run.
        """
        self._resume()
        first, before = self.done, self.seconds
        begun = saved = drawn = time.monotonic()
        at_first = self.seen
        held = Held()
        try:
            for step in range(first, self.steps):
                torch.manual_seed(self.seed * 1_000_003 + step)  # dropout
                loss, items = update(step)
                loss.backward()
                value = loss.item()
                if not math.isfinite(value):
                    raise GencliError(f"the loss is {value} at step {step + 1}", "a lower --lr learns more steadily")
                held.begin()
                self._between = True
                self.optimizers.step(self.factor(step))
                self.done, self.seen = step + 1, self.seen + items
                if self.average is not None:
                    self.average.update(self.done)
                scores = validate(self.done)
                now = time.monotonic()
                spent = now - begun
                self.seconds = before + spent
                lr = self.optimizers.lr * self.factor(step)
                self.curve.add(self.done, value, lr, self.seen, self.seconds, scores)
                self._between = False
                held.end()
                last = self.done == self.steps
                if last or now - saved >= self.save_every:
                    self._save()
                    saved = time.monotonic()
                if last or now - drawn >= DRAW_EVERY:
                    self.curve.draw()
                    drawn = time.monotonic()
                rate = (self.seen - at_first) / max(spent, 1e-9)
                left = (self.steps - self.done) * spent / (self.done - first)
                yield Progress(
                    self.stage, self.done, self.steps, value, lr, self.seen, self.seconds, rate, left, scores
                )
        except BaseException:  # Ctrl-C and an end by whoever reads lose nothing that is whole
            if not self._between and self.done > first and not sys.is_finalizing():
                self._save()
                self.curve.draw()
            raise
        finally:
            held.close()

    def _save(self) -> None:
        self.curve.sync()  # before the state: what it says was done is in the curve
        parts: dict[str, Any] = {"model": self._values(self.model), "optimizers": self.optimizers.state_dict()}
        if self.average is not None:
            parts["ema"] = self.average.average.state_dict()
        counts = {"step": self.done, "seen": self.seen, "seconds": self.seconds}
        state.save(self.state_file, {**parts, **counts, "recipe": dict(self.recipe)})

    def _resume(self) -> None:
        """Take up what the state file says, or begin at nought."""
        self.done, self.seen, self.seconds, self._between = 0, 0, 0.0, False
        saved = state.load(self.state_file)
        if saved is not None:
            state.check_recipe(self.state_file.parent, saved.get("recipe"), self.recipe, changes=self.changes)
            try:
                self._fill(self.model, saved["model"])
                if self.average is not None:
                    self.average.average.load_state_dict(saved["ema"])
                self.optimizers.load_state_dict(saved["optimizers"])
                self.done = int(saved["step"])
            except (KeyError, ValueError, RuntimeError, TypeError) as error:
                what = " ".join(str(error).split())[:100]
                raise GencliError(f"{self.state_file} is of another model: {what}", "another -o begins anew") from None
            self.seen, self.seconds = int(saved.get("seen", 0)), float(saved.get("seconds", 0.0))
        self.curve.begin(self.done)

    @staticmethod
    def _values(model: nn.Module) -> dict[str, Tensor]:
        """What is trained."""
        return {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}

    @staticmethod
    @torch.no_grad()
    def _fill(model: nn.Module, values: Mapping[str, Tensor]) -> None:
        for name, param in model.named_parameters():
            if param.requires_grad:
                if values[name].shape != param.shape:
                    raise ValueError(f"{name} is {list(values[name].shape)}, not {list(param.shape)}")
                param.copy_(values[name])

"""How long the parts of drawing take, and how long what is left of it will."""

from __future__ import annotations

import time

from gencli import devices
from gencli.cli.console import PATIENCE
from gencli.errors import counted


class Clock:
    """The seconds that the parts of a run take."""

    def __init__(self) -> None:
        self.began = self.last = self.picture = time.perf_counter()
        self.load = self.steps_time = 0.0
        self.steps = self.pictures = 0

    def loaded(self) -> None:
        self.last = self.picture = time.perf_counter()
        self.load = self.last - self.began

    def stepped(self) -> None:
        now = time.perf_counter()
        self.steps_time += now - self.last
        self.steps, self.last = self.steps + 1, now

    def finished(self) -> float:
        """Count an image as finished; return the seconds since the one before it."""
        self.last = time.perf_counter()
        seconds, self.picture = self.last - self.picture, self.last
        self.pictures += 1
        return seconds

    def total(self) -> float:
        return time.perf_counter() - self.began - self.load

    def left(self, steps: int) -> float:
        """Return the seconds that so many more steps will take; 0 while that is not known."""
        return steps * self.steps_time / self.steps if self.steps and self.steps_time >= PATIENCE else 0.0

    def rate(self) -> str:
        """Return steps per second, or seconds per step if that is more than one."""
        each = self.steps_time / self.steps if self.steps else 0.0
        return f"{each:.1f} s/step" if each >= 1 else f"{1 / each:.1f} steps/s" if each else ""

    def __str__(self) -> str:
        rest = max(self.total() - self.steps_time, 0.0)
        peak = devices.peak_memory()
        memory = f"; peak {peak / 2**20:.0f} MiB" if peak else ""
        return (
            f"load {self.load:.2f} s; {counted(self.steps, 'step')} in {self.steps_time:.2f} s, {self.rate()}; "
            f"{counted(self.pictures, 'image')}, {rest:.2f} s for the rest{memory}"
        )

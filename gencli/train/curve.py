"""The loss curve of a run: a CSV that grows a row a step, and a PNG drawn from it."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gencli.atomic import replace_file

CurveRow = dict[str, float | None]
"""One row of the CSV."""
Point = tuple[float, float]
CurveLine = tuple[str, list[Point]]
"""A name, and points (step, value)."""
PREFIX = "validation_"  # of a score's column

SCALE = 2  # drawn larger and shrunk, for smooth lines
WIDTH, PANEL = 960 * SCALE, 330 * SCALE  # pixels of the image and of one panel
LEFT, RIGHT, TOP, BOTTOM = 64 * SCALE, 20 * SCALE, 34 * SCALE, 44 * SCALE  # around a panel's axes
INK, GRID, PALE = (40, 40, 40), (225, 225, 225), (190, 205, 225)
COLORS = ((31, 88, 160), (200, 80, 20), (30, 130, 70), (140, 60, 150), (120, 120, 120))


@dataclass
class Curve:
    """`path`.csv and `path`.png of a stage that counts its items as `items`.

    unit: of the loss. score_unit: of validation scores, if they are not losses of the same kind. They then get a panel
    of their own.
    """

    path: Path
    items: str
    scores: Sequence[str]  # names of the validation scores
    unit: str
    score_unit: str = ""
    rows: list[CurveRow] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return ["step", "loss", "lr", self.items, "seconds", *(PREFIX + name for name in self.scores)]

    def begin(self, done: int) -> None:
        """Open the CSV with its rows up to step `done`; later rows are of steps that were lost."""
        self.rows = [row for row in self._read() if (row["step"] or 0) <= done]
        file = self.path.with_suffix(".csv")
        with replace_file(file) as partial:
            partial.write_text("".join([",".join(self.columns) + "\n", *map(self._line, self.rows)]), encoding="utf-8")
        self._file = file.open("a", encoding="utf-8")

    def add(
        self, step: int, loss: float, lr: float, seen: int, seconds: float, scores: Mapping[str, float] | None
    ) -> None:
        """Append a row."""
        row: CurveRow = {"step": step, "loss": loss, "lr": lr, self.items: seen, "seconds": seconds}
        row |= {PREFIX + name: value for name, value in (scores or {}).items()}
        self.rows.append(row)
        self._file.write(self._line(row))
        self._file.flush()

    def sync(self) -> None:
        """Have what was added on disk."""
        os.fsync(self._file.fileno())

    def draw(self) -> None:
        """Write the PNG in place of the old one."""
        with replace_file(self.path.with_suffix(".png")) as partial:
            plot(self.rows, self.scores, self.unit, self.score_unit).save(partial, format="PNG")

    def _line(self, row: CurveRow) -> str:
        return ",".join(_written(name, row.get(name)) for name in self.columns) + "\n"

    def _read(self) -> list[CurveRow]:
        """Return the rows of an earlier session, but for a last line that a kill cut short."""
        file = self.path.with_suffix(".csv")
        rows: list[CurveRow] = []
        if file.exists():
            with file.open(encoding="utf-8", errors="replace") as lines:
                for raw in csv.DictReader(lines):
                    try:
                        rows.append({name: float(raw[name]) if raw.get(name) else None for name in self.columns})
                    except ValueError:
                        break
        return [row for row in rows if row["step"] is not None]


def _written(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "seconds":
        return f"{value:.3f}"
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def plot(rows: Sequence[CurveRow], scores: Sequence[str], unit: str, score_unit: str) -> Image.Image:
    """Draw the training loss, pale as it was and dark as a running mean, and the validation scores."""
    losses = _points(rows, "loss")
    names = [f"validation, {name.replace('_', ' ')}" if len(scores) > 1 else "validation" for name in scores]
    lines = [(name, _points(rows, PREFIX + score)) for name, score in zip(names, scores, strict=True)]
    training = [("training", _smooth(losses))]
    panels = [(unit, training), (score_unit, lines)] if score_unit else [(unit, [*training, *lines])]
    panels = [(unit, [line for line in shown if line[1]]) for unit, shown in panels]
    steps = max((row["step"] or 0 for row in rows), default=1) or 1
    image = Image.new("RGB", (WIDTH, PANEL * len(panels)), "white")
    for number, (unit, shown) in enumerate(panels):
        _panel(ImageDraw.Draw(image), PANEL * number, steps, unit, losses if number == 0 else [], shown)
    return image.reduce(SCALE)


def _panel(
    draw: ImageDraw.ImageDraw,
    top: int,
    steps: float,
    unit: str,
    pale: list[Point],
    lines: list[CurveLine],
) -> None:
    """Draw one pair of axes, with a legend at the upper right, where a falling curve leaves room."""
    values = [y for _, points in lines for _, y in points[len(points) // 50 :]] or [0.0, 1.0]
    y_ticks, x_ticks = _ticks(min(values), max(values), 6), _ticks(0, steps, 8)
    low, high = min(y_ticks[0], *values), max(y_ticks[-1], *values)
    left, right, upper, lower = LEFT, WIDTH - RIGHT, top + TOP, top + PANEL - BOTTOM
    font = ImageFont.load_default(12 * SCALE)

    def place(x: float, y: float) -> Point:
        height = lower - (lower - upper) * (y - low) / (high - low)
        return left + (right - left) * x / steps, min(max(height, upper), lower)

    for tick in y_ticks:
        draw.line([place(0, tick), place(steps, tick)], fill=GRID, width=SCALE)
        draw.text((left - 8 * SCALE, place(0, tick)[1]), f"{tick:,g}", fill=INK, font=font, anchor="rm")
    for tick in x_ticks[: -1 if x_ticks[-1] > steps else None]:
        draw.line([(place(tick, low)[0], lower), (place(tick, low)[0], lower + 5 * SCALE)], fill=INK, width=SCALE)
        draw.text((place(tick, low)[0], lower + 8 * SCALE), f"{tick:,g}", fill=INK, font=font, anchor="mt")
    if len(pale) > 1:
        draw.line([place(*point) for point in pale], fill=PALE, width=SCALE)
    for index, ((name, points), color) in enumerate(zip(lines, COLORS * 3, strict=False)):
        draw.line([place(*point) for point in points], fill=color, width=2 * SCALE, joint="curve")
        for x, y in [place(*point) for point in points] if len(points) <= 30 else []:
            draw.circle((x, y), 3 * SCALE, fill=color)  # so that a few scores are seen as what they are
        draw.text((right - 10 * SCALE, upper + (17 + 18 * index) * SCALE), name, fill=color, font=font, anchor="rm")
    draw.rectangle([left, upper, right, lower], outline=INK, width=SCALE)
    draw.text((left, upper - 8 * SCALE), unit, fill=INK, font=font, anchor="ls")
    draw.text((right, lower + 36 * SCALE), "steps", fill=INK, font=font, anchor="rs")


def _points(rows: Sequence[CurveRow], name: str) -> list[Point]:
    found = ((row["step"], row.get(name)) for row in rows)
    return [(x, y) for x, y in found if x is not None and y is not None and math.isfinite(y)]


def _smooth(points: list[Point]) -> list[Point]:
    """Return the mean over about a fifteenth of the run around each point, over less at the ends."""
    half = len(points) // 30
    sums = np.concatenate([[0.0], np.cumsum([y for _, y in points])])
    index = np.arange(len(points))
    reach = np.minimum(half, np.minimum(index, len(points) - 1 - index))
    means = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    return [(x, float(mean)) for (x, _), mean in zip(points, means, strict=True)]


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers, 1, 2 or 5 times a power of ten apart, from below `low` to above `high`."""
    rough = (high - low or abs(high) or 1.0) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [round(i * step, 12) for i in range(math.floor(low / step), math.ceil(high / step) + 1)]

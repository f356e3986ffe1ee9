"""The loss curve of a run: a CSV that grows a row a step, and a PNG drawn from it."""

from __future__ import annotations

import csv
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from gencli.atomic import replace_file

Row = dict[str, float | None]
Point = tuple[float, float]
PREFIX = "validation_"  # of a score's column

WIDTH, PANEL, SCALE = 960, 330, 2  # pixels of the picture and of one panel; drawn larger and shrunk, for smooth lines
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 34, 44  # around a panel's axes
INK, GRID, PALE = (40, 40, 40), (225, 225, 225), (190, 205, 225)
COLORS = ((31, 88, 160), (200, 80, 20), (30, 130, 70), (140, 60, 150), (120, 120, 120))


@dataclass
class Curve:
    """`path`.csv and `path`.png of a stage that counts its items as `items`.

    unit: of the loss. score_unit: of validation scores, where they are no losses of the same kind; they then get a
    panel of their own.
    """

    path: Path
    items: str
    scores: Sequence[str]  # names of the validation scores
    unit: str
    score_unit: str = ""
    rows: list[Row] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return ["step", "loss", "lr", self.items, "seconds", *(PREFIX + name for name in self.scores)]

    def begin(self, done: int) -> None:
        """Open the CSV with its rows up to step `done`, if there are any; later ones are of steps that were lost."""
        self.rows = [row for row in self._read() if (row["step"] or 0) <= done]
        file = self.path.with_suffix(".csv")
        with replace_file(file) as partial:
            partial.write_text("".join([",".join(self.columns) + "\n", *map(self._line, self.rows)]), encoding="utf-8")
        self._file = file.open("a", encoding="utf-8")

    def add(
        self, step: int, loss: float, lr: float, seen: int, seconds: float, scores: Mapping[str, float] | None
    ) -> None:
        """One row more."""
        row: Row = {"step": step, "loss": loss, "lr": lr, self.items: seen, "seconds": seconds}
        row |= {PREFIX + name: value for name, value in (scores or {}).items()}
        self.rows.append(row)
        self._file.write(self._line(row))
        self._file.flush()

    def sync(self) -> None:
        """Have what was added outlast a power cut."""
        os.fsync(self._file.fileno())

    def draw(self) -> None:
        """Write the PNG anew, in place of the old one."""
        with replace_file(self.path.with_suffix(".png")) as partial:
            picture(self.rows, self.scores, self.unit, self.score_unit).save(partial, format="PNG")

    def _line(self, row: Row) -> str:
        return ",".join(_written(name, row.get(name)) for name in self.columns) + "\n"

    def _read(self) -> list[Row]:
        """The rows of an earlier sitting; a last line that a kill cut short is of a step that was lost anyway."""
        file = self.path.with_suffix(".csv")
        rows: list[Row] = []
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


def picture(rows: Sequence[Row], scores: Sequence[str], unit: str, score_unit: str) -> Image.Image:
    """The curve: training loss, pale as it was and dark as a running mean, and the validation scores."""
    losses = _points(rows, "loss")
    lines = [(name.replace("_", " "), _points(rows, PREFIX + name)) for name in scores]
    lines = [(f"validation, {name}" if len(scores) > 1 else "validation", points) for name, points in lines if points]
    panels = [_Panel(unit, losses, [] if score_unit else lines)]
    if score_unit and lines:
        panels.append(_Panel(score_unit, [], lines))
    steps = max((row["step"] or 0 for row in rows), default=1)
    image = Image.new("RGB", (WIDTH * SCALE, PANEL * SCALE * len(panels)), "white")
    for number, panel in enumerate(panels):
        panel.draw(ImageDraw.Draw(image), PANEL * number, steps)
    return image.reduce(SCALE)


@dataclass
class _Panel:
    """One pair of axes: the loss of every step, if it is shown here, and lines with names."""

    unit: str
    losses: list[Point]
    lines: list[tuple[str, list[Point]]]

    def draw(self, draw: ImageDraw.ImageDraw, top: int, steps: float) -> None:
        smooth = running_mean(self.losses)
        shown = ([("training", smooth)] if smooth else []) + self.lines
        heights = [y for _, points in shown for _, y in (points[len(points) // 50 :] if len(points) > 50 else points)]
        low, high = (min(heights), max(heights)) if heights else (0.0, 1.0)
        room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        y_ticks = ticks(low - room, high + room, 6)
        x_ticks = [tick for tick in ticks(0, steps, 8) if 0 <= tick <= steps]
        box = (LEFT, top + TOP, WIDTH - RIGHT, top + PANEL - BOTTOM)
        low, high = min(low - room, y_ticks[0]), max(high + room, y_ticks[-1])

        def place(point: Point) -> Point:
            x = box[0] + (box[2] - box[0]) * point[0] / steps
            y = box[3] - (box[3] - box[1]) * (point[1] - low) / (high - low)
            return x * SCALE, min(max(y, box[1]), box[3]) * SCALE

        small, plain = _font(12), _font(13)
        for tick in y_ticks:
            x, y = place((0, tick))
            draw.line([(x, y), (box[2] * SCALE, y)], fill=GRID, width=SCALE)
            draw.text((x - 8 * SCALE, y), number(tick, y_ticks), fill=INK, font=small, anchor="rm")
        for tick in x_ticks:
            x, y = place((tick, low))
            draw.line([(x, y), (x, y + 5 * SCALE)], fill=INK, width=SCALE)
            draw.text((x, y + 8 * SCALE), number(tick, x_ticks), fill=INK, font=small, anchor="mt")
        if len(self.losses) > 1:
            draw.line([place(point) for point in thinned(self.losses)], fill=PALE, width=SCALE)
        for (_, points), color in zip(shown, COLORS * 3, strict=False):
            _line(draw, [place(point) for point in thinned(points)], color)
        draw.rectangle([value * SCALE for value in box], outline=INK, width=SCALE)
        draw.text((box[0] * SCALE, (top + TOP - 8) * SCALE), self.unit, fill=INK, font=plain, anchor="ls")
        draw.text((box[2] * SCALE, (top + PANEL - 8) * SCALE), "steps", fill=INK, font=small, anchor="rs")
        _legend(draw, [name for name, _ in shown], box[2] - 10, top + TOP + 8)


def _line(draw: ImageDraw.ImageDraw, points: list[Point], color: tuple[int, int, int]) -> None:
    if len(points) > 1:
        draw.line(points, fill=color, width=2 * SCALE, joint="curve")
    if len(points) <= 30:  # so that a few scores are seen as what they are
        for x, y in points:
            draw.ellipse((x - 3 * SCALE, y - 3 * SCALE, x + 3 * SCALE, y + 3 * SCALE), fill=color)


def _legend(draw: ImageDraw.ImageDraw, names: list[str], right: int, top: int) -> None:
    """Names below each other, at the upper right, where a falling curve leaves room."""
    font = _font(12)
    width = max((draw.textlength(name, font=font) for name in names), default=0)
    x = right * SCALE - width
    for index, (name, color) in enumerate(zip(names, COLORS * 3, strict=False)):
        y = (top + 9 + 18 * index) * SCALE
        draw.line([(x - 30 * SCALE, y), (x - 8 * SCALE, y)], fill=color, width=3 * SCALE)
        draw.text((x, y), name, fill=INK, font=font, anchor="lm")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)


def _points(rows: Sequence[Row], name: str) -> list[Point]:
    found = ((row["step"], row.get(name)) for row in rows)
    return [(x, y) for x, y in found if x is not None and y is not None and math.isfinite(y)]


def running_mean(points: Sequence[Point]) -> list[Point]:
    """The mean over about a fifteenth of the run around each point, over less at the ends, so that nothing lags."""
    half = len(points) // 30
    sums = [0.0, *itertools.accumulate(y for _, y in points)]
    smooth = []
    for index, (x, _) in enumerate(points):
        reach = min(half, index, len(points) - 1 - index)
        smooth.append((x, (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)))
    return smooth


def thinned(points: Sequence[Point], most: int = 2 * WIDTH) -> list[Point]:
    """At most about `most` of the points, the lowest and the highest of each stretch."""
    stretch = math.ceil(2 * len(points) / most)
    if stretch <= 2:
        return list(points)
    kept: list[Point] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return [points[0], *kept, points[-1]]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, at most about `most` of them."""
    rough = max(high - low, 1e-12) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)] or [low, high]


def number(value: float, beside: Sequence[float]) -> str:
    """A tick's label, with as many decimals as the steps between ticks need."""
    step = abs(beside[1] - beside[0]) if len(beside) > 1 else abs(value) or 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return f"{value:,.{decimals}f}"

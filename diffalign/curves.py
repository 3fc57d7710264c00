"""metrics.jsonl -> curves: lines, axes and points in the units of an SVG view box, ready to be drawn by a template."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffalign import entries
from diffalign.records import InputError

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 28
SMOOTH = 5


@dataclass(frozen=True)
class Chart:
    """What one picture shows: metrics (name, label), a level worth seeing, and in words what it means and what is bad.

    `noisy`: whether a running mean says more than the logged values.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    meaning: str
    bad: str
    level: float | None = None
    noisy: bool = True


@dataclass(frozen=True)
class Line:
    """One metric: polylines of its logged values and of their running mean (or None), and the last value."""

    label: str
    raw: str
    smooth: str | None
    last: str


@dataclass(frozen=True)
class Drawn:
    """A chart laid out: tick positions with their labels, lines, and the level's height (None where there is none)."""

    chart: Chart
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    level: float | None
    summary: str


CHARTS = (
    Chart(
        "Margin",
        (("margin", "margin"),),
        "Implicit reward of the chosen image minus that of the rejected one; it is exactly 0 before the first step and "
        "should rise, then flatten.",
        "Bad: it stays at 0 (nothing is learnt), or grows on while the win rate does not (the pairs are memorised).",
        0.0,
    ),
    Chart(
        "Implicit accuracy",
        (("accuracy", "accuracy"),),
        "Share of the logged step's pairs whose margin is positive, ties counted half; noisy, because one step sees "
        "few pairs at random noise levels.",
        "Bad: it hovers around 0.5 (no signal), or is 1 early (pairs too easy, or learning rate too high).",
        0.5,
    ),
    Chart(
        "Error vs. reference",
        (("chosen_error", "chosen"), ("rejected_error", "rejected")),
        "Denoising error of the policy minus that of the reference, on chosen and on rejected images; the margin is "
        "the gap between the two lines.",
        "Bad: both rise steeply (the margin then grows because all images are denoised worse, rejected ones most).",
        0.0,
    ),
    Chart(
        "Loss",
        (("loss", "loss"),),
        "What the optimizer lowers; with a logistic link it starts at log 2 = 0.693 and falls slowly.",
        "Bad: it falls quickly towards 0 (β or the learning rate is too large), or jumps upwards.",
    ),
    Chart(
        "Gradient norm",
        (("gradient_norm", "gradient norm"),),
        "Length of the gradient before clipping.",
        "Bad: spikes that grow from one to the next (lower the learning rate), or 0 (nothing is trained).",
        0.0,
    ),
    Chart(
        "Learning rate",
        (("learning_rate", "learning rate"),),
        "The rate actually used at each step, after warm-up and schedule.",
        "Bad: anything other than the schedule that was asked for.",
        0.0,
        noisy=False,
    ),
)
FIELDS = ("saturation", "contrast", *(name for chart in CHARTS for name, _ in chart.lines))


def read(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The lines of metrics or of evaluations as `entries.lines` reads them.

    Raises InputError as that does, and naming the field where a known metric is not a number.
    """
    rows, cut = entries.lines(path)
    for number, entry in enumerate(rows, 1):
        for name in FIELDS:
            if name in entry and (isinstance(entry[name], bool) or not isinstance(entry[name], int | float)):
                where = f"{path}, row {number}, field {name!r}"
                raise InputError(f"{where}: is {entry[name]!r}, expected a number")
    return rows, cut


def draw(rows: Sequence[dict[str, Any]], chart: Chart) -> Drawn | None:
    """The chart of these metrics; None where none of its metrics was logged."""
    series = [(label, _points(rows, name)) for name, label in chart.lines]
    series = [(label, points) for label, points in series if len(points)]
    if not series:
        return None
    every = np.concatenate([points for _, points in series])
    levels = [] if chart.level is None else [chart.level]
    x_axis = _Axis.over([0.0, *every[:, 0]], LEFT, WIDTH - RIGHT, tight=True)
    y_axis = _Axis.over([*levels, *every[:, 1]], HEIGHT - BOTTOM, TOP)
    lines = tuple(_line(label, points, x_axis, y_axis, chart.noisy) for label, points in series)
    said = "; ".join(f"{label} from {points[0, 1]:.4g} to {points[-1, 1]:.4g}" for label, points in series)
    summary = f"{chart.title} over {int(every[:, 0].max())} steps: {said}."
    level = None if chart.level is None else y_axis(chart.level)
    return Drawn(chart, lines, x_axis.labelled(), y_axis.labelled(), level, summary)


def _points(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """(logged steps, 2): step and finite value of one metric."""
    found = [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _line(label: str, points: np.ndarray, x_axis: "_Axis", y_axis: "_Axis", noisy: bool) -> Line:
    smooth = None
    if noisy and len(points) >= 4 * SMOOTH:
        middle = running_mean(points[:, 1], SMOOTH)
        smooth = _polyline(points[:, 0], middle, x_axis, y_axis)
    return Line(
        label, _polyline(points[:, 0], points[:, 1], x_axis, y_axis), smooth, f"{points[-1, 1]:.3g}".replace("-", "−")
    )


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the nearest `window` values (fewer at the ends), same length."""
    half = window // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _polyline(x: np.ndarray, y: np.ndarray, x_axis: "_Axis", y_axis: "_Axis") -> str:
    return " ".join(f"{x_axis(a):.1f},{y_axis(b):.1f}" for a, b in zip(x, y, strict=True))


@dataclass(frozen=True)
class _Axis:
    """A linear map from values to view-box units, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, tight: bool = False) -> "_Axis":
        """An axis that holds the values; `tight` ends at the largest value instead of at a round number."""
        low, high = float(min(values)), float(max(values))
        if high - low < 1e-12 * max(1.0, abs(high)):
            low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
        ticks = round_ticks(low, high)
        if not tight:
            low, high = min(low, ticks[0]), max(high, ticks[-1])
        return cls(low, high, start, end, tuple(t for t in ticks if low <= t <= high))

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def labelled(self) -> tuple[tuple[float, str], ...]:
        """Position and label of each tick."""
        return tuple((round(self(t), 1), f"{0.0 if abs(t) < 1e-15 else t:.6g}".replace("-", "−")) for t in self.ticks)


def round_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose [low, high], `about` so many of them."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]

"""Metrics of a run -> what is going wrong in it, in plain words, each with its usual remedy."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]
# logged steps that a finding is taken over: one step sees few pairs
WINDOW = 10
# a margin at which a logistic link's gradient is below 1/20000; a gradient that is so much smaller than at the start
MARGIN, VANISHED = 10.0, 1e-3
# by what factor the pictures' saturation or contrast may move away from the base's
DRIFT = 1.5


@dataclass(frozen=True)
class Alarm:
    """What is wrong since which step, and what usually helps."""

    name: str
    step: int
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name} (step {self.step}): {self.what}. Usual remedy: {self.remedy}"


def alarms(metrics: Rows, evaluations: Rows = ()) -> list[Alarm]:
    """The alarms of a run's metrics and evaluations, each at the first step where it was due.

    metrics: rows of `metrics.jsonl`; nothing is said before WINDOW of them are there. evaluations: rows of
    `evaluations.jsonl`, with `saturation` and `contrast` as multiples of the base's.
    """
    windows = (metrics[n - WINDOW : n] for n in range(WINDOW, len(metrics) + 1))
    found: dict[str, Alarm] = {}
    for alarm in (a for w in windows for a in of_metrics(w, metrics[:WINDOW])):
        found.setdefault(alarm.name, alarm)
    for alarm in (a for row in evaluations for a in of_evaluation(row)):
        found.setdefault(alarm.name, alarm)
    return list(found.values())


def of_metrics(latest: Rows, start: Rows) -> list[Alarm]:
    """The alarms that WINDOW rows of metrics give, beside the first WINDOW of their run."""
    if len(latest) < WINDOW:
        return []
    step = int(latest[-1]["step"])
    return [Alarm(name, step, what, remedy) for name, due, what, remedy in _RULES if due(latest, start)]


def of_evaluation(row: Mapping[str, Any]) -> list[Alarm]:
    """The alarms that the pictures of one evaluation give."""
    remedy = (
        "look at previews/: a taste for gaudy or flat pictures is usually the judge's; lower optimizer.lr, stop "
        "earlier, or judge the pairs by another scorer as well"
    )
    drifts = {n: row[n] for n in ("saturation", "contrast") if n in row and not 1 / DRIFT <= row[n] <= DRIFT}
    return [
        Alarm(
            f"drift in {n}", int(row["step"]), f"the policy's pictures have {v:.2f} times the {n} of the base's", remedy
        )
        for n, v in drifts.items()
    ]


def _values(rows: Rows, name: str) -> np.ndarray:
    return np.array([r[name] for r in rows if name in r and math.isfinite(r[name])], dtype=np.float64)


def _displaced(rows: Rows, _: Rows) -> bool:
    """Whether the mean is above 0 by more than two standard errors."""
    values = _values(rows, "chosen_error")
    return len(values) == WINDOW and values.mean() > 2 * values.std(ddof=1) / math.sqrt(WINDOW)


def _exploded(rows: Rows, _: Rows) -> bool:
    values = _values(rows, "margin")
    return len(values) == WINDOW and abs(values.mean()) > MARGIN


def _pinned(rows: Rows, _: Rows) -> bool:
    values = _values(rows, "accuracy")
    return len(values) == WINDOW and bool((values >= 1).all())


def _vanished(rows: Rows, start: Rows) -> bool:
    values, first = _values(rows, "gradient_norm"), _values(start, "gradient_norm")
    return len(values) == WINDOW and np.median(values) <= VANISHED * np.median(first)


Rule = tuple[str, Callable[[Rows, Rows], bool], str, str]
_RULES: tuple[Rule, ...] = (
    (
        "likelihood displacement", _displaced,
        "the policy denoises the chosen images worse than the reference does; the margin grows only because the "
        "rejected ones get worse still",
        "lower objective.beta's pull by a smaller optimizer.lr, stop earlier, or an objective that holds the chosen "
        "error down (SDPO, a share of SFT)",
    ),
    (
        "exploding margins", _exploded,
        f"the mean margin is beyond {MARGIN:g}, where a pair has nothing left to teach",
        "lower optimizer.lr or objective.beta; look for duplicated or trivial pairs with `diffalign inspect`",
    ),
    (
        "accuracy pinned at 1", _pinned,
        f"every pair of the last {WINDOW} logged steps is ranked right",
        "the pairs are learnt by heart, or too easy: more pairs, fewer steps, or a smaller score gap in `diffalign "
        "filter`",
    ),
    (
        "vanishing gradients", _vanished,
        f"the gradient's norm is below a {1 / VANISHED:g}th of what it was at the start",
        "nothing is left to learn at this beta: stop here, or lower objective.beta; if it was so from the start, "
        "check that the pairs' images differ",
    ),
)  # fmt: skip

"""Scores of several judges -> one number an image. Raw scores have no common unit, so a sum of them is refused.

Numbers only: `values` and `groups` are (images,), a group being the images of one prompt; NaN is a missing score.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffalign.records import InputError


@dataclass(frozen=True)
class Normed:
    """One judge's scores, (images,), in the unit `unit`, in which they may be added to others of that unit."""

    values: np.ndarray
    unit: str


def centred(values: np.ndarray, groups: Sequence[str]) -> Normed:
    """value - mean of its group: still in the judge's own unit, so of one judge only."""
    return Normed(_within(values, groups, lambda v: v - v.mean()), "centred")


def zscore(values: np.ndarray, groups: Sequence[str]) -> Normed:
    """(value - mean) / deviation of its group (the population's), 0 where a group has no spread.

    Of several rewards, each is normalised before they are summed. Source: Liu et al. 2026 (GDPO), equation 4.
    """
    return Normed(_within(values, groups, _zscore), "deviations")


def rank(values: np.ndarray, groups: Sequence[str]) -> Normed:
    """Share of the group's other images that it beats, ties counting half, in [0, 1]; 1/2 for an image alone."""
    return Normed(_within(values, groups, _rank), "ranks")


def log_odds(values: np.ndarray, groups: Sequence[str], slope: float) -> Normed:
    """slope · (value - mean of its group): log-odds against the group's mean.

    The slope is the judge's own temperature, or fitted on preferences (`scripts/agreement.py`), so that sigmoid(slope ·
    difference) = P(better). Raises InputError for a slope that is no positive number.
    """
    if not 0 < slope < np.inf:
        raise InputError(f"slope = {slope}: expected a finite number above 0")
    return Normed(slope * centred(values, groups).values, "log-odds")


def weighted(scores: Mapping[str, Normed | np.ndarray], weights: Mapping[str, float] | None = None) -> np.ndarray:
    """Σ weight · score over judges (weights of 1 unless given); NaN where one is missing.

    Raises InputError for raw scores of several judges, for different units, and for weights of others.
    """
    _require_alike(scores)
    known = dict.fromkeys(scores, 1.0) | dict(weights or {})
    if set(known) != set(scores) or not all(np.isfinite(w) for w in known.values()):
        raise InputError(f"weights {dict(weights or {})}: expected finite numbers of {', '.join(scores)}")
    return sum(known[name] * _plain(given) for name, given in scores.items())


def minimum(scores: Mapping[str, Normed | np.ndarray]) -> np.ndarray:
    """The least of the judges' scores, so that no judge can buy off another; refuses what `weighted` does."""
    _require_alike(scores)
    return np.min([_plain(given) for given in scores.values()], axis=0)


def pareto(scores: Mapping[str, Normed | np.ndarray], groups: Sequence[str]) -> np.ndarray:
    """(images,) of 0 for those of a group that no other beats by every judge and exceeds by one, 1 for those that only
    such beat, and so on; NaN where a score is missing. Compares each judge with itself only, so raw scores will do.
    """
    table = np.stack([np.asarray(_plain(given), np.float64) for given in scores.values()], 1)
    found = np.full(len(table), np.nan)
    for members in _members(groups):
        left = members[np.isfinite(table[members]).all(1)]
        front = 0
        while len(left):
            rows = table[left]
            beaten = ((rows[None] >= rows[:, None]).all(2) & (rows[None] > rows[:, None]).any(2)).any(1)
            found[left[~beaten]] = front
            left, front = left[beaten], front + 1
    return found


def _require_alike(scores: Mapping[str, Normed | np.ndarray]) -> None:
    units = {name: given.unit if isinstance(given, Normed) else "raw" for name, given in scores.items()}
    if not units:
        raise InputError("no scores to combine: name at least one judge")
    own = [name for name, unit in units.items() if unit in ("raw", "centred")]
    if len(units) > 1 and own:
        raise InputError(
            f"{own[0]}: its {'raw ' if units[own[0]] == 'raw' else ''}scores are in a unit of its own, so a sum with "
            f"{', '.join(n for n in units if n != own[0])} would be that of the widest; take zscore, rank or log_odds"
        )
    if len(set(units.values())) > 1:
        said = ", ".join(f"{name} in {unit}" for name, unit in units.items())
        raise InputError(f"scores in different units cannot be combined: {said}")


def _plain(given: Normed | np.ndarray) -> np.ndarray:
    return given.values if isinstance(given, Normed) else np.asarray(given, np.float64)


def _members(groups: Sequence[str]) -> list[np.ndarray]:
    """Indices of each group, in the order of their first image."""
    found: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        found.setdefault(group, []).append(place)
    return [np.array(places) for places in found.values()]


def _within(values: np.ndarray, groups: Sequence[str], change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape != (len(groups),):
        raise InputError(f"{len(groups)} groups for scores of shape {values.shape}, expected one an image")
    found = np.full(len(values), np.nan)
    for members in _members(groups):
        known = members[np.isfinite(values[members])]
        if len(known):
            found[known] = change(values[known])
    return found


def _zscore(values: np.ndarray) -> np.ndarray:
    # equal values differ from their rounded mean by a last bit, which must not become a deviation of 1
    return np.zeros_like(values) if np.ptp(values) == 0 else (values - values.mean()) / values.std()


def _rank(values: np.ndarray) -> np.ndarray:
    beats = np.sign(values[:, None] - values[None]).sum(1)
    return np.full(1, 0.5) if len(values) == 1 else 0.5 + beats / (2 * (len(values) - 1))

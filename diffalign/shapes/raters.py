"""Simulated people: a taste (what of a picture they care about) and Bradley-Terry noise (how surely they say so)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from diffalign.shapes.gold import judge_reading
from diffalign.shapes.grammar import parse
from diffalign.shapes.reading import Reading
from diffalign.shapes.scene import BACKGROUNDS, COLOURS, FILLS, SIZES

ATTRIBUTES = ("count", "shape", "colour", "size", "fill", "place", "background", "relation")


@dataclass(frozen=True)
class Rater:
    """A taste, with the noise it is voiced with.

    attributes: weight, >= 0, of each demanded attribute being right (missing ones weigh 0).
    liking: worth of what is seen whatever was asked for: a colour, size or fill of the objects, or "pink background".
    crispness: worth of a crisp picture. temperature: >= 0, in units of utility; 0 always votes for the better one.
    tie: >= 0; utilities that differ by no more than this are called equal.
    Raises ValueError for an attribute or value the world does not have, and for a number that is none of these.
    """

    name: str
    attributes: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(ATTRIBUTES, 1.0))
    liking: Mapping[str, float] = field(default_factory=dict)
    crispness: float = 0.5
    temperature: float = 0.1
    tie: float = 0.0

    def __post_init__(self) -> None:
        likable = {*COLOURS, *SIZES, *FILLS, *(f"{name} background" for name in BACKGROUNDS)}
        for what, names, legal in (("attribute", self.attributes, ATTRIBUTES), ("liking", self.liking, likable)):
            unknown = [name for name in names if name not in legal]
            if unknown:
                expected = ", ".join(sorted(legal))
                raise ValueError(f"rater {self.name}: {what} {unknown[0]!r}, expected one of {expected}")
        weights = {f"attributes[{name!r}]": weight for name, weight in self.attributes.items()}
        likings = {f"liking[{name!r}]": worth for name, worth in self.liking.items()}
        positive = weights | {"temperature": self.temperature, "tie": self.tie}
        for what, value in (positive | likings | {"crispness": self.crispness}).items():
            if not math.isfinite(value) or (what in positive and value < 0):
                expected = "a finite number of at least 0" if what in positive else "a finite number"
                raise ValueError(f"rater {self.name}: {what} = {value}, expected {expected}")


LITERAL = Rater("literal")
WARM = Rater(
    "warm",
    attributes={"count": 0.5, "shape": 1.0, "relation": 0.5},
    liking={"red": 0.6, "yellow": 0.6, "large": 0.3, "filled": 0.3, "pink background": 0.3, "black background": -0.3},
)
COOL = Rater(
    "cool",
    attributes={"count": 0.5, "shape": 1.0, "relation": 0.5},
    liking={"blue": 0.6, "cyan": 0.6, "small": 0.3, "outlined": 0.3, "black background": 0.3, "pink background": -0.3},
)


def utility(rater: Rater, reading: Reading, prompt: str) -> float:
    """Weighted mean of what is right + mean liking of what is seen + worth of crispness. InputError: see `parse`."""
    right = judge_reading(reading, parse(prompt)).right
    weights = [rater.attributes.get(name.split()[-1], 0.0) for name in right]
    asked = sum(w * ok for w, ok in zip(weights, right.values(), strict=True)) / (sum(weights) or 1.0)
    liked = [rater.liking.get(word, 0.0) for o in reading.objects for word in (o.colour, o.size, o.fill)]
    seen = sum(liked) / max(len(reading.objects), 1) + rater.liking.get(f"{reading.background} background", 0.0)
    return asked + seen + rater.crispness * reading.crispness


def p_first(rater: Rater, first: np.ndarray | float, second: np.ndarray | float) -> np.ndarray:
    """P(first is better) = sigmoid((first - second) / temperature) (Bradley and Terry, 1952).

    Utilities of one shape -> P of that shape. Temperature 0: 1, 0, or 1/2 where equal.
    1/2 where the utilities differ by no more than the rater's tie. Raises ValueError for a utility that is not finite.
    """
    gap = _worth(rater, first) - _worth(rater, second)
    p = 0.5 + 0.5 * (np.sign(gap) if rater.temperature == 0 else np.tanh(gap / (2 * rater.temperature)))
    return np.where(np.abs(gap) <= rater.tie, 0.5, p)


def vote(rater: Rater, first: np.ndarray | float, second: np.ndarray | float, rng: np.random.Generator) -> np.ndarray:
    """One vote on each pair of utilities: 1 (first), 0 (second) or 1/2 (a tie); its mean over draws is `p_first`."""
    p = p_first(rater, first, second)
    gap = np.abs(_worth(rater, first) - _worth(rater, second))
    return np.where(gap <= rater.tie, 0.5, (rng.random(p.shape) < p).astype(np.float64))


def rank(rater: Rater, utilities: Sequence[float], rng: np.random.Generator) -> list[int]:
    """Indices from best to worst, drawn from Plackett-Luce at the rater's temperature by Gumbel noise (Yellott, 1977).

    Of two, the first leads with probability `p_first`, ties included. Temperature 0 sorts; equal utilities come in
    random order. Of more, "differ by no more than `tie`" is not transitive, and a ranking is: from the best down, those
    within `tie` of the best one left are one class, whose members all have the class's mean utility.
    Raises ValueError for a utility that is not finite.
    """
    worth = _classed(_worth(rater, utilities), rater.tie)
    if rater.temperature == 0:
        return [int(k) for k in np.lexsort((rng.random(worth.shape), -worth))]
    return [int(k) for k in np.argsort(-(worth / rater.temperature + rng.gumbel(size=worth.shape)), kind="stable")]


def _worth(rater: Rater, utilities: Sequence[float] | np.ndarray | float) -> np.ndarray:
    found = np.asarray(utilities, np.float64)
    if not np.isfinite(found).all():
        raise ValueError(f"rater {rater.name}: a utility is {found[~np.isfinite(found)][0]}, expected finite numbers")
    return found


def _classed(worth: np.ndarray, tie: float) -> np.ndarray:
    """Each utility replaced by the mean of its class, (n,) -> (n,); see `rank`."""
    found, left = worth.copy(), np.ones(worth.shape, bool)
    while tie and left.any():
        alike = left & (worth[left].max() - worth <= tie)
        found[alike] = worth[alike].mean()
        left &= ~alike
    return found


def panel(typical: Rater, count: int, spread: float, rng: np.random.Generator) -> tuple[Rater, ...]:
    """A group of `count` raters: the typical one's weights and likings, each times exp(spread * normal)."""

    def around(weights: Mapping[str, float]) -> dict[str, float]:
        return {name: float(weight * np.exp(spread * rng.normal())) for name, weight in weights.items()}

    return tuple(
        replace(
            typical, name=f"{typical.name} {n}", attributes=around(typical.attributes), liking=around(typical.liking)
        )
        for n in range(count)
    )


def disagreement(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
    """mean |mean P of one group - mean P of the other| in [0, 1]; a group: each rater's P on the same pairs."""
    return float(np.abs(np.mean(first, axis=0) - np.mean(second, axis=0)).mean())

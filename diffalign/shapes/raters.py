"""Simulated people: a taste (what of a picture they care about) and Bradley-Terry noise (how surely they say so)."""

from __future__ import annotations

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
    """A taste, with the noise it is voiced with. Raises ValueError for an attribute or value the world does not have.

    attributes: weight of each demanded attribute being right (missing ones weigh 0).
    liking: worth of what is seen whatever was asked for: a colour, size or fill of the objects, or "pink background".
    crispness: worth of a crisp picture. temperature: >= 0, in units of utility; 0 always votes for the better one.
    tie: utilities that differ by no more than this are called equal.
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
        if self.temperature < 0 or self.tie < 0:
            raise ValueError(f"rater {self.name}: temperature and tie must not be negative")


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
    asked = sum(w * ok for w, ok in zip(weights, right.values(), strict=True)) / max(sum(weights), 1e-9)
    liked = [rater.liking.get(word, 0.0) for o in reading.objects for word in (o.colour, o.size, o.fill)]
    seen = sum(liked) / max(len(reading.objects), 1) + rater.liking.get(f"{reading.background} background", 0.0)
    return asked + seen + rater.crispness * reading.crispness


def p_first(rater: Rater, first: np.ndarray | float, second: np.ndarray | float) -> np.ndarray:
    """P(first is better) = sigmoid((first - second) / temperature) (Bradley and Terry, 1952).

    Utilities of one shape -> P of that shape. Temperature 0: 1, 0, or 1/2 where equal.
    1/2 where the utilities differ by no more than the rater's tie.
    """
    gap = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    p = 0.5 + 0.5 * (np.sign(gap) if rater.temperature == 0 else np.tanh(gap / (2 * rater.temperature)))
    return np.where(np.abs(gap) <= rater.tie, 0.5, p)


def vote(rater: Rater, first: np.ndarray | float, second: np.ndarray | float, rng: np.random.Generator) -> np.ndarray:
    """One vote on each pair of utilities: 1 (first), 0 (second) or 1/2 (a tie); its mean over draws is `p_first`."""
    p = p_first(rater, first, second)
    gap = np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64))
    return np.where(gap <= rater.tie, 0.5, (rng.random(p.shape) < p).astype(np.float64))


def rank(rater: Rater, utilities: Sequence[float], rng: np.random.Generator) -> list[int]:
    """Indices from best to worst, drawn from Plackett-Luce at the rater's temperature by Gumbel noise (Yellott, 1977).

    Temperature 0 sorts; equal utilities come in random order. Of two, the first leads with the sigmoid's probability.
    """
    worth = np.asarray(utilities, np.float64)
    if rater.temperature == 0:
        return [int(k) for k in np.lexsort((rng.random(worth.shape), -worth))]
    return [int(k) for k in np.argsort(-(worth / rater.temperature + rng.gumbel(size=worth.shape)), kind="stable")]


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

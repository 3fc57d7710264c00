"""The gold scorer: judges a picture against its prompt by reading the pixels. No learned part.

It is the measure of every claim about the embedded world, so no method trains on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from diffalign.records import InputError
from diffalign.shapes.grammar import Demand, ObjectDemand, parse
from diffalign.shapes.reading import ObjectReading, Reading, read

__all__ = ["CRISPNESS_WEIGHT", "ObjectReading", "Reading", "Verdict", "judge", "judge_reading", "read", "score"]

CRISPNESS_WEIGHT = 0.2
ORDINALS = ("first", "second")


@dataclass(frozen=True)
class Verdict:
    """score = mean(right) * (1 - w + w * crispness), w = 0.2, over the attributes that the prompt demands.

    `right` holds "count" always; "shape", "colour", "size", "fill", "place", "background" where demanded; with two
    objects "first shape", "second shape", ... and "relation".
    """

    right: dict[str, bool]
    crispness: float

    @property
    def all_right(self) -> bool:
        return all(self.right.values())

    @property
    def correctness(self) -> float:
        return sum(self.right.values()) / len(self.right)

    @property
    def score(self) -> float:
        return self.correctness * (1 - CRISPNESS_WEIGHT + CRISPNESS_WEIGHT * self.crispness)


def judge(image: np.ndarray, prompt: str) -> Verdict:
    """The verdict on a picture, (side, side, 3) uint8; InputError for a prompt outside the grammar or no picture."""
    return judge_reading(read(image), parse(prompt))


def score(images: Sequence[np.ndarray], prompts: Sequence[str]) -> np.ndarray:
    """Gold scores in [0, 1] of n pictures and their n prompts, (n,) float64. Raises InputError as `judge` does."""
    if len(images) != len(prompts):
        raise InputError(f"{len(images)} pictures and {len(prompts)} prompts, expected as many of either")
    return np.array([judge(image, prompt).score for image, prompt in zip(images, prompts, strict=True)], np.float64)


def judge_reading(reading: Reading, demand: Demand) -> Verdict:
    """What of the demand the reading meets; read objects are matched to demanded ones so that most is right."""
    options = [_match(reading, demand, order) for order in _assignments(len(demand.objects), len(reading.objects))]
    met = max(options, key=lambda option: sum(option.values()))
    right = {"count": reading.count == len(demand.objects)} | met
    if demand.background is not None:
        right["background"] = reading.background == demand.background
    return Verdict(right, reading.crispness)


def _assignments(demanded: int, seen: int) -> list[tuple[int | None, ...]]:
    """Every way to give each demanded object a read one, None where there are too few."""
    missing = [None] * max(demanded - seen, 0)
    return list(permutations([*range(seen), *missing], demanded))


def _match(reading: Reading, demand: Demand, order: tuple[int | None, ...]) -> dict[str, bool]:
    right: dict[str, bool] = {}
    for n, (wanted, chosen) in enumerate(zip(demand.objects, order, strict=True)):
        prefix = f"{ORDINALS[n]} " if len(order) == 2 else ""
        found = None if chosen is None else reading.objects[chosen]
        right |= {prefix + name: ok for name, ok in _attributes(wanted, found).items()}
    if demand.place is not None:
        right["place"] = order[0] is not None and reading.objects[order[0]].place == demand.place
    if demand.relation is not None:
        right["relation"] = None not in order and reading.relation(*order) == demand.relation
    return right


def _attributes(wanted: ObjectDemand, found: ObjectReading | None) -> dict[str, bool]:
    named = {name: getattr(wanted, name) for name in ("shape", "colour", "size", "fill")}
    return {name: found is not None and getattr(found, name) == value for name, value in named.items() if value}

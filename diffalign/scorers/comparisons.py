"""Two answers about two images, one in each order, as one comparison; and how much the order mattered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_SWAPPED = {"first": "second", "second": "first"}
_WORTH = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_good": 0.5, "both_bad": 0.5}


@dataclass(frozen=True)
class Comparison:
    """What a judge says of two images, each of them seen first once.

    Attributes:
        p: P(first is better), None where an answer is missing.
        status: decided, tie, both_good or both_bad.
        lean: How much more likely than not the image seen first was called better, -0.5 to 0.5; 0 is no bias.
        consistent: Whether both orders name the same image, or none.
        reason: Why there is no p.
    """

    p: float | None
    status: str = "decided"
    lean: float = 0.0
    consistent: bool = True
    reason: str | None = None


def both(one: float | str | Exception, other: float | str | Exception) -> Comparison:
    """The comparison of log-odds or labels: `one` asked with the first image seen first, `other` with the second.

    Log-odds: P = sigmoid((one - other) / 2). Labels: the mean of what both say of the first image.
    """
    for value in (one, other):
        if isinstance(value, Exception):
            return Comparison(None, reason=str(value))
    if isinstance(one, float):
        p, lean = 0.5 * (1 + math.tanh((one - other) / 4)), math.tanh((one + other) / 4) / 2
        return Comparison(p, "decided", lean, (one > 0) == (other < 0))
    turned = _SWAPPED.get(other, other)
    p, lean = (_WORTH[one] + _WORTH[turned]) / 2, (_WORTH[one] + _WORTH[other]) / 2 - 0.5
    status = one if one == turned and one not in _SWAPPED else "decided" if p != 0.5 else "tie"
    return Comparison(p, status, lean, one == turned)


def position_bias(found: Sequence[Comparison]) -> dict[str, float]:
    """Of the comparisons with both answers: how many, the share of consistent ones, and the mean lean to the first."""
    known = [c for c in found if c.p is not None]
    count = max(1, len(known))
    consistent, lean = sum(c.consistent for c in known) / count, sum(c.lean for c in known) / count
    return {"comparisons": len(known), "missing": len(found) - len(known), "consistent": consistent, "lean": lean}

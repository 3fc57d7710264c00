"""Identity preference optimisation."""

from dataclasses import dataclass
from typing import final

from diffalign.objectives.links import Link, Squared
from diffalign.objectives.pairwise import PairwiseObjective
from diffalign.objectives.terms import ElboRatio, Reward, UniformWeight, Weight


@final
@dataclass(frozen=True)
class IPO(PairwiseObjective):
    """P (m - 1/2)^2 + (1 - P) (m + 1/2)^2, m = r[chosen] - r[rejected], r = beta/2 (reference - policy error).

    IPO, arXiv 2310.12036, equation 17: its (h - 1/(2 tau))^2 on the log-ratio margin h is this divided by tau^2,
    with tau for beta; so one beta means one thing across the family. diffusers' SD1.5 script leaves out the half
    (its number is doubled here) and writes the unscaled form, whose gradients are beta^2 smaller.
    """

    beta: float = 5000.0

    def terms(self) -> tuple[Reward, Link, Weight]:
        return ElboRatio(self.beta), Squared(), UniformWeight()

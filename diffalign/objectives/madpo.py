"""Margin-adaptive DPO."""

import math
from dataclasses import dataclass
from typing import final

from diffalign.objectives.links import Link, Logistic
from diffalign.objectives.pairwise import PairwiseObjective
from diffalign.objectives.terms import ElboRatio, MarginAdaptive, Reward, Weight


@final
@dataclass(frozen=True)
class MADPO(PairwiseObjective):
    """-w(g) log sigmoid(m), m = r[chosen] - r[rejected], with w = sigmoid(c(|g|) g) / sigmoid(g) of the score gap g.

    Margin-adaptive DPO, after the authors' code for language models (`MarginAdaptive` has c and soft P): close
    calls of the scorer are amplified, wide gaps and labels it contradicts damped. r = beta/2 (reference error -
    policy error); their beta 0.1 acts on log-ratios and has no counterpart here. Their notebook: c_max 2, c_min
    1/c_max, steepness 1, tau logit(0.999).
    """

    beta: float = 5000.0
    c_max: float = 2.0
    c_min: float = 0.5
    steepness: float = 1.0
    tau: float = math.log(999)

    def terms(self) -> tuple[Reward, Link, Weight]:
        return ElboRatio(self.beta), Logistic(), MarginAdaptive(self.c_max, self.c_min, self.steepness, self.tau)

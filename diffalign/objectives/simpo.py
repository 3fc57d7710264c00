"""Simple preference optimisation with a reference-free reward."""

from dataclasses import dataclass
from typing import ClassVar, final

from diffalign.objectives.links import Link, TargetMargin
from diffalign.objectives.pairwise import PairwiseObjective
from diffalign.objectives.terms import Likelihood, Reward, UniformWeight, Weight


@final
@dataclass(frozen=True)
class SimPO(PairwiseObjective):
    """-log sigmoid(m - gamma), m = beta/2 (e[rejected] - e[chosen]), e the policy's errors, mixed by P.

    SimPO, arXiv 2405.14734, equation 6; an error is a mean already, so length needs no normalising. No diffusion
    paper fixes the numbers: 500 is where MaPO's margin sits for small errors, and gamma / beta = 1/2 of the paper
    would mean an error gap that no pair has. PSO offline without a reference is gamma = 0 on a few-step time grid
    (its beta doubled: no half).
    """

    reference_free: ClassVar[bool] = True
    beta: float = 500.0
    gamma: float = 0.5

    def terms(self) -> tuple[Reward, Link, Weight]:
        return Likelihood(self.beta), TargetMargin(self.gamma), UniformWeight()

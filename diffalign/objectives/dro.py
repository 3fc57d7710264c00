"""Direct reward optimisation."""

from dataclasses import dataclass
from typing import ClassVar, final

from diffalign.objectives.links import Linear, Link
from diffalign.objectives.pairwise import PairwiseObjective
from diffalign.objectives.terms import Likelihood, Reward, UniformWeight, Weight


@final
@dataclass(frozen=True)
class DRO(PairwiseObjective):
    """(2 P - 1) (e[chosen] - e[rejected]), e the policy's errors: no reference, no beta, no bound.

    DSO (aligning 3D generators with simulation feedback), after the authors' code. Unbounded below: only stopping
    early (4000 steps there) keeps it. Not Diffusion-DRO, ranking from demonstrations, which is a `Hinge`.
    """

    reference_free: ClassVar[bool] = True

    def terms(self) -> tuple[Reward, Link, Weight]:
        return Likelihood(2.0), Linear(), UniformWeight()

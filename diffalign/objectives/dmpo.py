"""Divergence minimisation preference optimisation."""

from dataclasses import dataclass
from typing import final

from diffalign.objectives.links import Link, ReverseKL
from diffalign.objectives.pairwise import PairwiseObjective
from diffalign.objectives.terms import ElboRatio, Reward, UniformWeight, Weight


@final
@dataclass(frozen=True)
class DMPO(PairwiseObjective):
    """KL(Bernoulli(sigmoid(m)) || Bernoulli(1 - alpha)), m = r[chosen] - r[rejected], mixed by P.

    Diffusion-DMPO as in the code of Diffusion-SDPO, equal to TRL's `exo_pair`; r = beta/2 (reference error -
    policy error). The loss is least at m = log((1 - alpha) / alpha), 4.6 for the authors' 0.01: a target and no
    longer a race. `beta` equals `beta_dpo` of that code (2000 for SD1.5, 6000 for SDXL).
    """

    beta: float = 2000.0
    alpha: float = 0.01

    def terms(self) -> tuple[Reward, Link, Weight]:
        return ElboRatio(self.beta), ReverseKL(self.alpha), UniformWeight()

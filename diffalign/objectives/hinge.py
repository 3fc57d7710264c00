"""Hinge loss on the margin."""

from dataclasses import dataclass
from typing import final

from diffalign.objectives.links import HingeLoss, Link
from diffalign.objectives.pairwise import PairwiseObjective
from diffalign.objectives.terms import ElboRatio, Reward, UniformWeight, Weight


@final
@dataclass(frozen=True)
class Hinge(PairwiseObjective):
    """P max(0, 1 - m) + (1 - P) max(0, 1 + m), m = r[chosen] - r[rejected], r = beta/2 (reference - policy error).

    SLiC, arXiv 2305.10425, on the implicit reward, as `loss_type="hinge"` of diffusers' SD1.5 script, which
    leaves out the half: its `beta_dpo` is doubled here. Diffusion-DRO (ranking from demonstrations) with margin d
    is d * Hinge(2 / d): its d = 0.001 is beta = 2000.
    """

    beta: float = 5000.0

    def terms(self) -> tuple[Reward, Link, Weight]:
        return ElboRatio(self.beta), HingeLoss(), UniformWeight()

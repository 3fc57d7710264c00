"""Smoothed preference optimisation."""

from dataclasses import dataclass
from typing import final

from diffalign.objectives.links import Link, ScaledLogit
from diffalign.objectives.pairwise import PairwiseObjective
from diffalign.objectives.terms import ElboRatio, Reward, UniformWeight, Weight


@final
@dataclass(frozen=True)
class SmPO(PairwiseObjective):
    """-log sigmoid(gamma (2 P - 1) m), m = r[chosen] - r[rejected], r = beta/2 (reference error - policy error).

    SmPO-Diffusion, after the authors' code; P comes from a scorer and scales the logit: a tie teaches nothing.
    The code's P is the softmax of two min-max normalised PickScore cosines, so it lies in [0.27, 0.73]. `beta`
    equals its `beta_dpo` (2000 for SD1.5, 5000 for SDXL); its states are inverted, not noised.
    """

    beta: float = 2000.0
    gamma: float = 10.0

    def terms(self) -> tuple[Reward, Link, Weight]:
        return ElboRatio(self.beta), ScaledLogit(self.gamma), UniformWeight()

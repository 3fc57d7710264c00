"""Diffusion-DPO."""

from dataclasses import dataclass
from typing import final

from diffalign.objectives.links import Link, Logistic
from diffalign.objectives.pairwise import PairwiseObjective
from diffalign.objectives.terms import ElboRatio, Reward, UniformWeight, Weight


@final
@dataclass(frozen=True)
class DPO(PairwiseObjective):
    """-P log sigmoid(m) - (1 - P) log sigmoid(-m), m = r[chosen] - r[rejected], r = beta/2 (reference - policy error).

    Diffusion-DPO, arXiv 2311.12908, equation 14; `label_smoothing` s first maps P to (1 - s) P + s (1 - P).
    `beta` equals `beta_dpo` of the authors' code (5000; 2000 in the paper for SD1.5) and of diffusers' SDXL
    script; diffusers' SD1.5 script leaves out the half, so its number is doubled here.
    """

    beta: float = 5000.0
    label_smoothing: float = 0.0

    def terms(self) -> tuple[Reward, Link, Weight]:
        return ElboRatio(self.beta), Logistic(self.label_smoothing), UniformWeight()

"""Diffusion-DPO."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from diffalign.objectives.base import Errors, Objective, Outcome, Pairs
from diffalign.objectives.terms import ElboRatio, Logistic, UniformWeight, pairwise


@final
@dataclass(frozen=True)
class DPO(Objective):
    """-P log sigmoid(m) - (1 - P) log sigmoid(-m), m = r[chosen] - r[rejected], r = beta/2 (reference error - policy error).

    Diffusion-DPO, arXiv 2311.12908, equation 14. `beta` equals `beta_dpo` of the authors' code (5000; 2000 in the paper for
    SD1.5) and of diffusers' SDXL script; diffusers' SD1.5 script leaves out the half, so its number is doubled here.
    """

    beta: float = 5000.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        ElboRatio(self.beta), Logistic(self.label_smoothing)

    def __call__(self, errors: Errors, judgement: Pairs, total: Tensor | None = None) -> Outcome:
        return pairwise(errors, judgement, ElboRatio(self.beta), Logistic(self.label_smoothing), UniformWeight())

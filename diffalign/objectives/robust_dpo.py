"""Robust DPO: labels of which a known share is flipped."""

from dataclasses import dataclass
from typing import final

from diffalign.objectives.links import Link, NoisyLabel
from diffalign.objectives.pairwise import PairwiseObjective
from diffalign.objectives.terms import ElboRatio, Reward, UniformWeight, Weight


@final
@dataclass(frozen=True)
class RobustDPO(PairwiseObjective):
    """-[(1 - eps) log sigmoid(m) - eps log sigmoid(-m)] / (1 - 2 eps), m = r[chosen] - r[rejected], mixed by P.

    Robust DPO, arXiv 2403.00409, equation 12, eps = `label_noise`, r = beta/2 (reference error - policy error):
    the mean over labels flipped with probability eps is DPO on clean ones. Stated for language models, where beta
    has no half on a log-ratio; here it is Diffusion-DPO's `beta_dpo`.
    """

    beta: float = 5000.0
    label_noise: float = 0.1

    def terms(self) -> tuple[Reward, Link, Weight]:
        return ElboRatio(self.beta), NoisyLabel(self.label_noise), UniformWeight()

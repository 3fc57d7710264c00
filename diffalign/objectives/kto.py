"""Diffusion-KTO."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from diffalign.objectives.base import Errors, Objective, Outcome, Unpaired, positive, sum_and_count
from diffalign.objectives.terms import ElboRatio, KahnemanTversky, Utility


@final
@dataclass(frozen=True)
class KTO(Objective):
    """1 - h(y (r - z)), h = sigmoid, r = beta/2 (reference - policy error), y = +-1: desirability above or below 1/2.

    Diffusion-KTO, arXiv 2404.04465, equation 8; z = max(0, sg[mean r]) over the optimizer batch, as in its code.
    `utility` is h, `weights` multiply the two classes. A desirability of 1/2 (with `soft`, any) is a share of both.
    Its beta has no half: 5000 of the paper and 1000 of the code's default are 10000 and 2000 here.
    """

    judgement: ClassVar[type[Unpaired]] = Unpaired
    coupled: ClassVar[bool] = True
    beta: float = 10000.0
    utility: Utility = KahnemanTversky()
    weights: tuple[float, float] = (1.0, 1.0)
    soft: bool = False

    def __post_init__(self) -> None:
        positive(beta=self.beta, desirable_weight=self.weights[0], undesirable_weight=self.weights[1])

    def gather(self, errors: Errors, judgement: Unpaired) -> Tensor:
        return sum_and_count(ElboRatio(self.beta)(errors).detach())

    def __call__(self, errors: Errors, judgement: Unpaired, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        rewards, images = self.gather(errors, judgement) if total is None else total
        r, z = ElboRatio(self.beta)(errors), (rewards / images).clamp(min=0)
        d = (judgement.desirable if self.soft else judgement.verdict()).to(r.dtype)
        good, bad = 1 - self.utility(r - z), 1 - self.utility(z - r)
        return Outcome(self.weights[0] * d * good + self.weights[1] * (1 - d) * bad, r.detach())

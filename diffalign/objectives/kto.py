"""Diffusion-KTO."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from diffalign.objectives.base import Errors, Objective, Outcome, Unpaired, positive, sum_and_count
from diffalign.objectives.terms import ElboRatio, KahnemanTversky, Utility


@final
@dataclass(frozen=True)
class KTO(Objective):
    """d (1 - h(r - z)) + (1 - d) (1 - h(z - r)), h = sigmoid, r = beta/2 (reference - policy error), d desirability.

    Diffusion-KTO, arXiv 2404.04465, equation 8, baseline as in the authors' code: z = max(0, sg[mean r]), the
    mean over the optimizer batch. `utility` is h; `weights` multiply the desirable and the undesirable part.
    Their beta has no half: 5000 of the paper and 1000 of the code's default are 10000 and 2000 here.
    """

    judgement: ClassVar[type[Unpaired]] = Unpaired
    coupled: ClassVar[bool] = True
    beta: float = 10000.0
    utility: Utility = KahnemanTversky()
    weights: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        positive(beta=self.beta, desirable_weight=self.weights[0], undesirable_weight=self.weights[1])

    def gather(self, errors: Errors, judgement: Unpaired) -> Tensor:
        return sum_and_count(ElboRatio(self.beta)(errors).detach())

    def __call__(self, errors: Errors, judgement: Unpaired, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        rewards, images = self.gather(errors, judgement) if total is None else total
        r = ElboRatio(self.beta)(errors)
        v, d = r - (rewards / images).clamp(min=0), judgement.desirable.to(r.dtype)
        desirable, undesirable = (w * (1 - self.utility(s * v)) for w, s in zip(self.weights, (1, -1), strict=True))
        return Outcome(d * desirable + (1 - d) * undesirable, r.detach())

"""Alpha-divergence DPO."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from diffalign.objectives.base import Errors, Objective, Outcome, Pairs, sum_and_count
from diffalign.objectives.links import AlphaDivergence
from diffalign.objectives.pairwise import Pairwise
from diffalign.objectives.terms import ElboRatio


@final
@dataclass(frozen=True)
class AlphaDPO(Objective):
    """(p^a - (1 - a) - a p) / (a (a - 1)), p = sigmoid(m), m = r[chosen] - r[rejected], r as in `DPO`, mixed by P.

    Alpha-DPO for diffusion (ICLR 2026), after the authors' code: a = alpha sg[mean p] over the optimizer batch (of p
    and 1 - p, mixed by P), or alpha itself unless `adaptive`. `beta` equals its `beta_dpo` (4000 for SDXL).
    """

    coupled: ClassVar[bool] = True
    beta: float = 4000.0
    alpha: float = 0.9999
    adaptive: bool = True

    def __post_init__(self) -> None:
        ElboRatio(self.beta), AlphaDivergence(self.alpha)

    def gather(self, errors: Errors, judgement: Pairs) -> Tensor:
        right = torch.sigmoid(judgement.margin(ElboRatio(self.beta)(errors).detach()))
        return sum_and_count(torch.lerp(1 - right, right, judgement.p.to(right.dtype)))

    def __call__(self, errors: Errors, judgement: Pairs, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        right, pairs = self.gather(errors, judgement) if total is None else total
        link = AlphaDivergence(self.alpha * right / pairs if self.adaptive else self.alpha)
        return Pairwise(ElboRatio(self.beta), link)(errors, judgement)

"""Alpha-divergence DPO."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from diffalign.objectives.base import Errors, Objective, Outcome, Pairs
from diffalign.objectives.links import AlphaDivergence
from diffalign.objectives.pairwise import Pairwise
from diffalign.objectives.terms import ElboRatio


@final
@dataclass(frozen=True)
class AlphaDPO(Objective):
    """(p^a - (1 - a) - a p) / (a (a - 1)), p = sigmoid(m), m = r[chosen] - r[rejected], mixed by P.

    Alpha-DPO for diffusion (ICLR 2026), after the authors' code: a = alpha sg[mean p], over the optimizer batch
    and with P p + (1 - P) (1 - p) for p, or alpha itself unless `adaptive`. r = beta/2 (reference error - policy
    error); `beta` equals its `beta_dpo` (4000 for SDXL).
    """

    coupled: ClassVar[bool] = True
    beta: float = 4000.0
    alpha: float = 0.9999
    adaptive: bool = True

    def __post_init__(self) -> None:
        ElboRatio(self.beta), AlphaDivergence(self.alpha)

    def gather(self, errors: Errors, judgement: Pairs) -> Tensor:
        r = ElboRatio(self.beta)(errors).detach()
        p, right = judgement.p.to(r.dtype), torch.sigmoid(judgement.margin(r))
        right = p * right + (1 - p) * (1 - right)
        return torch.stack([right.sum(), torch.ones_like(right).sum()])

    def __call__(self, errors: Errors, judgement: Pairs, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        right, pairs = self.gather(errors, judgement) if total is None else total
        link = AlphaDivergence(self.alpha * right / pairs if self.adaptive else self.alpha)
        return Pairwise(ElboRatio(self.beta), link)(errors, judgement)

"""RankDPO."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffalign.objectives.base import Errors, Objective, Outcome, Ranking
from diffalign.objectives.terms import ElboRatio


@final
@dataclass(frozen=True)
class RankDPO(Objective):
    """-sum over i better than j of |G_i - G_j| |1/D_i - 1/D_j| log sigmoid(r_i - r_j), r = beta/2 (reference - policy).

    RankDPO, arXiv 2410.18013, equations 7 to 9: gain G = 2^s - 1 of the score s in [0, 1] (share of duels won),
    discount D = ln(1 + rank), rank 1 for the best, equal scores sharing one. One judgement a group, one forward
    pass an image. The paper's beta has no half (it is doubled here) and no published value.
    """

    judgement: ClassVar[type[Ranking]] = Ranking
    needs_shares: ClassVar[bool] = True
    beta: float = 5000.0

    def __post_init__(self) -> None:
        ElboRatio(self.beta)

    def __call__(self, errors: Errors, judgement: Ranking, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        r = ElboRatio(self.beta)(errors)
        s, better = judgement.shares().to(r.dtype), judgement.better()
        gain, discount = 2**s - 1, torch.log(2 + better.sum(0).to(r.dtype))
        weight = (gain[:, None] - gain).abs() * (1 / discount[:, None] - 1 / discount).abs()
        loss = -weight * logsigmoid(r[:, None] - r)
        return Outcome(judgement.sum(torch.where(better, loss, 0.0).sum(1)), r.detach())

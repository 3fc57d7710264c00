"""RankNet on implicit rewards."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffalign.objectives.base import Errors, Objective, Outcome, Ranking
from diffalign.objectives.terms import ElboRatio


@final
@dataclass(frozen=True)
class RankNet(Objective):
    """-sum over i better than j of log sigmoid(r_i - r_j), r = beta/2 (reference error - policy error).

    RankNet (Burges et al., ICML 2005): all pairs of a group weigh the same, equal scores say nothing; `RankDPO`
    without gain and discount. `DPO` on every pair costs the same, for each image is passed forward once. beta as
    in `DPO`.
    """

    judgement: ClassVar[type[Ranking]] = Ranking
    beta: float = 5000.0

    def __post_init__(self) -> None:
        ElboRatio(self.beta)

    def __call__(self, errors: Errors, judgement: Ranking, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        r = ElboRatio(self.beta)(errors)
        loss = torch.where(judgement.better(), -logsigmoid(r[:, None] - r), 0.0)
        return Outcome(judgement.sum(loss.sum(1)), r.detach())

"""Plackett-Luce likelihood of a ranking."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from diffalign.objectives.base import Errors, Objective, Outcome, Ranking
from diffalign.objectives.terms import ElboRatio


@final
@dataclass(frozen=True)
class PlackettLuce(Objective):
    """-sum over i of log(exp r_i / sum over j not better of exp r_j), r = beta/2 (reference error - policy error).

    DPO for rankings, arXiv 2305.18290, appendix A.3 (ListMLE): the best is drawn first, then the best of the
    rest. Equal scores stay in each other's sums, as in Breslow's likelihood. Of two images it is `DPO`; beta as
    there.
    """

    judgement: ClassVar[type[Ranking]] = Ranking
    beta: float = 5000.0

    def __post_init__(self) -> None:
        ElboRatio(self.beta)

    def __call__(self, errors: Errors, judgement: Ranking, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        r = ElboRatio(self.beta)(errors)
        left = judgement.together() & ~judgement.better().T
        return Outcome(judgement.sum(torch.where(left, r, -torch.inf).logsumexp(1) - r), r.detach())

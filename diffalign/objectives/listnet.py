"""ListNet on implicit rewards."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from diffalign.objectives.base import Errors, Objective, Outcome, Ranking, positive
from diffalign.objectives.terms import ElboRatio


@final
@dataclass(frozen=True)
class ListNet(Objective):
    """-sum over i of q_i log p_i, q = softmax(score / temperature), p = softmax(r), r = beta/2 (reference - policy).

    ListNet (Cao et al., ICML 2007); anchored DPO (ADPO) with scores for advantages is this. Not only the order
    teaches but the scores, whose softmax is the target. beta as in `DPO`; ADPO's temperature 0.5 is for
    normalised advantages.
    """

    judgement: ClassVar[type[Ranking]] = Ranking
    beta: float = 5000.0
    temperature: float = 0.5

    def __post_init__(self) -> None:
        positive(beta=self.beta, temperature=self.temperature)

    def __call__(self, errors: Errors, judgement: Ranking, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        r, together = ElboRatio(self.beta)(errors), judgement.together()
        scores = judgement.scores.to(r.dtype) / self.temperature
        log_q, log_p = (v - torch.where(together, v, -torch.inf).logsumexp(1) for v in (scores, r))
        return Outcome(-judgement.sum(log_q.exp() * log_p), r.detach())

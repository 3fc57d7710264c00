"""Direct group preference optimisation."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from diffalign.objectives.base import Advantages, Errors, Objective, Outcome, positive
from diffalign.objectives.terms import ElboRatio


@final
@dataclass(frozen=True)
class DGPO(Objective):
    """mean over the group of W A e, W = sg[sigmoid(-mean A r)], r = beta/2 (reference - policy error), A advantages.

    DGPO, after the authors' code: a group's Bradley-Terry loss with its sigmoid frozen. With `clip`, an image whose
    exp(old - policy error) left 1 +- clip in the direction of its advantage has no gradient. Their beta has no half
    (100 is 200 here); their velocity penalty is `Anchored`.
    """

    judgement: ClassVar[type[Advantages]] = Advantages
    beta: float = 200.0
    clip: float | None = None

    def __post_init__(self) -> None:
        positive(beta=self.beta, clip=1.0 if self.clip is None else self.clip)

    @property
    def needs_old(self) -> bool:
        return self.clip is not None

    def __call__(self, errors: Errors, judgement: Advantages, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        r, a, e = ElboRatio(self.beta)(errors).detach(), judgement.values.to(errors.policy.dtype), errors.policy
        if self.clip is not None:
            left = torch.exp(errors.old - e.detach()) - 1
            e = torch.where(torch.where(a > 0, left, -left) > self.clip, e.detach(), e)
        return Outcome(torch.sigmoid(-judgement.mean(a * r)) * judgement.mean(a * e), r)

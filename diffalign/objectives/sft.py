"""Supervised fine-tuning on the winners."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from diffalign.objectives.base import Errors, Judgement, Objective, Outcome


@final
@dataclass(frozen=True)
class SFT(Objective):
    """e[winner], the policy's error: P e[chosen] + (1 - P) e[rejected] of a pair, d e of an image of desirability d.

    Learns from any judgement; of a group it takes the best image. The plain denoising loss: every published
    comparison on SD1.5 should be read against it. No beta.
    """

    judgement: ClassVar[type[Judgement]] = Judgement
    reference_free: ClassVar[bool] = True

    def __call__(self, errors: Errors, judgement: Judgement, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        return Outcome(judgement.winner(errors.policy), -errors.policy.detach())

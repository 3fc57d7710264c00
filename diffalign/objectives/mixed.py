"""Any objective with a share of likelihood."""

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from diffalign.objectives.base import Errors, Judgement, Modifier, Objective, Outcome, positive


@final
@dataclass(frozen=True)
class Mixed(Modifier):
    """objective + sft e[winner], e the policy's errors: the anchor that keeps a winner's own error from rising.

    RPO, arXiv 2404.19733, equation 1, for language models. The winner of a judgement is as in `SFT`.
    """

    objective: Objective
    sft: float = 1.0

    def __post_init__(self) -> None:
        positive(sft=self.sft)

    def __call__(self, errors: Errors, judgement: Judgement, total: Tensor | None = None) -> Outcome:
        outcome = self.objective(errors, judgement, total)
        return replace(outcome, loss=outcome.loss + self.sft * judgement.winner(errors.policy))

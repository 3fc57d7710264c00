"""Contrastive preference optimisation."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from diffalign.objectives.base import Errors, Objective, Outcome, Pairs
from diffalign.objectives.links import Logistic
from diffalign.objectives.mixed import Mixed
from diffalign.objectives.pairwise import Pairwise
from diffalign.objectives.terms import Likelihood


@final
@dataclass(frozen=True)
class CPO(Objective):
    """-log sigmoid(m) + sft e[chosen], m = beta/2 (e[rejected] - e[chosen]), e the policy's errors, mixed by P.

    CPO, arXiv 2401.08417, equation 5: a uniform reference, held by the winner's likelihood. It is
    `Mixed(Pairwise(Likelihood(beta), Logistic()), sft)`. No diffusion paper fixes beta; 500 is where MaPO's
    margin sits.
    """

    reference_free: ClassVar[bool] = True
    beta: float = 500.0
    sft: float = 1.0

    def __post_init__(self) -> None:
        self.mixed()

    def mixed(self) -> Mixed:
        """The same as a combination."""
        return Mixed(Pairwise(Likelihood(self.beta), Logistic()), self.sft)

    def __call__(self, errors: Errors, judgement: Pairs, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        return self.mixed()(errors, judgement)

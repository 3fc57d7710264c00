"""Margin-aware preference optimisation."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch import Tensor

from diffalign.objectives.base import Errors, Objective, Outcome, Pairs, positive
from diffalign.objectives.links import Logistic
from diffalign.objectives.pairwise import Pairwise
from diffalign.objectives.terms import SquashedLikelihood


@final
@dataclass(frozen=True)
class MaPO(Objective):
    """e[chosen] - beta_margin log sigmoid(T (s[chosen] - s[rejected])), s = k e / (exp(k e) - 1), both mixed by P.

    MaPO, arXiv 2406.06424, after the authors' code: k is its `snr_value`, T the number of training timesteps,
    beta_margin its `beta_mapo`; e the policy's errors, no reference. For small errors the margin is k T / 2 times
    their difference, as if beta were k T = 500. No formula ties the paper's beta (128 to 1024) to these.
    """

    reference_free: ClassVar[bool] = True
    k: float = 0.5
    T: float = 1000.0
    beta_margin: float = 0.1

    def __post_init__(self) -> None:
        positive(beta_margin=self.beta_margin)
        self.margin()

    def margin(self) -> Pairwise:
        """The part about the margin."""
        return Pairwise(SquashedLikelihood(self.k, self.T), Logistic())

    def __call__(self, errors: Errors, judgement: Pairs, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        outcome = self.margin()(errors, judgement)
        return replace(outcome, loss=judgement.winner(errors.policy) + self.beta_margin * outcome.loss)

"""Any objective with a tie to the reference's prediction."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch import Tensor

from diffalign.objectives.base import Errors, Judgement, Modifier, Objective, Outcome, positive


@final
@dataclass(frozen=True)
class Anchored(Modifier):
    """objective + weight mean |policy - reference prediction|^2 over the images of a judgement.

    The velocity penalty ("KL") of DiffusionNFT (weight 1e-4), DGPO (0.001 to 0.02), CRD and AWM. With residuals
    it is policy error + reference error - 2 <policy, reference>; it reads the reference whether or not its host
    does.
    """

    reference_free: ClassVar[bool] = False
    objective: Objective
    weight: float

    def __post_init__(self) -> None:
        positive(weight=self.weight)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.objective.needs, "policy_reference")))

    def __call__(self, errors: Errors, judgement: Judgement, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        outcome = self.objective(errors, judgement, total)
        distance = errors.policy + errors.reference - 2 * errors.cross["policy_reference"]
        return replace(outcome, loss=outcome.loss + self.weight * judgement.mean(distance))

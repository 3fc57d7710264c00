"""Centred reward distillation."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from diffalign.objectives.base import Advantages, Errors, Objective, Outcome, positive


@final
@dataclass(frozen=True)
class CRD(Objective):
    """mean over the group of ((r - mean r) - (q - mean q))^2, r = beta/2 (old - policy error), q = optimality of A.

    Centred reward distillation, arXiv 2603.14128, with uniform centring and the squared link, as in
    Flow-Factory's code: optimality is clip(A, -5, 5) / 10 + 1/2. The group's unknown normaliser cancels in the
    centring. Their beta has no half: 1 is 2 here; they multiply the loss by 5 / beta, and their velocity penalty
    is `Anchored`.
    """

    judgement: ClassVar[type[Advantages]] = Advantages
    reference_free: ClassVar[bool] = True
    needs_old: ClassVar[bool] = True
    beta: float = 2.0

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def __call__(self, errors: Errors, judgement: Advantages, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        r = 0.5 * self.beta * (errors.old - errors.policy)
        surplus = r - judgement.optimality().to(r.dtype)
        centred = surplus - judgement.mean(surplus)[judgement.group]
        return Outcome(judgement.mean(centred.square()), r.detach())

"""Direct score preference optimisation."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from diffalign.objectives.base import Errors, Objective, Outcome, Pairs
from diffalign.objectives.terms import ElboRatio


@final
@dataclass(frozen=True)
class DSPO(Objective):
    """|(1 - k) policy + k reference residual|^2 of the chosen image, k = beta sigmoid(-m), m = r[chosen] - r[rejected].

    DSPO after the authors' SD1.5 code: |(pred - eps) - k (pred - reference pred)|^2, k not detached, mixed by P with
    the same of the rejected image and -m; r = beta/2 (reference - policy error). `beta` equals its `beta_dpo`; at its
    0.001 this is `SFT` to within 0.1 %. The SDXL branch of that code is another, ad-hoc loss and is not followed.
    """

    needs: ClassVar[tuple[str, ...]] = ("policy_reference",)
    beta: float = 0.001

    def __post_init__(self) -> None:
        ElboRatio(self.beta)

    def __call__(self, errors: Errors, judgement: Pairs, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        r = ElboRatio(self.beta)(errors)
        p, margin = judgement.p.to(r.dtype), judgement.margin(r)
        won = self.residual(errors.at(judgement.chosen), margin)
        lost = self.residual(errors.at(judgement.rejected), -margin)
        return Outcome(p * won + (1 - p) * lost, r.detach())

    def residual(self, e: Errors, margin: Tensor) -> Tensor:
        """|(1 - k) policy + k reference residual|^2, by their inner products."""
        k = self.beta * torch.sigmoid(-margin)
        return (1 - k).square() * e.policy + k.square() * e.reference + 2 * k * (1 - k) * e.cross["policy_reference"]

"""Safeguarded DPO: the loser's gradient may not undo the winner's."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from diffalign.objectives.base import Errors, Modifier, Objective, Outcome, Pairs


@final
@dataclass(frozen=True)
class Safeguarded(Modifier):
    """The host's loss with e[loser] <- sg[e] + lambda (e - sg[e]), lambda = clip((1 - mu) |w|^2 / <w, l>, 0, 1).

    Diffusion-SDPO, after the authors' code; w, l: residuals of winner and loser, and lambda is 1 unless <w, l> > 0.
    Values are the host's, as is beta; the loser's gradient shrinks until the winner keeps a share mu of its gain.
    lambda is the optimizer batch's, there a micro-batch's; a tie has no loser. mu: 0.9 with DPO and DMPO, 0.2 with
    DSPO on SD1.5; 0.6 on SDXL.
    """

    coupled: ClassVar[bool] = True
    objective: Objective
    mu: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.mu <= 1:
            raise ValueError(f"mu = {self.mu}: expected a number in [0, 1]")
        if self.objective.judgement is not Pairs:
            raise ValueError(f"Safeguarded modifies pairwise objectives, and {type(self.objective).__name__} is none")

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.objective.needs, "chosen_rejected")

    def gather(self, errors: Errors, judgement: Pairs) -> Tensor:
        winner = torch.where(judgement.p > 0.5, judgement.chosen, judgement.rejected)
        products = torch.stack([errors.policy[winner], errors.cross["chosen_rejected"]]).detach()
        sums = products @ (judgement.p != 0.5).to(products.dtype)
        return torch.cat([sums, self.objective.gather(errors, judgement)])

    def __call__(self, errors: Errors, judgement: Pairs, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        total = self.gather(errors, judgement) if total is None else total
        share = torch.where(total[1] > 0, ((1 - self.mu) * total[0] / total[1]).clamp(0, 1), 1.0)
        scale = torch.where(torch.cat([judgement.p < 0.5, judgement.p > 0.5]), share, 1.0)
        roles = errors.at(torch.cat([judgement.chosen, judgement.rejected])).damped(scale)
        loss = self.objective(roles, judgement.apart(), total[2:]).loss
        return replace(self.objective(errors, judgement, total[2:]), loss=loss)

"""Binary classifier optimisation."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from diffalign.objectives.base import Errors, Objective, Outcome, Unpaired
from diffalign.objectives.links import Logistic
from diffalign.objectives.terms import ElboRatio


@final
@dataclass(frozen=True)
class BCO(Objective):
    """-d log sigmoid(r - z) - (1 - d) log sigmoid(z - r), r = beta/2 (reference error - policy error), d desirability.

    BCO, arXiv 2404.04656, equation 9: z = sg[(mean r of the desirable + mean r of the undesirable) / 2], over the
    optimizer batch where the paper keeps a running mean; a class that is absent leaves the other's mean. Stated
    for language models, where beta has no half on a log-ratio; here it is Diffusion-DPO's `beta_dpo`.
    """

    judgement: ClassVar[type[Unpaired]] = Unpaired
    coupled: ClassVar[bool] = True
    beta: float = 5000.0

    def __post_init__(self) -> None:
        ElboRatio(self.beta)

    def gather(self, errors: Errors, judgement: Unpaired) -> Tensor:
        r = ElboRatio(self.beta)(errors).detach()
        d = torch.stack([judgement.desirable, 1 - judgement.desirable]).to(r.dtype)
        return torch.cat([d @ r, d.sum(1)])

    def __call__(self, errors: Errors, judgement: Unpaired, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        total = self.gather(errors, judgement) if total is None else total
        r, z = ElboRatio(self.beta)(errors), (total[:2] / total[2:]).nanmean()
        return Outcome(Logistic()(r - z, judgement.desirable.to(r.dtype)), r.detach())

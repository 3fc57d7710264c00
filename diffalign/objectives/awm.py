"""Advantage weighted matching."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from diffalign.objectives.base import Advantages, Errors, Objective, Outcome, positive


@final
@dataclass(frozen=True)
class AWM(Objective):
    """mean over the group of A e, e the policy's errors, A advantages; with `clip` of max(-A q, -A clip(q, 1 +- clip)).

    AWM, arXiv 2509.25050, with q = exp(old - policy error) as in Flow-Factory's code: the pretraining loss,
    weighted; at the previous policy both forms have one gradient. Its weights over time belong to the time law,
    its penalty on the velocity is `Anchored`, and advantages come clipped. No reference, no beta.
    """

    judgement: ClassVar[type[Advantages]] = Advantages
    reference_free: ClassVar[bool] = True
    clip: float | None = None

    def __post_init__(self) -> None:
        positive(clip=1.0 if self.clip is None else self.clip)

    @property
    def needs_old(self) -> bool:
        return self.clip is not None

    def __call__(self, errors: Errors, judgement: Advantages, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        a, e = judgement.values.to(errors.policy.dtype), errors.policy
        if self.clip is None:
            return Outcome(judgement.mean(a * e), -e.detach())
        # A log-ratio beyond 20 says that the estimate broke down, not by how much: it must not overflow.
        q = torch.exp((errors.old - e).clamp(max=20))
        return Outcome(judgement.mean(torch.maximum(-a * q, -a * q.clamp(1 - self.clip, 1 + self.clip))), -e.detach())

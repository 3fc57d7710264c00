"""The free combination of reward, link and weight, and the shape of every method that is one."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from diffalign.objectives.base import Errors, Objective, Outcome, Pairs
from diffalign.objectives.links import Link
from diffalign.objectives.terms import Reward, UniformWeight, Weight


class PairwiseObjective(Objective):
    """weight * link(m, P), m = r[chosen] - r[rejected]: an objective that is a sentence in the words of `terms`."""

    @abstractmethod
    def terms(self) -> tuple[Reward, Link, Weight]:
        """Its reward, link and weight; they raise ValueError on a hyper-parameter out of range."""

    def __post_init__(self) -> None:
        self.terms()

    @property
    def needs_gaps(self) -> bool:
        """As its weight does."""
        return self.terms()[2].needs_gaps

    def __call__(self, errors: Errors, judgement: Pairs, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        reward, link, weight = self.terms()
        r = reward(errors)
        loss = link(judgement.margin(r), None if judgement.certain else judgement.p.to(r.dtype))
        return Outcome(weight.weigh(loss, errors, judgement), r.detach())


@final
@dataclass(frozen=True)
class Pairwise(PairwiseObjective):
    """weight * link(r[chosen] - r[rejected], P), in words of one's own choice.

    `Pairwise(ElboRatio(beta), Logistic(), UniformWeight())` is `DPO(beta)`, bit for bit.
    """

    reward: Reward
    link: Link
    weight: Weight = UniformWeight()

    @property
    def reference_free(self) -> bool:
        """As its reward is."""
        return self.reward.reference_free

    def terms(self) -> tuple[Reward, Link, Weight]:
        return self.reward, self.link, self.weight

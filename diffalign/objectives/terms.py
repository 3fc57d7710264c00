"""The words objectives are sentences of: implicit reward (errors -> number per image), link (margin, label -> loss), weight."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffalign.objectives.base import Errors, Outcome, Pairs, positive


class Reward(ABC):
    """Implicit reward: errors -> one number per image."""

    @abstractmethod
    def __call__(self, errors: Errors) -> Tensor: ...


class Link(ABC):
    """(margin, P(chosen is better)) -> loss per pair."""

    @abstractmethod
    def __call__(self, margin: Tensor, p: Tensor) -> Tensor: ...


class Weight(ABC):
    """(errors, pairs) -> factor per pair."""

    @abstractmethod
    def __call__(self, errors: Errors, pairs: Pairs) -> Tensor: ...


@final
@dataclass(frozen=True)
class ElboRatio(Reward):
    """r = beta/2 (reference error - policy error): the ELBO estimate of beta log(policy / reference).

    Diffusion-DPO, arXiv 2311.12908, equation 14, with beta as in its code: beta T omega of the paper, errors as means.
    """

    beta: float

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def __call__(self, errors: Errors) -> Tensor:
        return 0.5 * self.beta * (errors.reference - errors.policy)


@final
@dataclass(frozen=True)
class Logistic(Link):
    """-P log sigmoid(m) - (1 - P) log sigmoid(-m); smoothing s first maps P to (1 - s) P + s (1 - P)."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing = {self.label_smoothing}: expected a number in [0, 0.5)")

    def __call__(self, margin: Tensor, p: Tensor) -> Tensor:
        p = (1 - self.label_smoothing) * p + self.label_smoothing * (1 - p)
        return -p * logsigmoid(margin) - (1 - p) * logsigmoid(-margin)


@final
@dataclass(frozen=True)
class UniformWeight(Weight):
    """1."""

    def __call__(self, errors: Errors, pairs: Pairs) -> Tensor:
        return torch.ones_like(pairs.p)


def pairwise(errors: Errors, pairs: Pairs, reward: Reward, link: Link, weight: Weight) -> Outcome:
    """loss = weight * link(r[chosen] - r[rejected], P)."""
    r = reward(errors)
    margin = r[pairs.chosen] - r[pairs.rejected]
    return Outcome(weight(errors, pairs) * link(margin, pairs.p.to(margin.dtype)), r.detach())

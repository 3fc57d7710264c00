"""Links: (margin, P(chosen is better)) -> loss per pair."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from diffalign.objectives.base import positive


class Link(ABC):
    """(margin m, P = P(chosen is better)) -> loss per pair: P link(m) + (1 - P) link(-m) unless said otherwise.

    P = None says that it is 1 for all pairs: the same numbers, without the second link.
    """

    def __call__(self, margin: Tensor, p: Tensor | None = None) -> Tensor:
        if p is None:
            return self.hard(margin)
        return p * self.hard(margin) + (1 - p) * self.hard(-margin)

    @abstractmethod
    def hard(self, margin: Tensor) -> Tensor:
        """link(m): the loss if the chosen image is certainly better."""


@final
@dataclass(frozen=True)
class Logistic(Link):
    """-P log sigmoid(m) - (1 - P) log sigmoid(-m); smoothing s first maps P to (1 - s) P + s (1 - P)."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing = {self.label_smoothing}: expected a number in [0, 0.5)")

    def __call__(self, margin: Tensor, p: Tensor | None = None) -> Tensor:
        if self.label_smoothing == 0:
            return super().__call__(margin, p)
        p = torch.ones_like(margin) if p is None else p
        return super().__call__(margin, (1 - self.label_smoothing) * p + self.label_smoothing * (1 - p))

    def hard(self, margin: Tensor) -> Tensor:
        return -logsigmoid(margin)


@final
@dataclass(frozen=True)
class TargetMargin(Link):
    """-log sigmoid(m - gamma): logistic, with gamma to exceed.  SimPO, arXiv 2405.14734, equation 6."""

    gamma: float

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma = {self.gamma}: expected a number of at least 0")

    def hard(self, margin: Tensor) -> Tensor:
        return -logsigmoid(margin - self.gamma)


@final
@dataclass(frozen=True)
class ScaledLogit(Link):
    """-log sigmoid(gamma (2 P - 1) m): the label scales the logit and does not mix two losses.  SmPO."""

    gamma: float

    def __post_init__(self) -> None:
        positive(gamma=self.gamma)

    def __call__(self, margin: Tensor, p: Tensor | None = None) -> Tensor:
        return self.hard(margin if p is None else (2 * p - 1) * margin)

    def hard(self, margin: Tensor) -> Tensor:
        return -logsigmoid(self.gamma * margin)


@final
@dataclass(frozen=True)
class HingeLoss(Link):
    """max(0, 1 - m)."""

    def hard(self, margin: Tensor) -> Tensor:
        return relu(1 - margin)


@final
@dataclass(frozen=True)
class Squared(Link):
    """(m - 1/2)^2."""

    def hard(self, margin: Tensor) -> Tensor:
        return (margin - 0.5).square()


@final
@dataclass(frozen=True)
class Linear(Link):
    """-m."""

    def hard(self, margin: Tensor) -> Tensor:
        return -margin


@final
@dataclass(frozen=True)
class NoisyLabel(Link):
    """-[(1 - eps) log sigmoid(m) - eps log sigmoid(-m)] / (1 - 2 eps): unbiased if a share eps of labels is flipped."""

    label_noise: float

    def __post_init__(self) -> None:
        if not 0 <= self.label_noise < 0.5:
            raise ValueError(f"label_noise = {self.label_noise}: expected a number in [0, 0.5)")

    def hard(self, margin: Tensor) -> Tensor:
        right, wrong = -logsigmoid(margin), -logsigmoid(-margin)
        return ((1 - self.label_noise) * right - self.label_noise * wrong) / (1 - 2 * self.label_noise)


@final
@dataclass(frozen=True)
class ReverseKL(Link):
    """KL(Bernoulli(sigmoid(m)) || Bernoulli(1 - alpha)); least at m = log((1 - alpha) / alpha), so it sets a target."""

    alpha: float

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha = {self.alpha}: expected a number in (0, 1)")

    def hard(self, margin: Tensor) -> Tensor:
        right = torch.sigmoid(margin) * (logsigmoid(margin) - math.log(1 - self.alpha))
        return right + torch.sigmoid(-margin) * (logsigmoid(-margin) - math.log(self.alpha))


@final
@dataclass(frozen=True)
class AlphaDivergence(Link):
    """(p^a - (1 - a) - a p) / (a (a - 1)), p = sigmoid(m), 0 <= a <= 1: p - 1 - log p at 0, p log p + 1 - p at 1.

    alpha: a number, or a tensor () whose value is not looked at.
    """

    alpha: float | Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.alpha, Tensor) and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha = {self.alpha}: expected a number in [0, 1]")

    def hard(self, margin: Tensor) -> Tensor:
        log_p = logsigmoid(margin)
        alpha = torch.as_tensor(self.alpha, dtype=margin.dtype, device=margin.device)
        # Two forms of one quotient: the first does not cancel towards 0, the second does not towards 1.
        low, high = alpha.clamp(max=0.5), alpha.clamp(min=0.5)
        first = (_q_log(log_p, low) - torch.expm1(log_p)) / (low - 1)
        second = (torch.exp(high * log_p) * _q_log(log_p, 1 - high) - torch.expm1(log_p)) / high
        return torch.where(alpha < 0.5, first, second)


def _q_log(log_p: Tensor, power: Tensor) -> Tensor:
    # (p^power - 1) / power, which is log p at 0.
    quotient = torch.expm1(power * log_p) / torch.where(power == 0, 1.0, power)
    return torch.where(power == 0, log_p, quotient)

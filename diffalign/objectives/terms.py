"""Words that objectives are sentences of: implicit reward (per image), weight (per pair), utility; see also `links`."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffalign.objectives.base import Errors, Pairs, positive


class Reward(ABC):
    """Implicit reward: errors -> one number per image."""

    reference_free: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, errors: Errors) -> Tensor: ...


class Weight(ABC):
    """(errors, pairs) -> factor per pair. `needs_gaps`: whether it reads the pairs' score gaps."""

    needs_gaps: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, errors: Errors, pairs: Pairs) -> Tensor: ...

    def weigh(self, loss: Tensor, errors: Errors, pairs: Pairs) -> Tensor:
        """The loss per pair times the factor."""
        return self(errors, pairs).to(loss.dtype) * loss


class Utility(ABC):
    """v -> how good it feels to be v above the baseline (KTO)."""

    @abstractmethod
    def __call__(self, v: Tensor) -> Tensor: ...


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
class Likelihood(Reward):
    """r = -beta/2 policy error: the ELBO estimate of beta log(policy), which needs no reference."""

    reference_free: ClassVar[bool] = True
    beta: float

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def __call__(self, errors: Errors) -> Tensor:
        return -0.5 * self.beta * errors.policy


@final
@dataclass(frozen=True)
class SquashedLikelihood(Reward):
    """r = T k e / (exp(k e) - 1), T at e = 0, e the policy's errors: slope -k T / 2 for small ones.  MaPO."""

    reference_free: ClassVar[bool] = True
    k: float
    T: float

    def __post_init__(self) -> None:
        positive(k=self.k, T=self.T)

    def __call__(self, errors: Errors) -> Tensor:
        x = self.k * errors.policy
        # Near 0 the quotient is 0 / 0 and its gradient cancels: the series is exact there to 1e-16.
        near, far = torch.where(x < 0.01, x, 0.0), torch.where(x < 0.01, 1.0, x)
        series = 1 - near / 2 + near.square() / 12 - near.pow(4) / 720
        return self.T * torch.where(x < 0.01, series, far * torch.exp(-far) / -torch.expm1(-far))


@final
@dataclass(frozen=True)
class UniformWeight(Weight):
    """1."""

    def __call__(self, errors: Errors, pairs: Pairs) -> Tensor:
        return torch.ones_like(pairs.p)

    def weigh(self, loss: Tensor, errors: Errors, pairs: Pairs) -> Tensor:
        return loss


@final
@dataclass(frozen=True)
class MarginAdaptive(Weight):
    """P w(g) + (1 - P) w(-g), w(g) = sigmoid(c g) / sigmoid(g) where the score gap g > -tau, else 1.

    c = c_min + (c_max - c_min) / (1 + (c_max - 1) / (1 - c_min) exp(steepness (|g| - tau))) falls from c_max to c_min
    and is 1 at tau.  MADPO.
    """

    needs_gaps: ClassVar[bool] = True
    c_max: float
    c_min: float
    steepness: float
    tau: float

    def __post_init__(self) -> None:
        positive(c_min=self.c_min, steepness=self.steepness, tau=self.tau)
        if not self.c_min < 1 < self.c_max < math.inf:
            raise ValueError(f"c_min = {self.c_min}, c_max = {self.c_max}: expected c_min < 1 < c_max")

    def __call__(self, errors: Errors, pairs: Pairs) -> Tensor:
        if not pairs.knows_gaps:
            raise ValueError("a margin-adaptive weight reads the pairs' score gaps, and some pair has none")
        return pairs.p * self.hard(pairs.score_gap) + (1 - pairs.p) * self.hard(-pairs.score_gap)

    def hard(self, gap: Tensor) -> Tensor:
        """w(g)."""
        odds = (self.c_max - 1) / (1 - self.c_min) * torch.exp(self.steepness * (gap.abs() - self.tau))
        c = self.c_min + (self.c_max - self.c_min) / (1 + odds)
        return torch.where(gap > -self.tau, torch.sigmoid(c * gap) / torch.sigmoid(gap), 1.0)


@final
@dataclass(frozen=True)
class KahnemanTversky(Utility):
    """sigmoid(v): averse to risk in gains, seeking it in losses."""

    def __call__(self, v: Tensor) -> Tensor:
        return torch.sigmoid(v)


@final
@dataclass(frozen=True)
class LossAverse(Utility):
    """log sigmoid(v)."""

    def __call__(self, v: Tensor) -> Tensor:
        return logsigmoid(v)


@final
@dataclass(frozen=True)
class RiskSeeking(Utility):
    """-log sigmoid(-v)."""

    def __call__(self, v: Tensor) -> Tensor:
        return -logsigmoid(-v)

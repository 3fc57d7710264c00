"""Which times are drawn, and what an error at each of them weighs."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from diffalign.diffusion import Noised, Process

_EDGE = 1e-6


class TimeLaw(ABC):
    """How often each time is drawn: u uniform in (0, 1) -> quantile q in (0, 1), 1 is pure noise; subclasses are final.

    A flow's time is q itself, a variance-preserving step the integer part of q * steps.
    """

    @abstractmethod
    def __call__(self, u: Tensor) -> Tensor:
        """Uniform numbers, float64 -> quantiles that `Process.time` reads."""


@final
@dataclass(frozen=True)
class Uniform(TimeLaw):
    """q = u."""

    def __call__(self, u: Tensor) -> Tensor:
        return u


@final
@dataclass(frozen=True)
class LogitNormal(TimeLaw):
    """q = sigmoid(mean + std Phi^-1(u)).  Stable Diffusion 3, arXiv 2403.03206, section 3.1.

    A `mean` of ln(shift) is the standard law shifted by `shift`.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"mean = {self.mean}, std = {self.std}: expected a number and a positive one")

    def __call__(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@final
@dataclass(frozen=True)
class Mode(TimeLaw):
    """q = 1 - u - scale (cos^2(pi u / 2) - 1 + u): mode sampling with heavy tails.

    Stable Diffusion 3, arXiv 2403.03206, section 3.1; 1.29 is the scale of its best run. Positive scales favour the
    middle, negative ones the ends, 0 is uniform; outside [-1, 2 / (pi - 2)] times would be drawn twice over.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise ValueError(f"scale = {self.scale}: expected a number in [-1, 2 / (pi - 2)]")

    def __call__(self, u: Tensor) -> Tensor:
        return 1 - u - self.scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)


@final
@dataclass(frozen=True)
class Shifted(TimeLaw):
    """q = shift u / (1 + (shift - 1) u): towards noise where shift > 1.  arXiv 2403.03206, section 5.3.2."""

    shift: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift = {self.shift}: expected a positive number")

    def __call__(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 + (self.shift - 1) * u)


@final
@dataclass(frozen=True)
class Skewed(TimeLaw):
    """P(category k) ~ gamma^k, uniform within it; k = 0 is the highest-noise one of equally wide categories.

    Rethinking DPO, arXiv 2505.18736, with gamma = 0.9; the paper's main text does not say how many categories.
    """

    gamma: float = 0.9
    categories: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf or self.categories < 1:
            raise ValueError(f"gamma = {self.gamma}, categories = {self.categories}: expected positive numbers")

    def __call__(self, u: Tensor) -> Tensor:
        share = u.new_tensor(self.gamma, dtype=torch.float64) ** torch.arange(self.categories, device=u.device)
        edges = torch.cat([share.new_zeros(1), (share / share.sum()).cumsum(0)])
        k = (torch.searchsorted(edges, u.double().contiguous(), right=True) - 1).clamp(0, self.categories - 1)
        within = (u.double() - edges[k]) / (edges[k + 1] - edges[k])
        return (1 - (k + within) / self.categories).clamp(_EDGE, 1 - _EDGE)


@final
@dataclass(frozen=True)
class Grid(TimeLaw):
    """q just below (k + 1) / points, k uniform: of 1000 steps t = stride k + stride - 1, stride = 1000 / points.

    What few-step models are distilled on: 4 points for SDXL-Turbo (t = 250 k + 249, as in Diffusion-DPO's code) and
    four-step DMD2, 50 for LCM. The last point is pure noise.
    """

    points: int = 4

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"points = {self.points}: expected at least 1")

    def __call__(self, u: Tensor) -> Tensor:
        k = (u.double() * self.points).floor().clamp(max=self.points - 1)
        return (k + 1) / self.points - _EDGE


class Weighting(ABC):
    """What a state weighs, lambda(t) >= 0 per image; subclasses are final."""

    @abstractmethod
    def __call__(self, noised: Noised, process: Process) -> Tensor | None:
        """lambda, (images,), float64; equal where times are, so one number per group. None: 1 everywhere."""


@final
@dataclass(frozen=True)
class Unweighted(Weighting):
    """lambda = 1."""

    def __call__(self, noised: Noised, process: Process) -> None:
        return None


@final
@dataclass(frozen=True)
class MinSNR(Weighting):
    """lambda = min(SNR, gamma) on the error of x0: min(1, gamma / SNR) for epsilon, min(SNR, gamma) / (SNR + 1) for v.

    arXiv 2303.09556, equation 8; gamma = 5 there.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma = {self.gamma}: expected a positive number")

    def __call__(self, noised: Noised, process: Process) -> Tensor:
        return (self.gamma / noised.snr.double()).clamp(max=1) * process.epsilon_share(noised)


@final
@dataclass(frozen=True)
class InverseSNR(Weighting):
    """lambda = 1 + (s - mean) / (max - mean), s = 1 / sqrt(SNR): from about 0.75 to 2, and 1 on average.

    Rethinking DPO, arXiv 2505.18736: 1 + norm(1 / sqrt(SNR)). The norm is not spelt out; this one, over the steps of
    the schedule that are not pure noise, gives the range that the paper plots (0.742 to 2 for Stable Diffusion's).
    """

    def __call__(self, noised: Noised, process: Process) -> Tensor:
        roots = process.noise_to_signal()
        finite = roots[np.isfinite(roots)]
        s = noised.snr.double().rsqrt().clamp(max=finite.max())
        return 1 + (s - finite.mean()) / (finite.max() - finite.mean())


@final
@dataclass(frozen=True)
class AsEpsilon(Weighting):
    """lambda = what makes the error one of the noise: (1 - t)^2 for a flow, alpha-bar for v, SNR for x0.

    VideoAlign, arXiv 2501.13918: the strict beta_t = beta (1 - t)^2 of flow DPO, beside which a constant did better.
    """

    def __call__(self, noised: Noised, process: Process) -> Tensor:
        return process.epsilon_share(noised)

"""Forward processes: whoever draws the noise returns the target.

A process turns clean latents, noise and time into `Noised`: the noisy input *and* what the denoiser should say of it,
made in one call, so that they cannot come from different draws.
"""

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from diffalign.streams import normal, stream

EPSILON, V, SAMPLE = "epsilon", "v_prediction", "sample"


@dataclass(frozen=True)
class Noised:
    """Noisy latents with their target.

    x_t, target: (images, channels, height, width). t: (images,), integer steps for VP, in (0, 1) for flow.
    snr: (images,), signal-to-noise ratio in power.
    """

    x_t: Tensor
    target: Tensor
    t: Tensor
    snr: Tensor


class Process(ABC):
    """How clean latents become noise; subclasses are final."""

    @abstractmethod
    def time(self, u: Tensor) -> Tensor:
        """Quantile u in [0, 1) -> time."""

    @abstractmethod
    def noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Noised:
        """Latents (images, c, h, w), noise of the same shape and time (images,) -> `Noised`."""

    @property
    @abstractmethod
    def restates(self) -> bool:
        """Whether the target's parametrisation is another than the network's; only then does `express` read x_t."""

    @abstractmethod
    def express(self, output: Tensor, noised: Noised) -> Tensor:
        """The network's output in the parametrisation of `noised.target`."""

    @abstractmethod
    def model_time(self, t: Tensor) -> Tensor:
        """Time as the denoiser expects it."""

    @abstractmethod
    def epsilon_share(self, noised: Noised) -> Tensor:
        """Squared error of the noise / squared error of the target, (images,), float64."""

    @abstractmethod
    def noise_to_signal(self) -> np.ndarray:
        """1 / sqrt(SNR) over all steps of the schedule, or over 1000 equal times, float64; infinite at pure noise."""


@functools.cache
def alphas_cumprod(schedule: str, start: float, end: float, steps: int, zero_terminal_snr: bool) -> np.ndarray:
    """Cumulative product of 1 - beta per step, float64, (steps,); the schedules are those of diffusers by name.

    `zero_terminal_snr` shifts and scales sqrt(alpha-bar) so that the last step is pure noise (arXiv 2305.08891,
    algorithm 1).
    """
    if schedule == "linear":
        betas = np.linspace(start, end, steps)
    elif schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, steps) ** 2
    elif schedule == "squaredcos_cap_v2":
        bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    else:
        raise ValueError(f"beta schedule {schedule!r}: expected linear, scaled_linear or squaredcos_cap_v2")
    bars = np.cumprod(1 - betas)
    if zero_terminal_snr:
        root = np.sqrt(bars)
        bars = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return bars


@final
@dataclass(frozen=True)
class VP(Process):
    """x_t = sqrt(a) x0 + sqrt(1 - a) eps, a = alpha-bar_t; the target is eps, v = sqrt(a) eps - sqrt(1 - a) x0, or x0.

    `network` is what the denoiser outputs, `prediction` what the error is measured in; where they differ the output is
    re-expressed exactly, e.g. v = (eps - sqrt(1 - a) x_t) / sqrt(a), so that the v error is the epsilon error / a.
    """

    schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    zero_terminal_snr: bool = False
    network: str = EPSILON
    prediction: str = EPSILON

    def __post_init__(self) -> None:
        for name in (self.network, self.prediction):
            if name not in (EPSILON, V, SAMPLE):
                raise ValueError(f"prediction type {name!r}: expected {EPSILON}, {V} or {SAMPLE}")

    @property
    def bars(self) -> np.ndarray:
        """alpha-bar per step, float64."""
        return alphas_cumprod(self.schedule, self.beta_start, self.beta_end, self.steps, self.zero_terminal_snr)

    def time(self, u: Tensor) -> Tensor:
        return (u.double() * self.steps).long().clamp(max=self.steps - 1)

    def roots(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha-bar_t) and sqrt(1 - alpha-bar_t) per image, shaped and typed to multiply `like`."""
        bar = _bars(self, t.device)[t]
        return tuple(r.to(like.dtype)[:, None, None, None] for r in (bar.sqrt(), (1 - bar).sqrt()))

    def noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Noised:
        a, s = self.roots(t, x0)
        target = {EPSILON: eps, SAMPLE: x0}.get(self.prediction)
        if target is None:
            target = a * eps - s * x0
        bar = _bars(self, t.device)[t]
        snr = bar / (1 - bar)
        return Noised(a * x0 + s * eps, target, t, snr.to(x0.dtype))

    @property
    def restates(self) -> bool:
        return self.network != self.prediction

    def express(self, output: Tensor, noised: Noised) -> Tensor:
        if not self.restates:
            return output
        a, s = self.roots(noised.t, output)
        x_t = noised.x_t.to(output.dtype)
        if self.network == EPSILON:
            x0, eps = (x_t - s * output) / a, output
        elif self.network == V:
            x0, eps = a * x_t - s * output, s * x_t + a * output
        else:
            x0, eps = output, (x_t - a * output) / s
        return {EPSILON: eps, SAMPLE: x0, V: a * eps - s * x0}[self.prediction]

    def model_time(self, t: Tensor) -> Tensor:
        return t

    def epsilon_share(self, noised: Noised) -> Tensor:
        snr = noised.snr.double()
        return {EPSILON: torch.ones_like(snr), V: snr / (1 + snr), SAMPLE: snr}[self.prediction]

    def noise_to_signal(self) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.sqrt((1 - self.bars) / self.bars)


@functools.cache
def _bars(process: VP, device: torch.device) -> Tensor:
    """alpha-bar per step on a device: sent there once, as every copy from the host is waited for."""
    return torch.from_numpy(process.bars).to(device)


@final
@dataclass(frozen=True)
class Flow(Process):
    """x_t = (1 - t) x0 + t eps, target = velocity eps - x0, t in (0, 1); the denoiser is told `scale` * t."""

    scale: float = 1000.0

    def time(self, u: Tensor) -> Tensor:
        return u

    def noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Noised:
        w = t.to(x0.dtype)[:, None, None, None]
        return Noised((1 - w) * x0 + w * eps, eps - x0, t, (((1 - t) / t) ** 2).to(x0.dtype))

    @property
    def restates(self) -> bool:
        return False

    def express(self, output: Tensor, noised: Noised) -> Tensor:
        return output

    def model_time(self, t: Tensor) -> Tensor:
        return self.scale * t

    def epsilon_share(self, noised: Noised) -> Tensor:
        return (1 - noised.t.double()) ** 2

    def noise_to_signal(self) -> np.ndarray:
        t = (np.arange(1000) + 0.5) / 1000
        return t / (1 - t)


def draw_time(seed: int, group: str, draw: int) -> float:
    """The uniform number in (0, 1) behind the time of one group at one visit; one time per group."""
    return float(np.clip(stream("time", seed, group, draw).random(), 1e-6, 1 - 1e-6))


def draw_noise(seed: int, group: str, draw: int, image: str | None, shape: tuple[int, ...]) -> np.ndarray:
    """The noise of one image at one visit, float32; `image` is None where a group shares its noise."""
    names = (group, draw) if image is None else (group, draw, image)
    return normal("noise", seed, *names, shape=shape)

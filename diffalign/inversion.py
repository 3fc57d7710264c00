"""The other way to reach x_t: DDIM inversion of x0, exactly to t, with the noise that it implies as the target."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from diffalign.diffusion import VP, Noised, Process
from diffalign.records import InputError

# (x_t of some images, their integer times, their places in the batch) -> the noise in x_t
Epsilon = Callable[[Tensor, Tensor, Tensor], Tensor]
# number of the step -> standard normal noise for the whole batch
Draw = Callable[[int], Tensor]


@final
@dataclass(frozen=True)
class Inversion:
    """x_b = sqrt(a_b) (x_a - sqrt(1 - a_a) eps) / sqrt(a_a) + sqrt(1 - a_b) eps from clean x0 up to t, along a grid.

    `steps` cuts the whole schedule into so many parts (0: no inversion, x_t is forward noise); a state at t walks those
    below t and one partial step that ends at t. `renoise` fixed-point iterations look again from where a step arrived,
    and the mean of all looks is used (ReNoise, arXiv 2403.14602). `noise` times the standard deviation of DDPM's
    posterior between the two levels is added as independent noise after each step. `by` says who inverts, `guidance`
    how strongly (1: the conditional prediction alone).

    `legacy` is the grid of the published code of DDIM-InPO and SmPO instead: levels 1 - T/n, 1, 1 + T/n, ..., each
    step told the level where it starts, first and last alpha-bar as there, so that a state overshoots t by up to T/n
    and is taken for one at t all the same. InPO (arXiv 2503.18454) is steps = 10, noise = 0.1; SmPO (arXiv
    2506.02698) steps = 10 (SDXL) or 5 (SD1.5), renoise = 1; both by the policy without guidance. Cost: up to
    `steps` * (1 + `renoise`) forward passes without gradient per image, twice that with guidance.
    """

    steps: int = 0
    renoise: int = 0
    noise: float = 0.0
    by: Literal["policy", "reference"] = "policy"
    guidance: float = 1.0
    legacy: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0 or self.renoise < 0 or not (0 <= self.noise < math.inf and 0 <= self.guidance < math.inf):
            raise ValueError(f"{self}: expected numbers of at least 0")
        others = (self.renoise, self.noise, self.by, self.guidance, self.legacy)
        if self.steps == 0 and others != (0, 0.0, "policy", 1.0, False):
            raise ValueError(f"{self}: steps = 0 means no inversion, so nothing else may be set")


def check(inversion: Inversion, process: Process) -> None:
    """Raise InputError in one line where states of this process cannot be inverted so."""
    if inversion.steps and not isinstance(process, VP):
        raise InputError(
            f"states.inversion.steps = {inversion.steps}: DDIM inversion is defined for variance-preserving models, "
            f"and this one is a flow; set it to 0"
        )
    if inversion.steps and inversion.steps > process.steps:
        raise InputError(f"states.inversion.steps = {inversion.steps}: this model has {process.steps} steps")


def levels(inversion: Inversion, steps: int) -> list[int]:
    """The grid of levels, lowest first; -1 is x0 itself (`legacy`: the published grid, which starts further down)."""
    n = inversion.steps
    if inversion.legacy:
        stride = steps // n
        return [1 + stride * i for i in range(-1, n)]
    return [round(steps * i / n) - 1 for i in range(n + 1)]


@torch.no_grad()
def invert(inversion: Inversion, process: VP, epsilon: Epsilon, x0: Tensor, t: Tensor, draw: Draw) -> Noised:
    """x_t by inversion of x0, and the target of the noise that it implies, eps* = (x_t - sqrt(a) x0) / sqrt(1 - a).

    x0: (images, c, h, w). t: (images,), integer, any mixture. eps* is not of unit variance at small t, where the
    network's own idea of the noise stands for it.
    """
    x = x0.clone()
    for number, (lower, upper) in enumerate(itertools.pairwise(levels(inversion, process.steps))):
        rows = (t > lower).nonzero()[:, 0]
        if not len(rows):
            break
        end = torch.full_like(t[rows], upper) if inversion.legacy else t[rows].clamp(max=upper)
        x[rows] = _step(inversion, process, epsilon, x[rows], lower, end, rows)
        if inversion.noise:
            x[rows] += inversion.noise * _deviation(inversion, process, lower, end).to(x) * draw(number)[rows].to(x)
    a, s = process.roots(t, x0)
    return process.noise(x0, (x - a * x0) / s, t)


def _step(
    inversion: Inversion, process: VP, epsilon: Epsilon, x: Tensor, lower: int, end: Tensor, rows: Tensor
) -> Tensor:
    start = torch.full_like(end, lower)
    low, high = (_bar(inversion, process, level) for level in (start, end))

    def move(eps: Tensor) -> Tensor:
        clean = (x - (1 - low).sqrt().to(x) * eps) / low.sqrt().to(x)
        return high.sqrt().to(x) * clean + (1 - high).sqrt().to(x) * eps

    # a network knows no level below its first; the published code tells it the negative one all the same
    told, again = (start, start) if inversion.legacy else (start.clamp(min=0), end)
    looks = [epsilon(x, told, rows)]
    for _ in range(inversion.renoise):
        looks.append(epsilon(move(looks[-1]), again, rows))
    return move(torch.stack(looks).mean(0) if inversion.renoise else looks[0])


def _bar(inversion: Inversion, process: VP, level: Tensor) -> Tensor:
    bars = torch.from_numpy(process.bars).to(level.device)
    clean = bars[0] if inversion.legacy else torch.ones_like(bars[0])
    return torch.where(level < 0, clean, bars[level.clamp(min=0)])[:, None, None, None]


def _deviation(inversion: Inversion, process: VP, lower: int, end: Tensor) -> Tensor:
    """Standard deviation of DDPM's posterior q(x_lower | x_end, x0), (images, 1, 1, 1); 0 at the clean end."""
    low, high = (_bar(inversion, process, level) for level in (torch.full_like(end, lower), end))
    return ((1 - low) / (1 - high) * (1 - high / low)).sqrt()

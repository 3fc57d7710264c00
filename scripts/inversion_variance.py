"""Variance of the noise that inverted states imply, per time: python scripts/inversion_variance.py MODEL PAIRS

Forward noise has variance 1 at every time. Inverted states need not imply such noise: at small t it is what the network
takes for noise in a clean picture, and on the published grid it is scaled by how far the state overshot t.
"""

import dataclasses
from pathlib import Path

import torch
import tyro

from diffalign import backbones, material, states
from diffalign.dataset import Dataset, Visit
from diffalign.inversion import Inversion
from diffalign.objectives import DPO
from diffalign.run import Run, States

WAYS = {
    "exact": Inversion(steps=10),
    "with a second look": Inversion(steps=10, renoise=1),
    "with noise": Inversion(steps=10, noise=0.1),
    "published": Inversion(steps=10, legacy=True),
}
TIMES = (0, 2, 10, 50, 100, 200, 400, 600, 800, 950, 999)


def main(
    model: str, pairs: Path, /, *, resolution: int = 64, groups: int = 16, cache: Path = Path("runs/inversion")
) -> None:
    """Print mean and variance of eps* over the pixels of so many pairs, per time and way of inverting."""
    exact = States(inversion=WAYS["exact"])
    run = Run(model, DPO(), data=str(pairs), resolution=resolution, cache=str(cache), states=exact)
    backbone, data = backbones.load(model), Dataset(pairs)
    backbone.process = states.process(run.states, backbone.process)
    found = material.prepare(run, data, backbone)
    visits = data.visits(0, 0, min(groups, len(data.groups)))
    x0, _ = states.clean(run, backbone.process, found, visits)
    given = states.conditioning(run, found, visits)
    epsilon = states.epsilon(backbone, backbone.denoiser, given, found.negative, 1.0)
    print(f"{len(x0)} images; variance of eps* (1 for forward noise)\n{'t':>5}" + "".join(f"{w:>20}" for w in WAYS))
    for t in TIMES:
        cells = [variance(run, way, backbone.process, epsilon, x0, t, visits) for way in WAYS.values()]
        print(f"{t:>5}" + "".join(f"{c:>20.3f}" for c in cells))


def variance(run: Run, way: Inversion, process, epsilon, x0: torch.Tensor, t: int, visits: list[Visit]) -> float:
    inverting = dataclasses.replace(run, states=States(inversion=way))
    process = dataclasses.replace(process, prediction="epsilon")
    return states.inverted(inverting, process, epsilon, x0, torch.full((len(x0),), t), visits).target.var().item()


if __name__ == "__main__":
    tyro.cli(main)

"""Visits -> errors: the forward passes of policy and past selves behind a step."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffalign import dataset, measuring, states
from diffalign.backbones.base import Backbone, Conditioning, residuals
from diffalign.dataset import Dataset, Visit
from diffalign.diffusion import Noised, Process
from diffalign.objectives.base import Errors, Judgement, sum_and_count, to
from diffalign.policy import Policy
from diffalign.run import Run
from diffalign.states import Material


@dataclass(frozen=True)
class Passes:
    """What the networks are asked, and with what: `denoiser` is the policy's, wrapped or not."""

    run: Run
    data: Dataset
    backbone: Backbone
    process: Process
    material: Material
    policy: Policy
    denoiser: nn.Module
    device: torch.device

    def measure(self, visits: Sequence[Visit]) -> tuple[Errors, Judgement, Tensor]:
        """Errors of the images of the visits, what is known about them, and the weight of each judgement's loss."""
        run, objective, device = self.run, self.run.objective, self.device
        conditioning = self.conditioning(visits)
        noised = self.noised(visits, conditioning)
        judgement = to(dataset.judge(visits, self.data.kind), device)
        reference = None if objective.reference_free else self.past("reference", noised, conditioning)
        old = None
        if objective.needs_old:
            same = run.old == run.reference and reference is not None
            old = reference if same else self.past("old", noised, conditioning)
        names = [name for v in visits for name in (v.group.id, v.draw)]
        with self._narrow(), self.policy.learning(*names):
            new = residuals(self.backbone, self.denoiser, noised, conditioning)
        scale = run.states.weighting(noised, self.process)
        if run.states.weighs == "errors":
            weight = judgement.weight
        else:
            weight, scale = judgement.weight * judgement.mean(scale), None
        return measuring.errors(new, reference, old, noised, judgement, objective.needs, scale), judgement, weight

    def _narrow(self) -> torch.autocast:
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.run.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def past(self, name: str, noised: Noised, conditioning: Conditioning) -> Tensor:
        with self.policy.past(name, self.denoiser) as denoiser, self._narrow():
            return residuals(self.backbone, denoiser, noised, conditioning)

    def conditioning(self, visits: Sequence[Visit]) -> Conditioning:
        rows = states.conditioning(self.run, self.material, visits)
        return {name: value.to(self.device, non_blocking=True) for name, value in rows.items()}

    def noised(self, visits: Sequence[Visit], conditioning: Conditioning) -> Noised:
        run, inversion = self.run, self.run.states.inversion
        x0, t = (v.to(self.device) for v in states.clean(run, self.process, self.material, visits))
        if not inversion.steps:
            return states.forward(run, self.process, x0, t, visits)
        by_reference = inversion.by == "reference"
        past = self.policy.reference(self.denoiser) if by_reference else contextlib.nullcontext(self.denoiser)
        with past as denoiser, self._narrow():
            negative = self.material.negative
            epsilon = states.epsilon(self.backbone, denoiser, conditioning, negative, inversion.guidance)
            return states.inverted(run, self.process, epsilon, x0, t, visits)

    def winner_errors(self, visits: Sequence[Visit]) -> Tensor:
        """(sum, how many) of the reference's errors of the winners at their forward noise, (2,), float64."""
        x0, t = (v.to(self.device) for v in states.clean(self.run, self.process, self.material, visits))
        noised = states.forward(self.run, self.process, x0, t, visits)
        squares = self.past("reference", noised, self.conditioning(visits)).square().flatten(1).mean(1)
        winners = to(dataset.judge(visits, self.data.kind), self.device).winner(squares).double()
        return sum_and_count(winners)

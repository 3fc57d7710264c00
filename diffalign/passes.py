"""Visits -> errors: the forward passes of policy and past selves behind a step."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from diffalign import dataset, measuring, states, wrapping
from diffalign.backbones.base import Backbone, Conditioning, residuals
from diffalign.bank import Bank
from diffalign.dataset import Dataset, Visit
from diffalign.diffusion import Noised, Process
from diffalign.objectives.base import Errors, Judgement, sum_and_count, to
from diffalign.policy import Policy
from diffalign.run import Run
from diffalign.states import Material


@dataclass(frozen=True)
class Batch:
    """A micro-batch, ready for the policy.

    weight: (judgements,), on the host unless the time of its group has a say. scale: (images,) factor of the errors,
    or None. reference, old: residuals, or errors where those are known, or None.
    """

    visits: Sequence[Visit]
    noised: Noised
    conditioning: Conditioning
    judgement: Judgement
    weight: Tensor
    scale: Tensor | None
    reference: Tensor | None
    old: Tensor | None


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
    bank: Bank | None = None

    def prepare(self, visits: Sequence[Visit]) -> Batch:
        """The visits as the policy will be asked about them, and what its past selves said of them."""
        run, objective = self.run, self.run.objective
        conditioning = self.conditioning(visits)
        noised = self.noised(visits, conditioning)
        known = dataset.judge(visits, self.data.kind)
        judgement = to(known, self.device)
        reference = None if objective.reference_free else self._reference(visits, noised, conditioning)
        old = None
        if objective.needs_old:
            alone = reference is not None and reference.ndim == 1 and "policy_old" in objective.needs
            same = run.old == run.reference and reference is not None and not alone
            old = reference if same else self.past("old", noised, conditioning)
        scale = run.states.weighting(noised, self.process)
        if run.states.weighs == "errors":
            return Batch(visits, noised, conditioning, judgement, known.weight, scale, reference, old)
        weight = known.weight if scale is None else judgement.weight * judgement.mean(scale)
        return Batch(visits, noised, conditioning, judgement, weight, None, reference, old)

    def residuals(self, batch: Batch, start: int = 0, end: int | None = None) -> Tensor:
        """The policy's residuals of the images of a batch from `start` to `end`."""
        names = [name for v in batch.visits for name in (v.group.id, v.draw)]
        asked = names + [start] * bool(start)
        with self.narrow(), self.policy.learning(*asked):
            return residuals(self.backbone, self.denoiser, *cut(batch.noised, batch.conditioning, start, end))

    def errors(self, batch: Batch, new: Tensor) -> Errors:
        """The errors behind the policy's residuals `new` and what its past selves said."""
        given = (batch.reference, batch.old, batch.noised, batch.judgement)
        return measuring.errors(new, *given, self.run.objective.needs, batch.scale)

    def measure(self, visits: Sequence[Visit]) -> tuple[Errors, Judgement, Tensor]:
        """Errors of the images of the visits, what is known about them, and the weight of each judgement's loss."""
        batch = self.prepare(visits)
        return self.errors(batch, self.residuals(batch)), batch.judgement, batch.weight

    def alone(self, visits: Sequence[Visit]) -> Tensor:
        """The policy's errors of the visits' images; nobody else is asked."""
        conditioning = self.conditioning(visits)
        noised = self.noised(visits, conditioning)
        with self.narrow():
            return measuring.square(residuals(self.backbone, self.denoiser, noised, conditioning))

    def refer(self, visits: Sequence[Visit]) -> None:
        """Put the reference errors of the visits into the bank, unless they are there."""
        if self.bank is not None and self.bank.read(visits) is None:
            conditioning = self.conditioning(visits)
            self._reference(visits, self.noised(visits, conditioning), conditioning)

    def _reference(self, visits: Sequence[Visit], noised: Noised, conditioning: Conditioning) -> Tensor:
        """The reference's residuals, or its errors where a bank keeps those."""
        if self.bank is None:
            return self.past("reference", noised, conditioning)
        if (known := self.bank.read(visits)) is not None:
            return states.send(known, self.device)
        errors = measuring.square(self.past("reference", noised, conditioning))
        self.bank.write(visits, errors)
        return errors

    @property
    def dtype(self) -> torch.dtype:
        """That of the denoiser's weights, in which it is told everything."""
        return wrapping.dtype(self.denoiser)

    def narrow(self) -> contextlib.AbstractContextManager[None]:
        """float16 keeps its weights wide; in bfloat16 all of them are narrow, and casts by the way would only cost."""
        if self.run.precision != "float16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.float16)

    def past(self, name: str, noised: Noised, conditioning: Conditioning) -> Tensor:
        """Residuals of a past self, in the policy's own chunks, so that both sides are rounded alike."""
        chunk = self.run.chunk or len(noised.t)
        parts = [cut(noised, conditioning, s, s + chunk) for s in range(0, len(noised.t), chunk)]
        with self.policy.past(name, self.denoiser) as denoiser, self.narrow():
            found = [residuals(self.backbone, denoiser, *part) for part in parts]
        return found[0] if len(found) == 1 else torch.cat(found)

    def conditioning(self, visits: Sequence[Visit]) -> Conditioning:
        """What the denoiser is told of each image; a text goes to the device once, however many images share it."""
        rows, places, sizes = states.shown(self.run, self.material, visits)
        place, dtype = states.send(torch.tensor(places), self.device), self.dtype
        told = {name: states.send(value.to(dtype), self.device)[place] for name, value in rows.items()}
        return told | {name: states.send(value, self.device) for name, value in sizes.items()}

    def noised(self, visits: Sequence[Visit], conditioning: Conditioning) -> Noised:
        """The noisy states of the visits' images, and the targets beside them."""
        run, inversion = self.run, self.run.states.inversion
        if not inversion.steps:
            return self._forward(visits)
        x0, t = (states.send(v, self.device) for v in states.clean(run, self.process, self.material, visits))
        by_reference = inversion.by == "reference"
        past = self.policy.reference(self.denoiser) if by_reference else contextlib.nullcontext(self.denoiser)
        with past as denoiser, self.narrow():
            negative = self.material.negative
            epsilon = states.epsilon(self.backbone, denoiser, conditioning, negative, inversion.guidance)
            return states.inverted(run, self.process, epsilon, x0, t, visits)

    def _forward(self, visits: Sequence[Visit]) -> Noised:
        """The states by forward noise, made where latents and noise lie, on the host.

        x_t is rounded there to what the network sees, where nobody else reads it.
        """
        x0, t = states.clean(self.run, self.process, self.material, visits)
        made = states.forward(self.run, self.process, x0, t, visits)
        if not self.process.restates:
            made = replace(made, x_t=made.x_t.to(self.dtype))
        return Noised(*(states.send(getattr(made, f.name), self.device) for f in fields(made)))

    def winner_errors(self, visits: Sequence[Visit]) -> Tensor:
        """(sum, how many) of the reference's errors of the winners at their forward noise, (2,), float64."""
        squares = measuring.square(self.past("reference", self._forward(visits), self.conditioning(visits)))
        winners = to(dataset.judge(visits, self.data.kind), self.device).winner(squares).double()
        return sum_and_count(winners)


def cut(noised: Noised, conditioning: Conditioning, start: int, end: int | None) -> tuple[Noised, Conditioning]:
    """The images from `start` to `end`."""
    if not start and (end is None or end >= len(noised.t)):
        return noised, conditioning
    part = Noised(*(getattr(noised, f.name)[start:end] for f in fields(noised)))
    return part, {name: value[start:end] for name, value in conditioning.items()}

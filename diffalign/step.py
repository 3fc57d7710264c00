"""The gradients of one optimizer step, micro-batch by micro-batch. Nothing here waits for the device."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffalign import optimizers
from diffalign.dataset import Visit
from diffalign.measuring import Told
from diffalign.passes import Batch, Passes

Quiet = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class Share:
    """What of a step's loss a micro-batch is: sum(w loss) / `weight` * `world` * `scale`, with the coupled statistic.

    `weight` is the sum of the weights over the whole optimizer batch. `world` undoes the mean that processes take of
    their gradients, `scale` keeps small ones from vanishing in float16. Gradients are added up on the masters, so in
    float32, after each backward pass, whatever the number of processes.
    """

    weight: float
    coupled: Tensor | None
    world: int
    scale: float = 1.0

    def coefficients(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """What the gradient of each judgement's loss is multiplied by, where `weights` lie."""
        whole = torch.full((), self.world * self.scale, dtype=dtype, device=weights.device)
        return whole / self.weight * weights.to(dtype)


def gradients(passes: Passes, parts: Sequence[Sequence[Visit]], share: Share, quiet: Quiet) -> list[Told]:
    """Add the gradients of the micro-batches' losses; what each of them leaves to measure.

    `quiet` is entered around all backward passes but the last: no gradients are exchanged before it. They are those of
    this process, or sharded the mean of all.
    """
    last = len(parts) - 1
    return [learn(passes, passes.prepare(part), share, quiet, number == last) for number, part in enumerate(parts)]


def learn(passes: Passes, batch: Batch, share: Share, quiet: Quiet, last: bool) -> Told:
    """`gradients` of one micro-batch.

    With `run.chunk` its images are passed in chunks: all residuals r without graph, then dL/dr by the objective, then
    chunk by chunk r backward from dL/dr. Exact, for one more forward pass, whatever the objective couples.
    """
    size = len(batch.noised.t)
    chunk = passes.run.chunk or size
    if chunk >= size:
        with contextlib.nullcontext() if last else quiet():
            told = backward(passes, batch, share, passes.residuals(batch))
        optimizers.collect(passes.policy.parameters, passes.policy.masters)
        return told
    starts = range(0, size, chunk)
    with torch.no_grad():
        new = torch.cat([passes.residuals(batch, s, s + chunk) for s in starts])
    told = backward(passes, batch, share, new.requires_grad_())
    assert new.grad is not None
    for s in starts:
        final = last and s == starts[-1]
        with contextlib.nullcontext() if final else quiet():
            passes.residuals(batch, s, s + chunk).backward(new.grad[s : s + chunk])
        optimizers.collect(passes.policy.parameters, passes.policy.masters)
    return told


def backward(passes: Passes, batch: Batch, share: Share, new: Tensor) -> Told:
    """Loss of the policy's residuals `new`, and its gradients from there: no sum is made that only a log would read."""
    errors = passes.errors(batch, new)
    outcome = passes.run.objective(errors, batch.judgement, share.coupled)
    counts = share.coefficients(batch.weight, outcome.loss.dtype)
    outcome.loss.backward(counts.to(outcome.loss.device, non_blocking=True))
    return Told(errors.detached(), batch.judgement, outcome.reward, outcome.loss.detach(), batch.weight, share.weight)


def named(parts: Sequence[Sequence[Visit]], place: int) -> str:
    """The error of the image at a place among all of a step's, in words; "" behind them, where the norm is."""
    images = [(image, v.group) for part in parts for v in part for image in v.group.images]
    if place >= len(images):
        return ""
    image, group = images[place]
    told = ", ".join(r.id for r in group.judgements[:3])
    return f"the error of image {image} (group {group.id}, judgements {told})"

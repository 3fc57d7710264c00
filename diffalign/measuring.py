"""Residuals -> errors; outcomes -> metrics, computed once and identically for every objective."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffalign.diffusion import Noised
from diffalign.objectives.base import Advantages, Errors, Judgement, Pairs, Ranking, Unpaired

NAMES = ("loss", "margin", "accuracy", "chosen_error", "rejected_error")


def errors(
    new: Tensor,
    reference: Tensor | None,
    old: Tensor | None,
    noised: Noised,
    judgement: Judgement,
    needs: tuple[str, ...],
    scale: Tensor | None = None,
) -> Errors:
    """Mean squared residuals per image, and the mean inner products an objective needs, times `scale` where given.

    new, reference, old: residuals (images, c, h, w), float32 or float64; reference and old without gradient, or None,
    or their mean squares, (images,), where those are known and `needs` reads no more.
    scale: (images,), equal within a group.
    """
    cross = {}
    if "policy_reference" in needs:
        cross["policy_reference"] = _mean(new * reference)
    if "policy_old" in needs:
        cross["policy_old"] = _mean(new * old)
    if "chosen_rejected" in needs and isinstance(judgement, Pairs):
        cross["chosen_rejected"] = _mean(new[judgement.chosen] * new[judgement.rejected])
    squares = [None if r is None else square(r) for r in (new, reference, old)]
    if scale is not None:
        weight = scale.to(new.dtype)
        cross = {n: (weight[judgement.chosen] if n == "chosen_rejected" else weight) * v for n, v in cross.items()}
        squares = [None if s is None else weight * s for s in squares]
    return Errors(*squares, cross=cross, t=noised.t, snr=noised.snr)


def square(residuals: Tensor) -> Tensor:
    """Mean squares per image, (images,); of what is that already, itself."""
    return residuals if residuals.ndim == 1 else _MeanSquare.apply(residuals)


class _MeanSquare(torch.autograd.Function):
    """Mean of r^2 per image; its gradient 2 r / n in two kernels, where autograd's own takes four over all pixels."""

    @staticmethod
    def forward(context: Any, residuals: Tensor) -> Tensor:
        context.save_for_backward(residuals)
        return _mean(residuals.square())

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (residuals,) = context.saved_tensors
        shape = residuals.shape[1:]
        return residuals * (gradient / (shape.numel() / 2)).view(-1, *(1 for _ in shape))


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


def contrast(judgement: Judgement) -> tuple[Tensor, Tensor, Tensor]:
    """(first, second, decided): indices of image pairs, and whether the judgement says that the first is better.

    How many pairs are decided is not asked, as that would wait for the device.
    """
    if isinstance(judgement, Pairs):
        return judgement.chosen, judgement.rejected, judgement.p != 0.5
    if isinstance(judgement, Unpaired):
        values, group = judgement.desirable, torch.zeros_like(judgement.desirable)
    elif isinstance(judgement, Ranking):
        values, group = judgement.scores, judgement.group
    else:
        assert isinstance(judgement, Advantages)
        values, group = judgement.values, judgement.group
    better = (values[:, None] > values[None, :]) & (group[:, None] == group[None, :])
    every = torch.arange(len(values), device=values.device)
    return every.repeat_interleave(len(values)), every.repeat(len(values)), better.flatten()


@dataclass(frozen=True)
class Told:
    """What a micro-batch leaves to be measured, without gradient.

    loss, weight: (judgements,), the weight on the host or beside it. whole: the weights of the whole step, summed.
    """

    errors: Errors
    judgement: Judgement
    reward: Tensor
    loss: Tensor
    weight: Tensor
    whole: float


def sums(told: Told) -> Tensor:
    """Additive sums behind the metrics, float64, (6,): the loss's share, four sums over contrasted pairs, and their
    count.

    margin: implicit reward of the better image minus that of the worse. accuracy: whether it is positive, exact ties
    a half. chosen_error, rejected_error: policy error minus reference error of the better and of the worse image.
    """
    better, worse, decided = contrast(told.judgement)
    policy, reference = told.errors.policy, told.errors.reference
    images = torch.stack([told.reward, policy if reference is None else policy - reference])
    first, second = images[:, better], images[:, worse]
    margin = first[0] - second[0]
    values = torch.stack([margin, 0.5 * (1 + margin.sign()), first[1], second[1], torch.ones_like(margin)])
    # several processes come here at every step, and must not wait for the device
    loss = (told.weight.to(told.loss, non_blocking=True) * told.loss).sum() / told.whole
    return torch.cat([loss.double()[None], torch.where(decided, values, 0).sum(1, dtype=torch.float64)])


def first_bad(known: Tensor, steps: Sequence[tuple[int, Sequence[Errors], Tensor]]) -> Tensor:
    """(step, place) of the first number that was not finite, (2,), int64; (-1, -1) before there is one.

    `known` is the answer so far. steps: (number, errors of its micro-batches, the gradient's norm) of each step that
    was not looked at yet. A place is that of an image among all of its step's; the norm comes after them.
    """
    values, places = [], []
    for number, parts, norm in steps:
        start = 0
        for errors in parts:
            told, images = errors.known(), len(errors.policy)
            values += told
            places += [(number, start + i) for i in range(images)] * len(told)
            start += images
        values.append(norm[None])
        places.append((number, start))
    given, names = torch.cat(values), torch.tensor(places).to(known.device, non_blocking=True)
    wrong = (given - given) != 0  # of a number that is not finite it is NaN; isfinite takes twice the kernels
    found = names.index_select(0, wrong.view(torch.uint8).argmax()[None])[0]
    return torch.where((known[0] < 0) & wrong.any(), found, known)


def means(total: Tensor, *, reference_free: bool) -> dict[str, Tensor]:
    """The metrics behind summed `sums`; errors are relative to the reference and so left out where there is none."""
    values = torch.cat([total[:1], total[1:5] / total[5].clamp(min=1)])
    return {name: values[i] for i, name in enumerate(NAMES[:3] if reference_free else NAMES)}

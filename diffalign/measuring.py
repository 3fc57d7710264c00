"""Residuals -> errors; outcomes -> metrics, computed once and identically for every objective."""

import torch
from torch import Tensor

from diffalign.diffusion import Noised
from diffalign.objectives.base import Advantages, Errors, Judgement, Outcome, Pairs, Ranking, Unpaired

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
    weight = torch.ones_like(new[:, 0, 0, 0]) if scale is None else scale.to(new.dtype)
    cross = {}
    if "policy_reference" in needs:
        cross["policy_reference"] = weight * _mean(new * reference)
    if "policy_old" in needs:
        cross["policy_old"] = weight * _mean(new * old)
    if "chosen_rejected" in needs and isinstance(judgement, Pairs):
        chosen, rejected = judgement.chosen, judgement.rejected
        cross["chosen_rejected"] = weight[chosen] * _mean(new[chosen] * new[rejected])
    squares = [None if r is None else weight * square(r) for r in (new, reference, old)]
    return Errors(*squares, cross=cross, t=noised.t, snr=noised.snr)


def square(residuals: Tensor) -> Tensor:
    """Mean squares per image, (images,); of what is that already, itself."""
    return residuals if residuals.ndim == 1 else _mean(residuals.square())


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


def sums(errors: Errors, judgement: Judgement, outcome: Outcome, loss: Tensor) -> Tensor:
    """Additive sums behind the metrics, float64, (6,): the loss's share, four sums over contrasted pairs, and their
    count.

    margin: implicit reward of the better image minus that of the worse. accuracy: whether it is positive, exact ties
    a half. chosen_error, rejected_error: policy error minus reference error of the better and of the worse image.
    """
    better, worse, decided = contrast(judgement)
    margin = (outcome.reward[better] - outcome.reward[worse]).double()
    accuracy = 0.5 * (1 + margin.sign())
    gap = errors.policy.detach() if errors.reference is None else errors.policy.detach() - errors.reference
    values = (margin, accuracy, gap[better].double(), gap[worse].double(), torch.ones_like(margin))
    return torch.stack([loss.double(), *(torch.where(decided, v, 0).sum() for v in values)])


def first_bad(known: Tensor, values: Tensor, step: int, start: int) -> Tensor:
    """(step, place) of the first number that was not finite, (2,), int64; (-1, -1) before there is one.

    `known` is the answer so far; the places of these `values`, (n,), are counted from `start`.
    """
    finite = values.detach().isfinite()
    found = torch.stack([torch.full_like(known[0], step), start + (~finite).int().argmax()])
    return torch.where((known[0] < 0) & ~finite.all(), found, known)


def means(total: Tensor, *, reference_free: bool) -> dict[str, Tensor]:
    """The metrics behind summed `sums`; errors are relative to the reference and so left out where there is none."""
    values = torch.cat([total[:1], total[1:5] / total[5].clamp(min=1)])
    return {name: values[i] for i, name in enumerate(NAMES[:3] if reference_free else NAMES)}

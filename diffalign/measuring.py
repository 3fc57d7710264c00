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

    new, reference, old: residuals (images, c, h, w), float32 or float64; reference and old without gradient, or None.
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
    squares = [None if r is None else weight * _mean(r.square()) for r in (new, reference, old)]
    return Errors(*squares, cross=cross, t=noised.t, snr=noised.snr)


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


def contrast(judgement: Judgement) -> tuple[Tensor, Tensor]:
    """(better, worse): indices of all image pairs of which the judgement says that one is better; ties are left out."""
    if isinstance(judgement, Pairs):
        decided = judgement.p != 0.5
        return judgement.chosen[decided], judgement.rejected[decided]
    if isinstance(judgement, Unpaired):
        values, group = judgement.desirable, torch.zeros_like(judgement.desirable)
    elif isinstance(judgement, Ranking):
        values, group = judgement.scores, judgement.group
    else:
        assert isinstance(judgement, Advantages)
        values, group = judgement.values, judgement.group
    better = (values[:, None] > values[None, :]) & (group[:, None] == group[None, :])
    return better.nonzero(as_tuple=True)


def sums(errors: Errors, judgement: Judgement, outcome: Outcome, loss: Tensor) -> Tensor:
    """Additive sums behind the metrics, float64, (6,): the loss's share, four sums over contrasted pairs, and their
    count.

    margin: implicit reward of the better image minus that of the worse. accuracy: whether it is positive, exact ties
    a half. chosen_error, rejected_error: policy error minus reference error of the better and of the worse image.
    """
    better, worse = contrast(judgement)
    margin = (outcome.reward[better] - outcome.reward[worse]).double()
    accuracy = 0.5 * (1 + margin.sign())
    gap = errors.policy.detach() if errors.reference is None else errors.policy.detach() - errors.reference
    values = (margin, accuracy, gap[better].double(), gap[worse].double(), torch.ones_like(margin))
    return torch.stack([loss.double(), *(v.sum() for v in values)])


def means(total: Tensor, *, reference_free: bool) -> dict[str, Tensor]:
    """The metrics behind summed `sums`; errors are relative to the reference and so left out where there is none."""
    values = torch.cat([total[:1], total[1:5] / total[5].clamp(min=1)])
    return {name: values[i] for i, name in enumerate(NAMES[:3] if reference_free else NAMES)}

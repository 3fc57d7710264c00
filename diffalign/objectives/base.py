"""What an objective sees and says: errors per image and judgements in, loss per judgement and implicit rewards out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Errors:
    """Squared denoising errors, one per image: mean over channels and pixels, float32 (float64 when the network is).

    policy, reference, old: (images,). reference is None for reference-free objectives; old is the previous policy's.
    cross: mean inner products of residuals an objective `needs`, by name: "policy_reference", "policy_old" (images,),
    "chosen_rejected" (pairs,). t, snr: (images,).
    """

    policy: Tensor
    reference: Tensor | None = None
    old: Tensor | None = None
    cross: dict[str, Tensor] = field(default_factory=dict)
    t: Tensor | None = None
    snr: Tensor | None = None


class Judgement(ABC):
    """What is known about the images of a batch. `weight` (judgements,) multiplies the loss of each judgement."""

    weight: Tensor | None

    @abstractmethod
    def __len__(self) -> int:
        """How many judgements."""


@dataclass(frozen=True)
class Pairs(Judgement):
    """chosen, rejected: (pairs,) indices of images; p: (pairs,) P(chosen is better); score_gap: (pairs,) where known."""

    chosen: Tensor
    rejected: Tensor
    p: Tensor
    weight: Tensor | None = None
    score_gap: Tensor | None = None

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True)
class Unpaired(Judgement):
    """desirable: (images,) in [0, 1], one judgement per image of the batch, in its order."""

    desirable: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.desirable)


@dataclass(frozen=True)
class Ranking(Judgement):
    """scores: (images,) higher is better; group: (images,) number of the group, 0..groups-1. One judgement per group."""

    scores: Tensor
    group: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return int(self.group.max()) + 1 if len(self.group) else 0


@dataclass(frozen=True)
class Advantages(Judgement):
    """values: (images,) advantages; group: (images,) number of the group, 0..groups-1. One judgement per group."""

    values: Tensor
    group: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return int(self.group.max()) + 1 if len(self.group) else 0


@dataclass(frozen=True)
class Outcome:
    """loss: one per judgement. reward: (images,) implicit rewards, detached; their difference is the margin of a pair."""

    loss: Tensor
    reward: Tensor


class Objective(ABC):
    """(Errors, Judgement) -> Outcome. Subclasses are final frozen dataclasses: fields are hyper-parameters.

    `judgement`: the kind it learns from. `reference_free`: whether it ignores `Errors.reference`. `needs`: the inner products
    it reads from `Errors.cross`. A coupled objective reads a statistic of the whole optimizer batch: `gather` gives its
    additive sums for a part of the batch, and the call takes the total (or gathers from what it is given).
    """

    judgement: ClassVar[type[Judgement]] = Pairs
    reference_free: ClassVar[bool] = False
    coupled: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the residual inner products it reads; none unless said."""
        return ()

    @abstractmethod
    def __call__(self, errors: Errors, judgement: Judgement, total: Tensor | None = None) -> Outcome:
        """Loss per judgement; `total` is the sum of `gather` over the optimizer batch, for coupled objectives."""

    def gather(self, errors: Errors, judgement: Judgement) -> Tensor:
        """The additive sums behind the coupled statistic, (k,), without gradient; empty for objectives that have none."""
        return errors.policy.new_zeros(0)


def positive(**values: float) -> None:
    """Raise ValueError naming the first hyper-parameter that is not a positive finite number."""
    for name, value in values.items():
        if not (value > 0 and value < float("inf")):
            raise ValueError(f"{name} = {value}: expected a positive number")


def to(judgement: Judgement, device: torch.device) -> Judgement:
    """The judgement with its tensors on `device`."""
    moved = {f.name: getattr(judgement, f.name) for f in fields(judgement)}
    return type(judgement)(**{k: None if v is None else v.to(device, non_blocking=True) for k, v in moved.items()})

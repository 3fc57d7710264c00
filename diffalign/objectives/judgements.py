"""What is known about the images of a batch: pairs, desirability, rankings or advantages."""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor


class Judgement(ABC):
    """What is known about the images of a batch. `weight` (judgements,) multiplies the loss of each judgement.

    Values are checked where a judgement is made, on the host; `to` moves it without looking again.
    """

    weight: Tensor | None

    @abstractmethod
    def __len__(self) -> int:
        """How many judgements."""

    @abstractmethod
    def mean(self, values: Tensor) -> Tensor:
        """Per image -> per judgement: the mean over its images."""

    @abstractmethod
    def winner(self, values: Tensor) -> Tensor:
        """Per image -> per judgement: the value of its best image."""


@dataclass(frozen=True)
class Pairs(Judgement):
    """chosen, rejected: (pairs,) indices of images; p: (pairs,) P(chosen is better); score_gap: (pairs,) where known.

    score_gap is a scorer's score of the chosen image minus that of the rejected one, so it is negative where the scorer
    contradicts the label, and NaN where it is unknown. Raises ValueError if p is outside [0, 1] or a pair is one image.
    side: (pairs,), float32: 1 where the chosen image comes first and -1 where the rejected one does, if pair k is of
    the images 2k and 2k + 1; None otherwise.
    """

    chosen: Tensor
    rejected: Tensor
    p: Tensor
    weight: Tensor | None = None
    score_gap: Tensor | None = None
    side: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        within_unit("p", self.p)
        if (same := self.chosen == self.rejected).any():
            raise ValueError(f"pair {int(same.nonzero()[0])}: is one image twice; expected two images")
        place = torch.arange(len(self), device=self.chosen.device)
        if ((self.chosen // 2 == place) & (self.rejected // 2 == place)).all():
            object.__setattr__(self, "side", (self.rejected - self.chosen).float())
        _ = self.knows_gaps, self.certain

    def __len__(self) -> int:
        return len(self.chosen)

    @cached_property
    def certain(self) -> bool:
        """Whether every chosen image is certainly better, read once on the host."""
        return bool((self.p == 1).all())

    @cached_property
    def knows_gaps(self) -> bool:
        """Whether every pair has a score gap."""
        return self.score_gap is not None and not bool(self.score_gap.isnan().any())

    def mean(self, values: Tensor) -> Tensor:
        return 0.5 * (values[self.chosen] + values[self.rejected])

    def winner(self, values: Tensor) -> Tensor:
        """P v[chosen] + (1 - P) v[rejected]."""
        p = self.p.to(values.dtype)
        return p * values[self.chosen] + (1 - p) * values[self.rejected]

    def margin(self, reward: Tensor) -> Tensor:
        """r[chosen] - r[rejected]; of pairs that lie side by side by views, which take half the kernels."""
        if self.side is None or len(reward) != 2 * len(self):
            return reward[self.chosen] - reward[self.rejected]
        first, second = reward.unflatten(0, (-1, 2)).unbind(1)
        return self.side.to(reward.dtype) * (first - second)

    def apart(self) -> "Pairs":
        """The same pairs over `cat([chosen, rejected])`, where no image has two roles."""
        place = torch.ones_like(self.chosen).cumsum(0) - 1
        return _with(self, chosen=place, rejected=place + len(self), side=None)


@dataclass(frozen=True)
class Unpaired(Judgement):
    """desirable: (images,) in [0, 1], one judgement per image of the batch, in its order."""

    desirable: Tensor
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        within_unit("desirable", self.desirable)

    def __len__(self) -> int:
        return len(self.desirable)

    def mean(self, values: Tensor) -> Tensor:
        return values

    def verdict(self) -> Tensor:
        """(images,): 1 above a half, 0 below, a half there."""
        return 0.5 * (1 + (2 * self.desirable - 1).sign())

    def winner(self, values: Tensor) -> Tensor:
        """desirable * v: an undesirable image wins nothing."""
        return self.desirable.to(values.dtype) * values


class Grouped(Judgement):
    """Judgements of whole groups; `group` numbers them 0..groups-1. Ranking and Advantages differ in what they say."""

    group: Tensor
    smallest: ClassVar[int]

    def __post_init__(self) -> None:
        sizes = torch.bincount(self.group)
        if (small := sizes < self.smallest).any():
            at = int(small.nonzero()[0])
            expected = f"{type(self).__name__} expects at least {self.smallest}"
            raise ValueError(f"group {at}: holds {int(sizes[at])} of the images; {expected}")
        _ = len(self)

    def __len__(self) -> int:
        return self.groups

    @cached_property
    def groups(self) -> int:
        """How many groups, read once on the host."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    def together(self) -> Tensor:
        """(images, images): whether two images are of one group."""
        return self.group[:, None] == self.group

    def sum(self, values: Tensor) -> Tensor:
        """Per image -> per group: the sum over its images."""
        return values.new_zeros(self.groups).index_add(0, self.group, values)

    def mean(self, values: Tensor) -> Tensor:
        return self.sum(values) / self.sum(torch.ones_like(values))

    def winner(self, values: Tensor) -> Tensor:
        """The mean over the best images of the group: one, or those that share the first place."""
        merit = self.merit
        best = torch.full_like(merit[: self.groups], -torch.inf).scatter_reduce(0, self.group, merit, "amax")
        first = (merit == best[self.group]).to(values.dtype)
        return self.sum(first * values) / self.sum(first)

    @property
    @abstractmethod
    def merit(self) -> Tensor:
        """(images,): higher is better."""


@dataclass(frozen=True)
class Ranking(Grouped):
    """scores: (images,) higher is better; group: (images,) number of the group, 0..groups-1. A judgement per group."""

    smallest: ClassVar[int] = 2
    scores: Tensor
    group: Tensor
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.bounds

    @property
    def merit(self) -> Tensor:
        return self.scores

    def better(self) -> Tensor:
        """(images, images): whether image i is of j's group and better than j."""
        return self.together() & (self.scores[:, None] > self.scores)

    def shares(self) -> Tensor:
        """The scores, where they are shares of duels won; raises ValueError if they are not in [0, 1]."""
        low, high = self.bounds
        if not 0 <= low <= high <= 1:
            raise ValueError(f"scores lie in [{low:g}, {high:g}]: expected shares of duels won, in [0, 1]")
        return self.scores

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest score, read once on the host."""
        return (float(self.scores.min()), float(self.scores.max())) if len(self.scores) else (0.0, 1.0)


@dataclass(frozen=True)
class Advantages(Grouped):
    """values: (images,) advantages; group: (images,) number of the group, 0..groups-1. A judgement per group."""

    smallest: ClassVar[int] = 1
    values: Tensor
    group: Tensor
    weight: Tensor | None = None

    @property
    def merit(self) -> Tensor:
        return self.values

    def optimality(self) -> Tensor:
        """(images,): advantages as probabilities of being optimal, clip(A, -5, 5) / 10 + 1/2."""
        return self.values.clamp(-5, 5) / 10 + 0.5


def within_unit(name: str, values: Tensor) -> None:
    """Raise ValueError naming the first value that is not a number in [0, 1]."""
    if (outside := ~((values >= 0) & (values <= 1))).any():
        at = int(outside.nonzero()[0])
        raise ValueError(f"{name}[{at}] = {float(values[at]):g}: expected a number in [0, 1]")


def to(judgement: Judgement, device: torch.device) -> Judgement:
    """The judgement with its tensors on `device`; those of one type go there together."""
    tensors = {f.name: v for f in fields(judgement) if (v := getattr(judgement, f.name)) is not None}
    moved = {}
    for dtype in {v.dtype: None for v in tensors.values()}:
        alike = {n: v for n, v in tensors.items() if v.dtype == dtype}
        sent = torch.cat(list(alike.values())).to(device, non_blocking=True)
        moved |= dict(zip(alike, sent.split([len(v) for v in alike.values()]), strict=True))
    return _with(judgement, **moved)


def _with(judgement: Judgement, **tensors: Tensor | None) -> Judgement:
    # A copy, not a new one: it was checked when it was made, and checking again would wait for the device.
    changed = copy.copy(judgement)
    for name, value in tensors.items():
        object.__setattr__(changed, name, value)
    return changed

"""What an objective sees and says: errors per image and judgements in, loss per judgement and implicit rewards out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from diffalign.objectives.judgements import Advantages, Judgement, Pairs, Ranking, Unpaired, to

__all__ = [
    "Advantages",
    "Errors",
    "Judgement",
    "Modifier",
    "Objective",
    "Outcome",
    "Pairs",
    "Ranking",
    "Unpaired",
    "positive",
    "sum_and_count",
    "to",
]


@dataclass(frozen=True)
class Errors:
    """Squared denoising errors, one per image: mean over channels and pixels, float32 (float64 when the network is).

    policy, reference, old: (images,). reference is None for reference-free objectives; old is the previous policy's.
    Both are constants: they are detached here.
    cross: mean inner products of residuals an objective `needs`, by name: "policy_reference", "policy_old" (images,),
    "chosen_rejected" (pairs,). t, snr: (images,).
    """

    policy: Tensor
    reference: Tensor | None = None
    old: Tensor | None = None
    cross: dict[str, Tensor] = field(default_factory=dict)
    t: Tensor | None = None
    snr: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("reference", "old"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, value.detach())

    def detached(self) -> "Errors":
        """The same values without gradient."""
        return replace(self, policy=self.policy.detach(), cross={n: e.detach() for n, e in self.cross.items()})

    def known(self) -> list[Tensor]:
        """Policy, reference and old errors, (images,) each, as far as there are any."""
        return [e for e in (self.policy, self.reference, self.old) if e is not None]

    def at(self, images: Tensor) -> "Errors":
        """The errors of these images in this order, with the inner products that are per image."""
        moved = {n: None if (v := getattr(self, n)) is None else v[images] for n in ("reference", "old", "t", "snr")}
        cross = {n: v[images] for n, v in self.cross.items() if n != "chosen_rejected"}
        return Errors(self.policy[images], cross=cross, **moved)

    def damped(self, scale: Tensor) -> "Errors":
        """The same values, with the gradient into each image's prediction scaled; products must be per image."""
        images = {"policy": self.policy, **self.cross}
        cross = {n: e.detach() + scale * (e - e.detach()) for n, e in images.items()}
        return replace(self, policy=cross.pop("policy"), cross=cross)


@dataclass(frozen=True)
class Outcome:
    """loss: one per judgement. reward: (images,) implicit rewards, detached; a pair's margin is their difference."""

    loss: Tensor
    reward: Tensor


class Objective(ABC):
    """(Errors, Judgement) -> Outcome. Subclasses are final frozen dataclasses: fields are hyper-parameters.

    `judgement`: the kind it learns from (`Judgement` itself: any kind). `reference_free`: whether it ignores
    `Errors.reference`. `needs`: the inner products it reads from `Errors.cross`. `needs_old`: whether it reads
    `Errors.old`. `needs_gaps`: whether it reads the pairs' score gaps. `needs_shares`: whether the scores of a ranking
    must be shares of duels won, in [0, 1]. A coupled objective reads a statistic of the whole optimizer batch: `gather`
    gives its additive sums for a part of it, and the call takes their total, at the price of a pass without gradient
    (or, given none, gathers from the batch it sees).
    """

    judgement: ClassVar[type[Judgement]] = Pairs
    reference_free: ClassVar[bool] = False
    coupled: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    needs_old: ClassVar[bool] = False
    needs_gaps: ClassVar[bool] = False
    needs_shares: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, errors: Errors, judgement: Judgement, total: Tensor | None = None) -> Outcome:
        """Loss per judgement; `total` is the sum of `gather` over the optimizer batch, for coupled objectives."""

    def gather(self, errors: Errors, judgement: Judgement) -> Tensor:
        """The additive sums behind the coupled statistic, (k,), without gradient; empty where there is none."""
        return errors.policy.new_zeros(0)

    def check(self, errors: Errors, judgement: Judgement) -> None:
        """Raise ValueError in one line unless it can learn from these; reads no values of tensors, so nothing waits."""
        name = type(self).__name__
        if not isinstance(judgement, self.judgement):
            raise ValueError(f"{name} learns from {self.judgement.__name__}, not from {type(judgement).__name__}")
        if errors.reference is None and not self.reference_free:
            raise ValueError(f"{name} compares with a reference, but there are no reference errors")
        if errors.old is None and self.needs_old:
            raise ValueError(f"{name} compares with the previous policy, but there are no old errors")
        if missing := [n for n in self.needs if n not in errors.cross]:
            raise ValueError(f"{name} reads the inner products of residuals {', '.join(missing)}, which are missing")

    def check_reference(self, requested: bool) -> None:
        """Raise ValueError if a run asks for a reference that is never read, or for none where one is."""
        if requested and self.reference_free:
            raise ValueError(f"{type(self).__name__} is reference-free, but a reference was asked for")
        if not requested and not self.reference_free:
            raise ValueError(f"{type(self).__name__} compares with a reference, but none was asked for")


class Modifier(Objective):
    """An objective around another: what it learns from and reads is its host's, unless a subclass adds to it."""

    objective: Objective

    @property
    def judgement(self) -> type[Judgement]:
        return self.objective.judgement

    @property
    def reference_free(self) -> bool:
        return self.objective.reference_free

    @property
    def coupled(self) -> bool:
        return self.objective.coupled

    @property
    def needs_old(self) -> bool:
        return self.objective.needs_old

    @property
    def needs_gaps(self) -> bool:
        return self.objective.needs_gaps

    @property
    def needs_shares(self) -> bool:
        return self.objective.needs_shares

    @property
    def needs(self) -> tuple[str, ...]:
        return self.objective.needs

    def gather(self, errors: Errors, judgement: Judgement) -> Tensor:
        return self.objective.gather(errors, judgement)


def sum_and_count(values: Tensor) -> Tensor:
    """(sum, how many), (2,): what a mean over parts is made of."""
    return torch.stack([values.sum(), torch.ones_like(values).sum()])


def positive(**values: float) -> None:
    """Raise ValueError naming the first hyper-parameter that is not a positive finite number."""
    for name, value in values.items():
        if not (value > 0 and value < float("inf")):
            raise ValueError(f"{name} = {value}: expected a positive number")

"""Diffusion negative-aware fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from diffalign.objectives.base import Advantages, Errors, Objective, Outcome, positive


@final
@dataclass(frozen=True)
class NFT(Objective):
    """mean over the group of (q |w+|^2 + (1 - q) |w-|^2) / beta, w+- = (1 -+ beta) old +- beta policy residual.

    DiffusionNFT, arXiv 2509.16117, after the authors' code; q = clip(A, -5, 5) / 10 + 1/2, the optimality of advantage
    A. `normalised` divides a square by its detached root, where the code has the mean absolute residual; its factor 5
    and velocity penalty (`Anchored`) are left out. beta mixes predictions, is no reward's, and equals the paper's.
    """

    judgement: ClassVar[type[Advantages]] = Advantages
    reference_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("policy_old",)
    needs_old: ClassVar[bool] = True
    beta: float = 1.0
    normalised: bool = False

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def __call__(self, errors: Errors, judgement: Advantages, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        q = judgement.optimality().to(errors.policy.dtype)
        loss = (q * self.square(errors, self.beta) + (1 - q) * self.square(errors, -self.beta)) / self.beta
        return Outcome(judgement.mean(loss), (errors.old - errors.policy).detach())

    def square(self, errors: Errors, b: float) -> Tensor:
        """|b policy + (1 - b) old residual|^2, by their inner products."""
        square = b**2 * errors.policy + (1 - b) ** 2 * errors.old + 2 * b * (1 - b) * errors.cross["policy_old"]
        return square / square.detach().clamp(min=1e-10).sqrt() if self.normalised else square

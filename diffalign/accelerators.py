"""Accelerators, and what a step costs on one of them by how it is cut into passes."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from diffalign.activations import Checkpointing
from diffalign.counting import Counter
from diffalign.run import HardCopy, Run

TERA = 1e12
Card = Literal["h200", "h100", "a100-80", "a100-40", "l40s", "4090", "3090"]


class Accelerator(NamedTuple):
    """GiB that a program gets; dense TFLOP/s in bfloat16, float32 and float64; TB/s."""

    memory: float
    narrow: float
    wide: float
    double: float
    bandwidth: float


# rates 0.8, bandwidths 0.9 of the data sheet; float32 without TF32, which torch leaves to cuDNN's convolutions alone
CARDS: dict[str, Accelerator] = {
    "h200": Accelerator(139, 790, 54, 54, 4.3), "h100": Accelerator(79, 790, 54, 54, 3.0),
    "a100-80": Accelerator(79, 250, 16, 16, 1.8), "a100-40": Accelerator(39, 250, 16, 16, 1.4),
    "l40s": Accelerator(44, 290, 73, 1.1, 0.78), "4090": Accelerator(23.5, 132, 66, 1.0, 0.9),
    "3090": Accelerator(23.5, 57, 28, 0.44, 0.84),
}  # fmt: skip
# seconds that Python and the driver need for one kernel, and the share of a card that is left for activations
LAUNCH, ROOM = 15e-6, 0.92


@dataclass(frozen=True)
class Setting:
    """One way to cut a step: groups of a micro-batch, images of a backward pass (0: all of it) and what is kept.

    activations: bytes at the peak. speed, filling: groups a second; while a bank of reference errors is filled.
    """

    micro: int
    chunk: int
    checkpointing: Checkpointing
    activations: float
    speed: float
    filling: float


def micro(run: Run) -> int:
    """Groups of a micro-batch."""
    return min(run.micro_batch or run.batch, run.batch)


@dataclass(frozen=True)
class Cut:
    """What a run's step costs by how it is cut; costs of a pass grow with its images, its launches do not.

    step, forward, reference: of one group. working: bytes of the gradients of a working copy, which are there when the
    activations are gone. lent: of an average, narrowed while it is asked. widened: of layers in few bits, while they
    compute. update: bytes that the optimizer reads and writes in a step. rate, bandwidth: operations, bytes a second.
    """

    run: Run
    images: int
    step: dict[Checkpointing, Counter]
    forward: Counter
    reference: Counter
    working: int
    lent: int
    widened: int
    update: int
    rate: float
    bandwidth: float

    def settings(self, *, banked: bool) -> tuple[Setting, ...]:
        """Every way: micro-batches by twos and the run's own, image by image where one group is too much."""
        run = self.run
        sizes = sorted({2**i for i in range(12) if 2**i <= run.batch} | {micro(run)})
        ways = [(size, run.chunk) for size in sizes] + ([(1, 1)] if self.images > 1 and run.chunk != 1 else [])
        return tuple(self.setting(kept, *way, banked=banked) for kept in self.step for way in ways)

    def passes(self, micro: int, chunk: int, *, banked: bool) -> dict[str, float]:
        """Forward passes of a group beside the policy's own, by what they are for."""
        run, objective, inversion = self.run, self.run.objective, self.run.states.inversion
        asks, reads = not objective.reference_free, "policy_old" in objective.needs
        again = objective.coupled and run.parity == "batch" and run.batch > micro
        found: dict[str, float] = {
            "reference": asks and not banked,
            "previous policy": objective.needs_old
            and not (asks and run.old == run.reference and not (banked and reads)),
            "inversion, at most": inversion.steps * (1 + inversion.renoise) * (1 if inversion.guidance == 1 else 2),
        }
        found["statistics of the batch"] = again * (1 + sum(found.values()))
        found["policy, before its chunks"] = 0 < chunk < micro * self.images
        moves = run.reference if isinstance(run.reference, HardCopy) and run.reference.until_divergence else None
        found["reference's divergence"] = moves.probe / (moves.every * run.batch) if moves else 0
        return found

    def setting(self, kept: Checkpointing, micro: int, chunk: int, *, banked: bool) -> Setting:
        """Memory and speed of one way."""
        step, whole = self.step[kept], micro * self.images
        shown = min(chunk or whole, whole)
        width, parts = shown / self.images, math.ceil(whole / shown)

        def seconds(counter: Counter) -> float:
            return parts * max(width * counter.seconds(self.rate, self.bandwidth) / 0.8, LAUNCH * counter.kernels)

        def speed(beside: list[tuple[float, Counter]]) -> float:
            one = (seconds(step) + sum(n * seconds(counter) for n, counter in beside)) / micro
            return 1 / (one + self.update / self.bandwidth / self.run.batch)

        asked = self.passes(micro, chunk, banked=banked)
        beside = [(n, self.reference if name == "reference" else self.forward) for name, n in asked.items()]
        filling = [*beside, (float(banked), self.reference)]
        peak = self.widened + width * (step.peak - self.widened)
        activations = max(peak, self.working, self.lent + width * self.forward.peak)
        return Setting(micro, chunk, kept, activations, speed(beside), speed(filling))

"""A recipe -> what it will need, before anything is allocated: memory by component, operations, time, disk."""

from dataclasses import dataclass
from typing import Annotated

from diffalign.needs import CARDS, ROOM, TERA, Card, Needs, asked, data_of, needs
from diffalign.parsing import Unprefixed
from diffalign.run import LoRA, Run

GIB = 2**30


@dataclass(frozen=True)
class Consultation:
    """What `doctor` is asked: the recipe's run with its flags, and the card it is to run on.

    Attributes:
        run: The run.
        card: The accelerator.
    """

    run: Annotated[Run, Unprefixed]
    card: Card = "h200"


def doctor(consultation: Consultation, *, name: str = "this recipe") -> str:
    """Predict memory, operations, time and disk of a run on a card, and the fastest setting that fits.

    Only configurations are read, and nothing is allocated. Times are those of a machine that loses a fifth of what its
    operations and its memory would allow, and no less than the launches of its kernels.
    """
    run, card = consultation.run, consultation.card
    data = data_of(run)
    found = needs(run, card, data)
    size, _, _ = CARDS[card]
    unit = {2: "pair"}.get(found.images, "group")
    here = asked(run, found.settings)
    lines = [
        f"{name} on {run.model}: {found.parameters / 1e9:.3f} B parameters, {found.trained / 1e6:.1f} M trained, "
        f"{run.resolution} pixels, {found.images} images a {unit}{'' if data else ' (assumed: no --data)'}",
        "operations a " + unit + ": " + ", ".join(f"{k} {v / TERA:.4g} TFLOP" for k, v in found.flops.items())
        + f"; together {sum(found.flops.values()) / TERA:.4g}",
        f"memory on {card} ({size:g} GiB), micro_batch {here.micro}, "
        f"gradient_checkpointing {here.checkpointing}:",
        *(f"  {k:<28}{v / GIB:8.2f} GiB" for k, v in {**found.memory, "activations": here.activations}.items()),
        f"  {'together':<28}{(found.fixed + here.activations) / GIB:8.2f} GiB",
        f"before that, while pictures and prompts are encoded: {found.before / GIB:.3g} GiB of weights",
        f"time: {here.speed:.3g} {unit}s/s, {_duration(run.batch / here.speed)} a step, "
        f"{_duration(run.steps * run.batch / here.speed)} for {run.steps} steps of {run.batch}",
        "disk: " + ", ".join(f"{k} {v / GIB:.3g} GiB" for k, v in found.disk.items()),
        _advice(run, found, size * GIB, unit, card),
    ]  # fmt: skip
    return "\n".join(lines)


def _advice(run: Run, found: Needs, size: float, unit: str, card: str) -> str:
    fits = [s for s in found.settings if max(found.before, found.fixed + s.activations) <= ROOM * size]
    if not fits:
        least = min(s.activations for s in found.settings)
        lora = "" if isinstance(run.policy, LoRA) else "a LoRA, "
        return (
            f"does not fit on {card}: at least {(found.fixed + least) / GIB:.1f} GiB; "
            f"try {lora}a smaller resolution, or several cards (train/accelerate/fsdp2.yaml)"
        )
    best = max(fits, key=lambda s: s.speed)
    return (
        f"suggested: --micro-batch {best.micro} --gradient-checkpointing {best.checkpointing} "
        f"({(found.fixed + best.activations) / GIB:.1f} GiB, {best.speed:.3g} {unit}s/s, "
        f"{_duration(run.steps * run.batch / best.speed)} in all)"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"

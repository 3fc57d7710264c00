"""A recipe -> what it will need, before anything is allocated: memory by component, operations, time, disk."""

from dataclasses import dataclass
from typing import Annotated

from diffalign.accelerators import CARDS, ROOM, TERA, Card, Setting
from diffalign.bank import refusal
from diffalign.needs import Needs, asked, data_of, needs
from diffalign.optimizers import AdamW
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

    Only configurations are read (of a local model whose cache is there its hash too), and nothing is allocated. Times
    are those of a machine that loses a fifth of what its operations and its memory would allow, and no less than the
    launches of its kernels. Raises InputError where the run cannot be.
    """
    run, card = consultation.run, consultation.card
    data = data_of(run)
    found, size = needs(run, card, data), CARDS[card].memory * GIB
    unit = {2: "pair"}.get(found.images, "group")
    here = asked(run, found, size)
    auto = " (auto)" if run.gradient_checkpointing == "auto" else ""
    cut = f"micro_batch {here.micro}, " + (f"chunk {here.chunk}, " if here.chunk else "")
    parts = {**found.memory, "activations": here.activations}
    lines = [
        f"{name} on {run.model}: {found.parameters / 1e9:.3f} B parameters, {found.trained / 1e6:.1f} M trained, "
        f"{run.resolution} pixels, {found.images} images a {unit}{'' if data else ' (assumed: no --data)'}",
        "operations a " + unit + ": " + ", ".join(f"{k} {v / TERA:.4g} TFLOP" for k, v in found.flops.items())
        + f"; together {sum(found.flops.values()) / TERA:.4g}",
        f"memory on {card} ({size / GIB:g} GiB), {cut}gradient_checkpointing {here.checkpointing}{auto}:",
        *(f"  {k:<28}{v / GIB:8.2f} GiB" for k, v in parts.items()),
        f"  {'together':<28}{sum(parts.values()) / GIB:8.2f} GiB",
        *_banked(found, unit),
        f"before that, at most: {found.before / GIB:.3g} GiB, while what is not cached is encoded",
        *([f"while pictures are drawn: {found.drawing / GIB:.3g} GiB in the place of activations and gradients; "
           "scorers and the time of drawing come on top"] if found.drawing else []),
        f"time: {_time(run, found, here, unit)}",
        "disk: " + ", ".join(f"{k} {v / GIB:.3g} GiB" for k, v in found.disk.items()),
        *_uncounted(run),
        _advice(run, found, size, unit, card),
    ]  # fmt: skip
    return "\n".join(lines)


def _banked(found: Needs, unit: str) -> list[str]:
    """What is meant by a bank of reference errors, where the run has one."""
    if not found.bank:
        return []
    copy = f"; such a run holds the reference to its end, {found.bank.memory / GIB:.2f} GiB more"
    return [
        "the reference's errors come from a bank; the above is for one that `diffalign cache`, or a run before, has "
        f"filled. A run that fills it itself asks the reference at a {unit}'s first visit of each draw, "
        f"{found.bank.flops / TERA:.4g} TFLOP more{copy if found.bank.memory else ''}"
    ]


def _time(run: Run, found: Needs, here: Setting, unit: str) -> str:
    said = f"{here.speed:.3g} {unit}s/s, {_duration(run.batch / here.speed)} a step, {_whole(run, here, 0)} in all"
    if not found.bank:
        return said
    return f"{said}; {_whole(run, here, found.bank.share)} where this run fills the bank"


def _whole(run: Run, setting: Setting, share: float) -> str:
    """The time of all steps, of whose visits a share fills a bank."""
    return _duration(run.steps * run.batch * (share / setting.filling + (1 - share) / setting.speed))


def _uncounted(run: Run) -> list[str]:
    """What of the run is in no number above."""
    found = ["compiled blocks keep less and launch fewer kernels"] * run.compile
    found += ["float16 keeps norms and losses in float32, so somewhat more"] * (run.precision == "float16")
    return [f"not counted: {'; '.join(found)}"] if found else []


def _advice(run: Run, found: Needs, size: float, unit: str, card: str) -> str:
    def fitting(*, filling: bool) -> list[Setting]:
        return [s for s in found.settings if found.peak(s, filling=filling) <= ROOM * size]

    fits, first = fitting(filling=True), ""
    if not fits and found.bank:
        fits, first = fitting(filling=False), "first `diffalign cache` with the same words, then "
    if not fits:
        least = min(found.peak(s, filling=False) for s in found.settings)
        savings = ", ".join([*_savings(run, found), "a smaller resolution"])
        several = "or several cards (train/accelerate/fsdp2.yaml)"
        return f"does not fit on {card}: at least {least / GIB:.1f} GiB; try {savings}, {several}"
    best = max(fits, key=lambda s: s.filling if not first else s.speed)
    peak, share = found.peak(best, filling=not first), found.bank.share if found.bank and not first else 0
    chunk = f" --chunk {best.chunk}" if best.chunk != run.chunk else ""
    return (
        f"suggested: {first}--micro-batch {best.micro} --gradient-checkpointing {best.checkpointing}{chunk} "
        f"({peak / GIB:.1f} GiB, {best.speed:.3g} {unit}s/s, {_whole(run, best, share)} in all)"
    )


def _savings(run: Run, found: Needs) -> list[str]:
    """What would need less."""
    if isinstance(run.policy, LoRA):
        return [] if run.policy.quantization == "nf4" else ["--policy.quantization nf4"]
    bank = [] if found.bank or refusal(run) else ["--cache DIR (no copy of the reference once its errors are there)"]
    return ["a LoRA", *(["optimizer=AdamW8bit()"] if isinstance(run.optimizer, AdamW) else []), *bank]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"

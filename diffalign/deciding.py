"""What of a run is decided by its numbers alone: dtypes, past selves, the learning rate, whether it is watched."""

import math

import torch

from diffalign.run import EMA, Full, Reference, Run


def watched(run: Run) -> bool:
    """Whether pictures are drawn while the run trains; not for previews where it is shorter than until the second."""
    asked = run.evaluate
    return bool(asked.every) or 0 < asked.preview_every <= run.steps


def pasts(run: Run) -> dict[str, Reference | None]:
    """The past selves that a run asks: "reference", "old" and "average", None where nobody does."""
    inverts = run.states.inversion.steps > 0 and run.states.inversion.by == "reference"
    return {
        "reference": None if run.objective.reference_free and not inverts else run.reference,
        "old": run.old if run.objective.needs_old else None,
        "average": EMA(run.ema) if run.ema else None,
    }


def dtypes(run: Run) -> tuple[torch.dtype, torch.dtype | None]:
    """(dtype to load in, dtype to compute in where what is trained is kept in float32 beside it).

    A frozen base needs no more than it computes in; full training needs all that the file says.
    """
    if run.precision == "bfloat16":
        return torch.float32 if isinstance(run.policy, Full) else torch.bfloat16, torch.bfloat16
    return torch.float64 if run.precision == "float64" else torch.float32, None


def factor(run: Run, step: int) -> float:
    """The learning rate's factor at the step after `step` finished ones: linear warm-up, then the schedule's shape."""
    schedule = run.schedule
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    if schedule.shape == "constant":
        return 1.0
    done = (step - schedule.warmup) / max(1, run.steps - schedule.warmup)
    return 1 - done if schedule.shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))

"""Preferences -> policy: a run from where it was interrupted to its end, with its checkpoints and its metrics."""

import contextlib
import dataclasses
import math
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from diffalign import checkpoint, journal
from diffalign.progress import track
from diffalign.records import InputError
from diffalign.run import LoRA, Run
from diffalign.trainer import Step, Trainer


def train(run: Run, *, recipe: dict[str, str] | None = None) -> str:
    """Train a run to its end, going on where it was interrupted; returns one line that says what to do next.

    Writes `run.json`, `metrics.jsonl`, `tensorboard/`, `checkpoint-N/` and at the end `policy/`. Raises InputError
    where the folder holds another run (naming the fields that differ) or where an error is no longer finite.
    """
    if not run.data:
        raise InputError("data: is missing; give --data FOLDER, the judgements to learn from (what `pair` writes)")
    out = Path(run.out)
    kernel = {"auto": "sdpa"}.get(run.attention, run.attention)
    run = dataclasses.replace(run, precision=_precision(run.precision), attention=kernel)
    described = journal.describe(out, run, recipe or {}, torch.get_num_threads())
    if (out / "policy").exists():
        return _closing(run)
    trainer = Trainer(run)
    journal.claim(out, described)  # not before, so that a run which cannot start leaves the folder to another one
    note = _resume(trainer, out)
    main = trainer.accelerator.is_main_process
    if main:
        journal.trim(out / "metrics.jsonl", trainer.step)
    with (
        SummaryWriter(str(out / "tensorboard"), purge_step=trainer.step + 1)
        if main
        else contextlib.nullcontext() as board
    ):
        for step in track(trainer, "train", run.steps - trainer.step):
            last = step.index == run.steps
            if step.index == 1 or step.index % run.log_every == 0 or last:
                entry = _entry(step, run)
                if main:
                    journal.append(out / "metrics.jsonl", entry)
                    for name, value in entry.items():
                        board.add_scalar(f"train/{name}", value, step.index)
            if main and (step.index % run.save_every == 0 or last):
                _entry(step, run)
                trainer.save(out / f"checkpoint-{step.index}")
                checkpoint.prune(out, run.keep)
    if main:
        trainer.policy.export(out / "policy")
    return note + _closing(run)


def _precision(asked: str) -> str:
    return {"auto": "bfloat16" if torch.cuda.is_available() else "float32"}.get(asked, asked)


def _resume(trainer: Trainer, out: Path) -> str:
    """Load the newest whole checkpoint; says what was done, and which damaged ones were passed over."""
    damaged = []
    for folder in checkpoint.found(out):
        try:
            trainer.load(folder)
        except InputError as error:
            damaged.append(str(error))
            continue
        break
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        checkpoint.forget(out, trainer.step)
    if trainer.step:
        passed = f" ({'; '.join(damaged)})" if damaged else ""
        return f"went on from step {trainer.step}{passed}; "
    return f"started again, no checkpoint is whole ({'; '.join(damaged)}); " if damaged else ""


def _entry(step: Step, run: Run) -> dict[str, float]:
    """One line of metrics; raises InputError where a number is not finite, so that nothing bad is saved."""
    values = {name: float(value) for name, value in step.metrics.items()}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise InputError(
            f"step {step.index}: {bad[0]} is {values[bad[0]]}; nothing of this step was saved. "
            f"Lower optimizer.lr ({run.optimizer.lr}) and run the command again to go on from the last checkpoint"
        )
    return {"step": step.index, **values, "learning_rate": step.learning_rate, "groups": step.index * run.batch}


def _closing(run: Run) -> str:
    policy = Path(run.out) / "policy"
    lora = f"diffalign sample --model {run.model} --lora {policy} …"
    then = lora if isinstance(run.policy, LoRA) else f"diffalign convert {run.out} --to merged --out …"
    return f"{policy} after {run.steps} steps; next: {then}"

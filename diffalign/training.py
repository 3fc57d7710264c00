"""Preferences -> policy: a run from where it was interrupted to its end, with its checkpoints and its metrics."""

import contextlib
import dataclasses
import math
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from diffalign import card, checkpoint, journal, weights
from diffalign.progress import track
from diffalign.records import InputError
from diffalign.run import LoRA, Run
from diffalign.trainer import Step, Trainer


def train(run: Run, *, recipe: dict[str, str] | None = None) -> str:
    """Train a run to its end, going on where it was interrupted; returns one line that says what to do next.

    Writes `run.json`, `metrics.jsonl`, `tensorboard/`, `checkpoint-N/` and at the end `policy/` with a model card.
    Raises InputError where the folder holds another run (naming the fields that differ) or where an error is no longer
    finite.
    """
    if not run.data:
        raise InputError("data: is missing; give --data FOLDER, the judgements to learn from (what `pair` writes)")
    out = Path(run.out)
    kernel = {"auto": "sdpa"}.get(run.attention, run.attention)
    run = dataclasses.replace(run, precision=_precision(run.precision), attention=kernel)
    described = journal.describe(out, run, recipe or {}, torch.get_num_threads())
    if (out / "policy").exists():
        _push(run)
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
        unread: list[Step] = []
        for step in track(trainer, "train", run.steps - trainer.step):
            unread.append(step)
            last = step.index == run.steps
            logs = step.index == 1 or step.index % run.log_every == 0 or last
            saves = step.index % run.save_every == 0 or last
            if logs or saves:
                _refuse_infinite(unread, run)
                unread.clear()
            if logs:
                entry = _entry(step, run)
                if main:
                    journal.append(out / "metrics.jsonl", entry)
                    for name, value in entry.items():
                        board.add_scalar(f"train/{name}", value, step.index)
            if main and saves:
                trainer.save(out / f"checkpoint-{step.index}")
                checkpoint.prune(out, run.keep)
    if main:
        known = card.Known(described["run"], {}, [])
        to = "diffusers" if isinstance(run.policy, LoRA) else "weights"
        trainer.policy.export(out / "policy", card.write(known, model=run.model, to=to, part=trainer.backbone.part))
        _push(run)
    return note + _closing(run)


def _push(run: Run) -> None:
    if run.push:
        weights.push(Path(run.out) / "policy", run.push)


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
    """One line of metrics."""
    values = {name: float(value) for name, value in step.metrics.items()}
    return {"step": step.index, **values, "learning_rate": step.learning_rate, "groups": step.index * run.batch}


def _refuse_infinite(steps: list[Step], run: Run) -> None:
    """Raise InputError on the first step with a number that is not finite, before anything of it is saved."""
    for step in steps:
        images = [(i, e) for i, e in zip(step.images, step.errors.tolist(), strict=True) if not math.isfinite(e)]
        numbers = [(name, float(value)) for name, value in step.metrics.items() if not value.isfinite()]
        if images or numbers:
            what, value = ("the error", images[0][1]) if images else numbers[0]
            named = list(dict.fromkeys([i for i, _ in images] or step.images))
            of = f"image{'s' * (len(named) > 1)} {', '.join(named[:3])}"
            more = f" and {len(named) - 3} more" if len(named) > 3 else ""
            raise InputError(
                f"step {step.index}: {what} of {of}{more} is {value}; nothing of this step was saved. Lower "
                f"optimizer.lr ({run.optimizer.lr}) and run the command again to go on from the last checkpoint"
            )


def _closing(run: Run) -> str:
    policy = Path(run.out) / "policy"
    lora = f"diffalign sample --model {run.model} --lora {policy} …"
    then = lora if isinstance(run.policy, LoRA) else f"diffalign convert {run.out} --to merged --out …"
    return f"{policy} after {run.steps} steps; next: {then}"

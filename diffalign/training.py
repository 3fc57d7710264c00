"""Preferences -> policy: a run from where it was interrupted to its end, with its checkpoints and its metrics."""

import contextlib
import dataclasses
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from diffalign import attention, bank, card, checkpoint, journal, weights
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
    out, run = Path(run.out), resolved(run)
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
        for step in track(trainer, "train", run.steps - trainer.step):
            last = step.index == run.steps
            logs = step.index == 1 or step.index % run.log_every == 0 or last
            saves = step.index % run.save_every == 0 or last
            if logs or saves:
                trainer.check()
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


def resolved(run: Run) -> Run:
    """The run with what "auto" means here; raises InputError where there is no data."""
    if not run.data:
        raise InputError("data: is missing; give --data FOLDER, the judgements to learn from (what `pair` writes)")
    precision = "bfloat16" if torch.cuda.is_available() else "float32"
    return dataclasses.replace(
        run,
        precision=precision if run.precision == "auto" else run.precision,
        attention=attention.resolved(run.attention, run.precision),
    )


def cache(run: Run) -> str:
    """Compute once what `train` would compute on its way: latents, embeddings and the frozen reference's errors.

    Goes on where it was interrupted; nothing else of the run's folder is touched. Returns one line that says what lies
    where and what to do next. Raises InputError where the cache holds reference errors of something else.
    """
    run = resolved(run)
    run = dataclasses.replace(run, bank="on" if run.bank == "auto" and not bank.refusal(run) else run.bank)
    trainer = Trainer(run)
    for _ in track(trainer.prefill(), "cache", run.steps):
        continue
    place = run.cache or f"{run.out}/cache"
    kept = "latents, embeddings and reference errors"
    if trainer.bank is None:
        kept = f"latents and embeddings, no reference errors ({bank.refusal(run) or 'bank = off'})"
    return f"{place}: {kept}; next: the same command with `train`"


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
    """One line of metrics, on the host."""
    values = {name: float(value) for name, value in step.metrics.items()}
    return {"step": step.index, **values, "learning_rate": step.learning_rate, "groups": step.index * run.batch}


def _closing(run: Run) -> str:
    policy = Path(run.out) / "policy"
    lora = f"diffalign sample --model {run.model} --lora {policy} …"
    then = lora if isinstance(run.policy, LoRA) else f"diffalign convert {run.out} --to merged --out …"
    return f"{policy} after {run.steps} steps; next: {then}"

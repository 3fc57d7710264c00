"""Preferences -> policy: a run from where it was interrupted to its end, with its checkpoints and its metrics."""

import contextlib
import dataclasses
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch

from diffalign import (
    attention,
    backbones,
    bank,
    card,
    checkpoint,
    entries,
    folders,
    journal,
    tracking,
    watching,
    weights,
    wrapping,
)
from diffalign.parsing import Unprefixed
from diffalign.progress import bar, track
from diffalign.records import InputError
from diffalign.run import LoRA, Run
from diffalign.tracking import Board
from diffalign.trainer import Step, Trainer
from diffalign.watching import Watch

log = logging.getLogger(__name__)


class Stopped(InputError):
    """The process was told to stop, and what was done is saved."""

    status: ClassVar[int] = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Training:
    """What `train` is asked: the recipe's run with its flags.

    Attributes:
        run: The run.
        resume: Refuse to begin: go on, or say that there is nothing to go on from. The same command goes on without it.
    """

    run: Annotated[Run, Unprefixed]
    resume: bool = False


def train(run: Run, *, recipe: dict[str, str] | None = None, resume: bool = False) -> str:
    """Train a run to its end, going on where it was interrupted; returns one line that says what to do next.

    Writes `run.json`, `metrics.jsonl`, `checkpoint-N/` and at the end `policy/`; where it is evaluated
    `evaluations.jsonl`, `previews/`, `best.json` and `best/`. SIGTERM saves after the step at work and raises Stopped;
    where one of several processes is told, all of them save after the next step.
    Raises InputError where the folder holds another run (naming the fields that differ), where the model is of another
    family than the recipe's, or where an error is no longer finite.
    """
    out, run = Path(run.out), resolved(run)
    if resume and not (checkpoint.found(out) or (out / "policy").exists()):
        raise InputError(f"{out}: holds no checkpoint to go on from; leave out --resume to begin")
    described = journal.describe(out, run, recipe or {}, torch.get_num_threads())
    if (out / "policy").exists():
        _push(run)
        return _closing(run)
    backbones.expect(run.family, run.model, run.config)
    tracking.expect(run.log_with)
    watching.expect(run)
    trainer = Trainer(run)
    if trainer.asked.said and trainer.world > 1 and trainer.accelerator.is_main_process:
        log.info("%s", trainer.asked.said)
    with trainer.together():
        if trainer.accelerator.is_main_process:
            journal.claim(out, described)  # not before, so that a run that cannot start leaves the folder to another
    watch = watching.begin(trainer)
    note = _resume(trainer, out)
    if trainer.accelerator.is_main_process:
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            journal.trim(out / name, trainer.step)
        for left in (*out.glob(".*.tmp-*"), *(out / "previews").glob(".*.tmp-*")):
            left.unlink()  # of a write that was killed
    board = tracking.board(run, trainer.accelerator, trainer.step)
    try:
        _go(trainer, watch, board)
    finally:
        board.close()
    with trainer.together():
        trainer.export(out / "policy", _beside(trainer))
        if trainer.accelerator.is_main_process:
            _push(run)
    return note + _closing(run)


def _beside(trainer: Trainer) -> dict[str, bytes]:
    """The model card of the policy as it is now, with what its evaluation found, and the picture that it shows."""
    run, out = trainer.run, Path(trainer.run.out)
    adapter = "diffusers" if trainer.backbone.loads_adapters else "unloaded"
    to, compared, beside = adapter if isinstance(run.policy, LoRA) else "weights", {}, {}
    found = [r for r in journal.rows(out / "evaluations.jsonl") if r["step"] == trainer.step and "scorers" in r]
    if found:
        compared = {"scorers": found[-1]["scorers"], "prompts": found[-1]["pictures"] // run.evaluate.noises}
    if (preview := out / "previews" / f"step-{trainer.step:06d}.png").is_file():
        beside["preview.png"] = preview.read_bytes()
    shown = [(name, "Left: base. Right: this policy. Same prompt, same noise.") for name in beside]
    known = card.Known(entries.settings(out)["run"], compared, shown)
    text = card.write(known, model=run.model, to=to, part=trainer.backbone.part)
    return beside | {"README.md": text.encode()}


def _go(trainer: Trainer, watch: Watch | None, board: Board) -> None:
    """From the trainer's step to the last one: log, look, save."""
    run, out, main = trainer.run, Path(trainer.run.out), trainer.accelerator.is_main_process
    if watch and main and trainer.step == 0:
        watch.hang(watch.shown.base[: watch.shown.shown], 0, board)
    ring = watching.bell(out)
    started, before, unit = time.monotonic(), trainer.step, "pairs" if trainer.data.kind == "pair" else "groups"
    any_told = wrapping.hearing() if trainer.world > 1 else bool
    with _told() as told, bar("train", trainer.step, run.steps) as tell:
        for step in trainer:
            last = step.index == run.steps
            text = ""
            logs = step.index == 1 or step.index % run.log_every == 0 or last
            looks = watch is not None and any(watch.due(step.index))
            saves = step.index % run.save_every == 0 or last
            if logs or looks or saves:
                trainer.check()
            if logs:
                entry = _entry(step, run)
                text = watching.in_words(entry, (time.monotonic() - started) / (step.index - before), unit)
                if main:
                    journal.append(out / "metrics.jsonl", entry)
                    numbers = {f"train/{name}": value for name, value in entry.items()}
                    board.scalars(numbers, step.index)
                    ring(entry)
            if main:
                tell(step.index, text)
            kept = looks and _look(trainer, watch, board, ring)
            stop = any_told(told())
            if kept or stop or saves:
                trainer.check()
                _save(trainer, out, best=kept)
            if stop and not last:
                raise Stopped(f"told to stop; step {step.index} is saved, and the same command goes on")


def _look(trainer: Trainer, watch: Watch, board: Board, ring: Callable[[dict[str, Any]], None]) -> bool:
    """Evaluate and preview; whether this is the best so far."""
    with trainer.together():
        row = watch.look(trainer.step, board)
        if row:
            ring(row)
        best = watching.better(row, watch.shown.best, trainer.best)
    is_best = trainer.agreed(best is not trainer.best)
    trainer.best = best
    return is_best


def _save(trainer: Trainer, out: Path, *, best: bool) -> None:
    """A checkpoint, and where it is the best one its policy as others load it.

    That comes first: a run that goes on with the checkpoint does not look back at what was better.
    """
    main = trainer.accelerator.is_main_process
    with trainer.together():
        if best:
            trainer.export(out / "best", _beside(trainer))
            if main:
                folders.write_atomically(out / "best.json", (json.dumps(trainer.best, indent=1) + "\n").encode())
        trainer.save(out / f"checkpoint-{trainer.step}")
        if main:
            checkpoint.prune(out, trainer.run.keep, trainer.best["step"] if trainer.best else None)


@contextlib.contextmanager
def _told() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGTERM came; elsewhere than in the main thread nobody can be told."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)


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
    if not run.cache:
        journal.require_free(run)
    run = dataclasses.replace(run, bank="on" if run.bank == "auto" and not bank.refusal(run) else run.bank)
    backbones.expect(run.family, run.model, run.config)
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
            with trainer.together():
                trainer.load(folder)
        except InputError as error:
            damaged.append(str(error))
            continue
        break
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        checkpoint.forget(out, trainer.step)
        checkpoint.prune(out, trainer.run.keep, trainer.best["step"] if trainer.best else None)
    if trainer.step:
        passed = f" ({'; '.join(damaged)})" if damaged else ""
        return f"went on from step {trainer.step}{passed}; "
    return f"started again, no checkpoint is whole ({'; '.join(damaged)}); " if damaged else ""


def _entry(step: Step, run: Run) -> dict[str, Any]:
    """One line of metrics, on the host."""
    values = {name: float(value) for name, value in step.metrics.items()}
    return {"step": step.index, **values, "learning_rate": step.learning_rate, "groups": step.index * run.batch}


def _closing(run: Run) -> str:
    out = Path(run.out)
    best = watching.best_of(out)
    said, policy = "", out / "policy"
    if best:
        low, high = best["interval"]
        value = f"{best['value']:.1%} [{low:.1%}, {high:.1%}]"
        said, policy = f"; best checkpoint-{best['step']}, {best['metric']} {value}, in {out / 'best'}", out / "best"
    config = f" --config {run.config}" if run.config else ""
    lora = f"diffalign sample --model {run.model}{config} --lora {policy} …"
    then = lora if isinstance(run.policy, LoRA) else f"diffalign convert {run.out} --to merged --out …"
    return f"{out / 'policy'} after {run.steps} steps{said}; next: {then}"

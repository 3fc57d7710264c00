"""What a run is watched by: its evaluations and previews, and the alarms of what it has logged."""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffalign import alarms, entries, evaluating, findings, folders, journal
from diffalign.deciding import watched
from diffalign.drawing import Artist
from diffalign.evaluating import Exhibition
from diffalign.records import Prompt, prompt_id
from diffalign.run import Run
from diffalign.tracking import Board
from diffalign.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """Who draws the policy while it trains, and what it is compared with."""

    trainer: Trainer
    artist: Artist
    shown: Exhibition

    def due(self, step: int) -> tuple[bool, bool]:
        """Whether (an evaluation, a preview) is due after a step."""
        asked, last = self.trainer.run.evaluate, step == self.trainer.run.steps
        previews = 0 < asked.preview_every <= self.trainer.run.steps
        evaluated = bool(asked.every) and (step % asked.every == 0 or last)
        return evaluated, evaluated or (previews and (step % asked.preview_every == 0 or last))

    def look(self, step: int, board: Board) -> dict[str, Any] | None:
        """Draw the policy, write what is seen, and return its line of `evaluations.jsonl`; None where nothing is due.

        All processes draw; the first one writes, and the others get None.
        """
        evaluated, previewed = self.due(step)
        if not previewed:
            return None
        work = self.shown.work if evaluated else self.shown.work[: self.shown.shown]
        drawn = draw(self.trainer, self.artist, work)
        if not self.trainer.accelerator.is_main_process:
            return None
        row = evaluating.judged(self.shown, drawn, step)
        journal.append(Path(self.trainer.run.out) / "evaluations.jsonl", row)
        self.hang(drawn, step, board)
        scalars = {n: row[n] for n in ("saturation", "contrast")}
        for name, numbers in row.get("scorers", {}).items():
            scalars |= {f"{name}/{k}": v for k, v in numbers.items()}
        board.scalars({f"evaluation/{n}": v for n, v in scalars.items()}, step)
        return row

    def hang(self, drawn: np.ndarray, step: int, board: Board) -> None:
        """Write a preview: the base's pictures beside these."""
        png = evaluating.sheet(self.shown, drawn, step)
        folders.write_atomically(Path(self.trainer.run.out) / "previews" / f"step-{step:06d}.png", png)
        board.picture("preview", png, step)


def expect(run: Run) -> None:
    """Raise InputError, before anything is computed, where a run cannot be watched as it asks."""
    if watched(run):
        evaluating.expect(run)


def begin(trainer: Trainer) -> Watch | None:
    """The watch of a run that has not moved yet: the base is drawn, or read where it was drawn; None where none is
    asked for.
    """
    run = trainer.run
    if not watched(run):
        return None
    known = [Prompt(prompt_id(text), text) for text in trainer.data.shown_texts()]
    listed = evaluating.prompts(run, known)
    trainer.backbone.move(trainer.accelerator.device, "text_encoder")
    artist = evaluating.artist(run, trainer.backbone, listed)
    trainer.backbone.move("cpu", "text_encoder")
    trained = findings.training_judges(Path(run.out), {"data": run.data, "out": run.out})
    names = run.evaluate.scorers
    if run.evaluate.every and trained.issuperset(names):
        log.warning("evaluate.scorers: %s also judged the training pairs; name one that did not", ", ".join(names))
    main = trainer.accelerator.is_main_process
    with trainer.together():
        shown = evaluating.exhibition(run, listed, lambda work: draw(trainer, artist, work), trained, main)
    return Watch(trainer, artist, shown)


@torch.no_grad()
def draw(trainer: Trainer, artist: Artist, work: Sequence[tuple[str, int]]) -> np.ndarray:
    """Pictures of (prompt id, index) by the policy as it is exported, uint8, in all processes, each its share."""
    size, world = trainer.run.evaluate.batch, trainer.world
    rounds = -(-len(work) // (size * world))
    padded = [work[i % len(work)] for i in range(rounds * size * world)] if world > 1 else list(work)
    mine = padded[trainer.rank :: world]
    policy, denoiser = trainer.policy, trainer.policy.denoiser
    denoiser.eval()
    with trainer.passes.narrow(), policy.past("average", denoiser) if trainer.run.ema else contextlib.nullcontext():
        parts = [artist.draw(mine[i : i + size], denoiser) for i in range(0, len(mine), size)]
    found = np.concatenate(parts)
    if world > 1:
        every = trainer.accelerator.gather(torch.from_numpy(found).to(trainer.accelerator.device)).cpu().numpy()
        share = len(mine)
        found = np.stack([every[(n % world) * share + n // world] for n in range(len(work))])
    return found


def better(row: dict[str, Any] | None, scorer: str, best: dict[str, Any] | None) -> dict[str, Any] | None:
    """The best evaluation so far: `row`'s where its win rate by `scorer` is above that of `best`, else `best`."""
    numbers = (row or {}).get("scorers", {}).get(scorer)
    if numbers is None or (best and best["metric"] == f"win rate by {scorer}" and best["value"] >= numbers["win_rate"]):
        return best
    interval = [numbers["win_rate_low"], numbers["win_rate_high"]]
    return {"step": row["step"], "metric": f"win rate by {scorer}", "value": numbers["win_rate"], "interval": interval}


def bell(out: Path) -> Callable[[dict[str, Any]], None]:
    """Gives a function that takes each new line of metrics or of evaluations, and says each alarm once.

    Alarms of the lines that lie in the run's folder already were said when they were written.
    """
    before = journal.rows(out / "metrics.jsonl")
    known = {a.name for a in alarms.alarms(before, journal.rows(out / "evaluations.jsonl"))}
    start, latest = before[: alarms.WINDOW], deque(before, alarms.WINDOW)

    def ring(row: dict[str, Any]) -> None:
        if "margin" in row:
            latest.append(row)
            if len(start) < alarms.WINDOW:
                start.append(row)
            found = alarms.of_metrics(tuple(latest), start)
        else:
            found = alarms.of_evaluation(row)
        for alarm in found:
            if alarm.name not in known:
                known.add(alarm.name)
                log.warning("alarm: %s", alarm)

    return ring


def in_words(entry: dict[str, float], seconds: float, unit: str) -> str:
    """A line of metrics as a progress bar says it; `seconds` is the time of a step."""
    speed = entry["groups"] / max(entry["step"], 1) / max(seconds, 1e-9)
    said = [f"{speed:.3g} {unit}/s", f"margin {entry['margin']:+.3g}", f"accuracy {entry['accuracy']:.0%}"]
    for name in ("chosen", "rejected"):
        if f"{name}_error" in entry:
            said.append(f"{name} {entry[f'{name}_error']:+.2g}")
    return " ".join([*said, f"gradient {entry['gradient_norm']:.2g}", f"lr {entry['learning_rate']:.2g}"])


def best_of(folder: Path) -> dict[str, Any] | None:
    """What `best.json` of a run folder says; None where there is none. Raises InputError where it is damaged."""
    path = folder / "best.json"
    if not path.is_file():
        return None
    found = entries.whole(path)
    for name, kind in (("step", int), ("metric", str), ("value", float), ("interval", list)):
        entries.expect(isinstance(found.get(name), kind), path, name, f"a value of type {kind.__name__}")
    return found

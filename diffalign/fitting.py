"""Fitting towers and heads to choices: Bradley and Terry's loss, the loop, its checkpoints. Nothing depends on time."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffalign import calibration, checkpoint, choices, optimizers
from diffalign.choices import Choices
from diffalign.progress import track
from diffalign.records import InputError
from diffalign.scorers.dimensions import Heads
from diffalign.streams import stream

# Pairs whose scores are computed at once where nothing is learnt.
_LOOK = 256


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn; learning rates rise over a twentieth of the steps and fall to 0, linearly.

    Attributes:
        batch: Pairs a step; micro_batch: of which so many are computed at once, all where 0.
        lr, head_lr: AdamW's, of the towers and of the heads.
        every: Steps between looks at the pairs that tune, of which the best is kept, and checkpoints.
    """

    steps: int
    batch: int
    micro_batch: int
    lr: float
    head_lr: float
    weight_decay: float
    every: int
    seed: int


@dataclass(frozen=True)
class Learner:
    """What is learnt, and what it is learnt from.

    Attributes:
        see: Places of pictures -> embeddings; read: places of prompts -> embeddings; both with gradients or without.
        tower: The networks that learn beside the heads; None where embeddings are constants.
        log_tie: log ν of each dimension; -inf where no two images were called equal.
    """

    see: Callable[[np.ndarray], Tensor]
    read: Callable[[np.ndarray], Tensor]
    heads: Heads
    tower: nn.Module | None
    log_tie: nn.Parameter

    def gaps(self, known: Choices, rows: np.ndarray) -> Tensor:
        """Score of the first picture minus that of the second, by the head of each pair's dimension, (rows,)."""
        shown, place = np.unique(np.concatenate([known.first[rows], known.second[rows]]), return_inverse=True)
        asked, said = np.unique(known.prompt[rows], return_inverse=True)
        scores = self.heads(self.see(shown)[place], self.read(asked)[np.tile(said, 2)])
        first, second = scores.chunk(2)
        return (first - second).gather(1, _long(known.dimension[rows], scores)[:, None])[:, 0]

    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """The parameters of each optimizer, by name."""
        head = {f"heads.{n}": p for n, p in self.heads.named_parameters()} | {"log_tie": self.log_tie}
        tower = {} if self.tower is None else {f"tower.{n}": p for n, p in self.tower.named_parameters()}
        return {"heads": head} | ({"tower": tower} if tower else {})

    def state(self) -> dict[str, Tensor]:
        """A copy of what is learnt."""
        return {n: p.detach().clone() for group in self.groups().values() for n, p in group.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a copy."""
        for group in self.groups().values():
            for name, parameter in group.items():
                parameter.copy_(state[name])


def bradley_terry(gap: Tensor, p: Tensor, tie: Tensor, log_tie: Tensor) -> Tensor:
    """-P log P(first) - (1 - P) log P(second), or -log P(tie) where `tie`; (pairs,) each, in nats.

    P(first) : P(tie) : P(second) = exp(gap / 2) : ν : exp(-gap / 2), so that P(first) / P(second) = exp(gap) whatever
    ν is; with ν = 0 (`log_tie` -inf) it is -log sigmoid. Source: Davidson 1970; Bradley and Terry 1952.
    """
    total = torch.logaddexp(torch.logaddexp(gap / 2, -gap / 2), log_tie)
    return total - torch.where(tie, log_tie, (p - 0.5) * gap)


def gaps(learner: Learner, known: Choices, part: int) -> tuple[np.ndarray, np.ndarray]:
    """(places of the pairs of a part, their score differences, float64)."""
    rows = known.of(part)
    with torch.no_grad():
        found = [learner.gaps(known, rows[i : i + _LOOK]).double().cpu() for i in range(0, len(rows), _LOOK)]
    return rows, torch.cat(found).numpy()


def slopes(learner: Learner, known: Choices) -> tuple[list[float], float]:
    """(the slope of each dimension by the pairs that tune, the mean over dimensions of their NLL with it)."""
    rows, gap = gaps(learner, known, choices.TUNE)
    found, losses = [], []
    for number in range(len(known.dimensions)):
        mine = known.dimension[rows] == number
        slope = calibration.fitted(gap[mine], known.p[rows][mine])
        found.append(max(slope, 1e-6))
        losses.append(calibration.nll(found[-1] * gap[mine], known.p[rows][mine]))
    return found, float(np.mean(losses))


def fit(
    learner: Learner, known: Choices, plan: Plan, out: Path, first: tuple[list[float], float]
) -> dict[str, Any]:  # fmt: skip
    """Learn, going on from the newest whole checkpoint in `out`; the learner ends as it was best. What was seen.

    `first`: the slopes before the first step.
    """
    made = {
        name: torch.optim.AdamW(
            list(group.values()), plan.head_lr if name == "heads" else plan.lr, weight_decay=plan.weight_decay
        )
        for name, group in learner.groups().items()
    }
    resumed = _resume(learner, made, out)
    best, seen = _start(learner, *first) if resumed is None else resumed
    todo = range(seen["step"], plan.steps)
    for step, rows in zip(track(todo, "train-scorer", len(todo)), batches(known, plan, seen["step"]), strict=False):
        _step(learner, known, plan, made, step, rows)
        if (step + 1) % plan.every == 0 or step + 1 == plan.steps:
            _, loss = slopes(learner, known)
            if not math.isfinite(loss):
                raise InputError(f"step {step + 1}: the loss is {loss}; lower --lr or --head-lr")
            curve = [*seen["curve"], {"step": step + 1, "nll": loss}]
            better = loss < seen["best"]
            best = learner.state() if better else best
            seen = {
                "step": step + 1, "best": min(loss, seen["best"]),
                "best_step": step + 1 if better else seen["best_step"], "curve": curve,
            }  # fmt: skip
            _save(learner, made, best, seen, out)
    learner.restore(best)
    return seen


def _start(learner: Learner, found: list[float], loss: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Before the first step the towers' own temperature becomes that of the choices; their order stays."""
    with torch.no_grad():
        learner.heads.log_scale.add_(torch.tensor(found).log().to(learner.heads.log_scale))
    return learner.state(), {"step": 0, "best": loss, "best_step": 0, "curve": [{"step": 0, "nll": loss}]}


def batches(known: Choices, plan: Plan, start: int) -> Iterator[np.ndarray]:
    """Rows of the pairs of each step from `start`: prompts in an order of each epoch, cut into batches, endlessly.

    Pairs of one prompt stay side by side, so that its pictures and its text are seen once a batch.
    """
    rows = known.of(choices.TRAIN)
    ends = np.flatnonzero(np.diff(known.prompt[rows])) + 1
    groups = np.split(rows, ends)
    skip, held = start * plan.batch, np.empty(0, np.int64)
    epoch, skip = skip // len(rows), skip % len(rows)
    while True:
        while len(held) < plan.batch + skip:
            order = stream("order", plan.seed, epoch).permutation(len(groups))
            held, epoch = np.concatenate([held, *(groups[i] for i in order)]), epoch + 1
        yield held[skip : skip + plan.batch]
        held, skip = held[skip + plan.batch :], 0


def _step(
    learner: Learner, known: Choices, plan: Plan, made: Mapping[str, torch.optim.Optimizer], step: int, rows: np.ndarray
) -> None:
    """Σ weight · loss / Σ weight over the batch, and one step of each optimizer."""
    rise, fall = (step + 1) / max(1, plan.steps // 20), 1 - step / plan.steps
    total, size = known.weight[rows].sum(), plan.micro_batch or len(rows)
    for part in (rows[i : i + size] for i in range(0, len(rows), size)):
        gap = learner.gaps(known, part)
        p, weight = (torch.from_numpy(v[part]).to(gap) for v in (known.p, known.weight))
        tie = torch.from_numpy(known.tie[part]).to(gap.device)
        loss = bradley_terry(gap, p, tie, learner.log_tie[_long(known.dimension[part], gap)])
        ((loss * weight).sum() / total).backward()
    for name, optimizer in made.items():
        (group,) = optimizer.param_groups
        group["lr"] = (plan.head_lr if name == "heads" else plan.lr) * min(1.0, rise, fall)
        nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _long(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).long().to(like.device)


def _save(
    learner: Learner, made: Mapping[str, torch.optim.Optimizer], best: Mapping[str, Tensor], seen: dict[str, Any],
    out: Path,
) -> None:  # fmt: skip
    groups = learner.groups()
    held = {name: optimizers.state(optimizer, groups[name]) for name, optimizer in made.items()}
    tensors = {"state": learner.state(), "best": dict(best)} | {f"{name}-optimizer": t for name, (t, _) in held.items()}
    data = {"seen": seen, "numbers": {name: numbers for name, (_, numbers) in held.items()}}
    checkpoint.save(out / f"checkpoint-{seen['step']}", tensors, data)
    checkpoint.prune(out, 1)


def _resume(
    learner: Learner, made: Mapping[str, torch.optim.Optimizer], out: Path
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(best state, what was seen) of the newest checkpoint; None where there is none."""
    newest = next(iter(checkpoint.found(out)), None)
    if newest is None:
        return None
    tensors, data = checkpoint.load(newest)
    learner.restore(tensors["state"])
    for name, optimizer in made.items():
        optimizers.restore(optimizer, learner.groups()[name], tensors[f"{name}-optimizer"], data["numbers"][name])
    device = learner.log_tie.device
    return {name: value.to(device) for name, value in tensors["best"].items()}, data["seen"]

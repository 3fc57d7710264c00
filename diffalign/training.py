"""Preferences -> policy. The loop is an iterator of steps; logging and saving are the body of somebody's `for`."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from diffalign import activations, attention, backbones, checkpoint, dataset, journal, measuring, states
from diffalign.backbones.base import Conditioning, residuals
from diffalign.diffusion import Noised
from diffalign.objectives.base import Errors, Judgement, to
from diffalign.policy import Policy
from diffalign.progress import track
from diffalign.records import InputError
from diffalign.run import HardCopy, LoRA, Run


@dataclass(frozen=True)
class Step:
    """One optimizer step: how many are done, and its metrics as tensors on the device (reading them waits for it)."""

    index: int
    metrics: dict[str, Tensor]
    learning_rate: float


class Trainer:
    """Owns what resumes (policy, optimizer, step) and yields a `Step` after each optimizer step.

    Step loss = sum(w loss) / sum(w) over the whole optimizer batch, across micro-batches and processes.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.accelerator = Accelerator(mixed_precision="no")
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        device = self.accelerator.device
        self.narrow = run.precision == "bfloat16"
        self.data = dataset.Dataset(Path(run.data), captions=run.captions, labels=run.labels)
        if run.batch % self.world:
            raise InputError(f"batch = {run.batch}: expected a multiple of the {self.world} processes")
        self._check_kind()
        dtype = torch.float64 if run.precision == "float64" else torch.float32
        self.backbone = backbones.load(run.model, config=run.config, dtype=dtype, device=device)
        self.process = states.process(run.states, self.backbone.process)
        self.backbone.process = self.process
        self.backbone.latent_shape(run.resolution, run.resolution)  # refuses a size before anything is computed
        with self.accelerator.main_process_first():
            self.material = states.prepare(run, self.data, self.backbone, Path(run.out) / "cache")
        inverts = run.states.inversion.steps > 0 and run.states.inversion.by == "reference"
        reference = None if run.objective.reference_free and not inverts else run.reference
        old = run.old if run.objective.needs_old else None
        self.policy = Policy(
            self.backbone, run.policy, run.seed, reference=reference, old=old, init_lora=run.init_lora
        )
        self.denoiser = self.policy.denoiser
        if self.world > 1:
            self.denoiser = self.accelerator.prepare_model(self.denoiser)
        options = {"lr": run.optimizer.lr, "betas": run.optimizer.betas, "eps": run.optimizer.eps}
        parameters = list(self.policy.parameters.values())
        self.optimizer = torch.optim.AdamW(parameters, weight_decay=run.optimizer.weight_decay, **options)
        self.step = 0
        self.limit = run.reference.until_divergence if isinstance(run.reference, HardCopy) else 0.0
        self.divergence = 0.0
        self.start_error = self._winner_error() if self.limit else 0.0
        self._tune()

    def _tune(self) -> None:
        """Attention's kernel and what the forward pass keeps: as asked, or as the free memory allows."""
        run, denoiser = self.run, self.policy.denoiser
        part = self._parts(self._visits())[0]

        def call() -> Tensor:
            with self.accelerator.no_sync(self.denoiser):
                return self._measure(part[:1])[0].policy

        attention.prepare(denoiser, run.attention)
        with torch.no_grad():
            attention.verify(run.attention, call)
        activations.arrange(denoiser, run.gradient_checkpointing, call, self.policy.parameters.values(), len(part))

    def _visits(self) -> list[dataset.Visit]:
        run = self.run
        return self.data.visits(run.seed, self.step, run.batch, run.curriculum.stages, run.curriculum.every)

    def _check_kind(self) -> None:
        wanted, name = self.run.objective.judgement, type(self.run.objective).__name__
        if not issubclass(dataset.KINDS[self.data.kind], wanted):
            raise InputError(
                f"{self.run.data}: holds judgements of kind {self.data.kind}, but {name} learns from {wanted.__name__}"
            )
        if self.run.curriculum.stages > 1:
            _ = self.data.easiest  # refuses missing score gaps

    def __iter__(self) -> Iterator[Step]:
        while self.step < self.run.steps:
            with attention.using(self.run.attention):
                step = self._advance()
            yield step

    def _advance(self) -> Step:
        run = self.run
        visits = self._visits()
        total_weight = dataset.judge(visits, self.data.kind).weight.sum().item()
        parts = self._parts(visits)
        together = run.parity == "batch" and (len(parts) > 1 or self.world > 1)
        coupled = self._gather(parts) if run.objective.coupled and together else None
        sums = torch.zeros(6, dtype=torch.float64, device=self.accelerator.device)
        self.denoiser.train(False)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.denoiser):
                errors, judgement, weight = self._measure(part)
                outcome = run.objective(errors, judgement, coupled)
                loss = (weight.to(outcome.loss.dtype) * outcome.loss).sum() / total_weight
                (loss * self.world).backward()
            sums += measuring.sums(errors, judgement, outcome, loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters.values(), run.optimizer.max_grad_norm)
        lr = run.optimizer.lr * factor(run, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._move()
        sums = self.accelerator.reduce(sums) if self.world > 1 else sums
        metrics = measuring.means(sums, reference_free=run.objective.reference_free) | {"gradient_norm": norm}
        if self.limit:
            metrics["reference_divergence"] = sums.new_tensor(self.divergence)
        return Step(self.step, metrics, lr)

    def _parts(self, visits: Sequence[dataset.Visit]) -> list[Sequence[dataset.Visit]]:
        """This process's share of the visits, cut into micro-batches."""
        mine = visits[self.rank :: self.world]
        size = self.run.micro_batch or max(1, len(mine))
        return [mine[i : i + size] for i in range(0, len(mine), size)]

    @torch.no_grad()
    def _gather(self, parts: Sequence[Sequence[dataset.Visit]]) -> Tensor:
        total = sum(self.run.objective.gather(*self._measure(part)[:2]) for part in parts)
        return self.accelerator.reduce(total) if self.world > 1 else total

    def _measure(self, visits: Sequence[dataset.Visit]) -> tuple[Errors, Judgement, Tensor]:
        """Errors of the images of the visits, what is known about them, and the weight of each judgement's loss."""
        run, objective, device = self.run, self.run.objective, self.accelerator.device
        conditioning = self._conditioning(visits)
        noised = self._noised(visits, conditioning)
        judgement = to(dataset.judge(visits, self.data.kind), device)
        reference = None if objective.reference_free else self._past("reference", noised, conditioning)
        old = None
        if objective.needs_old:
            same = run.old == run.reference and reference is not None
            old = reference if same else self._past("old", noised, conditioning)
        names = [name for v in visits for name in (v.group.id, v.draw)]
        with self._narrow(), self.policy.learning(*names):
            new = residuals(self.backbone, self.denoiser, noised, conditioning)
        scale = run.states.weighting(noised, self.process)
        if run.states.weighs == "errors":
            weight = judgement.weight
        else:
            weight, scale = judgement.weight * judgement.mean(scale), None
        return measuring.errors(new, reference, old, noised, judgement, objective.needs, scale), judgement, weight

    def _narrow(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.narrow)

    def _past(self, name: str, noised: Noised, conditioning: Conditioning) -> Tensor:
        with self.policy.past(name, self.denoiser) as denoiser, self._narrow():
            return residuals(self.backbone, denoiser, noised, conditioning)

    def _conditioning(self, visits: Sequence[dataset.Visit]) -> Conditioning:
        rows = states.conditioning(self.run, self.data, self.material, visits)
        return {name: value.to(self.accelerator.device, non_blocking=True) for name, value in rows.items()}

    def _noised(self, visits: Sequence[dataset.Visit], conditioning: Conditioning) -> Noised:
        run, device, inversion = self.run, self.accelerator.device, self.run.states.inversion
        x0, t = (v.to(device) for v in states.clean(run, self.process, self.material, visits))
        if not inversion.steps:
            return states.forward(run, self.process, x0, t, visits)
        by_reference = inversion.by == "reference"
        past = self.policy.reference(self.denoiser) if by_reference else contextlib.nullcontext(self.denoiser)
        with past as denoiser, self._narrow():
            negative = self.material.negative
            epsilon = states.epsilon(self.backbone, denoiser, conditioning, negative, inversion.guidance)
            return states.inverted(run, self.process, epsilon, x0, t, visits)

    def _move(self) -> None:
        """Move the past selves that are due, and take the reference's divergence from the start where that ends it."""
        self.policy.follow("old", self.step)
        if (not self.limit or self.divergence <= self.limit) and self.policy.follow("reference", self.step):
            self.divergence = self._winner_error() - self.start_error if self.limit else 0.0

    def _winner_error(self) -> float:
        """Mean reference error over the winners of the run's first groups, at their first forward noise."""
        run = self.run
        groups = min(run.reference.probe, len(self.data.groups))
        total = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for part in self._parts(self.data.visits(run.seed, 0, groups)):
            x0, t = (v.to(total.device) for v in states.clean(run, self.process, self.material, part))
            noised = states.forward(run, self.process, x0, t, part)
            squares = self._past("reference", noised, self._conditioning(part)).square().flatten(1).mean(1)
            winners = to(dataset.judge(part, self.data.kind), total.device).winner(squares)
            total += torch.stack([winners.double().sum(), total.new_tensor(len(winners))])
        total = self.accelerator.reduce(total) if self.world > 1 else total
        return float(total[0] / total[1])

    def save(self, folder: Path) -> None:
        """Write policy, moving past selves, optimizer and step, whole or not at all."""
        moments = {f"{n}.{k}": v for n, p in self.policy.parameters.items() for k, v in self.optimizer.state[p].items()}
        tensors = {"policy": self.policy.state(), "optimizer": moments}
        if moving := self.policy.moving():
            tensors["pasts"] = moving
        checkpoint.save(folder, tensors, {"step": self.step, "divergence": self.divergence})

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint; raises InputError where it is damaged or of another policy."""
        tensors, data = checkpoint.load(folder)
        self.policy.restore(tensors["policy"], tensors.get("pasts", {}))
        for name, parameter in self.policy.parameters.items():
            moments = {k: tensors["optimizer"][f"{name}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {
                k: v if k == "step" else v.to(parameter.device) for k, v in moments.items()
            }
        self.step, self.divergence = data["step"], data["divergence"]


def factor(run: Run, step: int) -> float:
    """The learning rate's factor at the step after `step` finished ones: linear warm-up, then the schedule's shape."""
    schedule = run.schedule
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    if schedule.shape == "constant":
        return 1.0
    done = (step - schedule.warmup) / max(1, run.steps - schedule.warmup)
    return 1 - done if schedule.shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))


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

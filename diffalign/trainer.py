"""Visits -> optimizer steps. The loop is an iterator; logging and saving are the body of somebody's `for`."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from diffalign import activations, attention, backbones, checkpoint, dataset, material, measuring, optimizers, states
from diffalign.passes import Passes
from diffalign.policy import Policy
from diffalign.records import InputError
from diffalign.run import Full, HardCopy, Run


@dataclass(frozen=True)
class Step:
    """One optimizer step: how many are done, and its metrics as tensors on the device (reading them waits for it).

    images, errors: what this process saw, and the sum of its errors under policy and past selves, (images,).
    """

    index: int
    metrics: dict[str, Tensor]
    learning_rate: float
    images: tuple[str, ...]
    errors: Tensor


class Trainer:
    """Owns what resumes (policy, optimizer, step) and yields a `Step` after each optimizer step.

    Step loss = sum(w loss) / sum(w) over the whole optimizer batch, across micro-batches and processes.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.accelerator = Accelerator(mixed_precision="no")
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        device = self.accelerator.device
        with self.accelerator.main_process_first():
            self.data = material.dataset_of(run)
        if run.batch % self.world:
            raise InputError(f"batch = {run.batch}: expected a multiple of the {self.world} processes")
        self._check_kind()
        optimizers.check(run.optimizer)
        dtype, narrow = dtypes(run)
        stores = material.Stores(run, self.data, dtype)
        encoders = stores.lacking()
        self.backbone = backbones.load(run.model, config=run.config, dtype=dtype, encoders=encoders)
        self.process = states.process(run.states, self.backbone.process)
        self.backbone.process = self.process
        if encoders:
            # the denoiser stays on the host until the encoders are done: a card need not hold both
            self.backbone.move(device, "text_encoder", "vae")
        with self.accelerator.main_process_first():
            self.material = stores.material(self.backbone)
        self.backbone.release()
        inverts = run.states.inversion.steps > 0 and run.states.inversion.by == "reference"
        reference = None if run.objective.reference_free and not inverts else run.reference
        old = run.old if run.objective.needs_old else None
        self.policy = Policy(
            self.backbone, run.policy, run.seed, reference=reference, old=old, init_lora=run.init_lora,
            narrow=narrow, device=device,
        )  # fmt: skip
        self.denoiser = self.policy.denoiser
        if self.world > 1:
            self.denoiser = self.accelerator.prepare_model(self.denoiser)
        self.passes = Passes(
            run, self.data, self.backbone, self.process, self.material, self.policy, self.denoiser, device
        )
        self.optimizer = optimizers.build(run.optimizer, self.policy.masters)
        self.scale = optimizers.Scale(2.0**16) if run.precision == "float16" else optimizers.Scale(1.0)
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
                return self.passes.measure(part[:1])[0].policy

        attention.prepare(denoiser, run.attention)
        with torch.no_grad():
            attention.verify(run.attention, call)
        activations.arrange(denoiser, run.gradient_checkpointing, call, self.policy.masters.values(), len(part))

    def _visits(self) -> list[dataset.Visit]:
        run = self.run
        return self.data.visits(run.seed, self.step, run.batch, run.curriculum.stages, run.curriculum.every)

    def _check_kind(self) -> None:
        objective, name = self.run.objective, type(self.run.objective).__name__
        if not issubclass(dataset.KINDS[self.data.kind], objective.judgement):
            raise InputError(
                f"{self.run.data}: holds judgements of kind {self.data.kind}, but {name} learns from "
                f"{objective.judgement.__name__}"
            )
        if objective.needs_gaps:
            self.data.require_gaps(f"{name} reads it")
        if objective.needs_shares:
            self.data.require_shares(name)
        if self.run.curriculum.stages > 1:
            _ = self.data.easiest  # refuses missing score gaps

    def __iter__(self) -> Iterator[Step]:
        while self.step < self.run.steps:
            with attention.using(self.run.attention):
                step = self._advance()
            yield step

    def _advance(self) -> Step:
        run = self.run
        sums, images, errors = self._gradients()
        norm = self._clip()
        while self.scale.value > 1 and not norm.isfinite():
            # too large for float16: the step is computed again, not left out
            self.scale = self.scale.halved()
            self.optimizer.zero_grad(set_to_none=True)
            (sums, images, errors), norm = self._gradients(), self._clip()
        self.scale = self.scale.kept()
        lr = run.optimizer.lr * factor(run, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        optimizers.publish(self.policy.parameters, self.policy.masters)
        self.step += 1
        self._move()
        sums = self.accelerator.reduce(sums) if self.world > 1 else sums
        metrics = measuring.means(sums, reference_free=run.objective.reference_free) | {"gradient_norm": norm}
        if self.limit:
            metrics["reference_divergence"] = sums.new_tensor(self.divergence)
        return Step(self.step, metrics, lr, images, errors)

    def _gradients(self) -> tuple[Tensor, tuple[str, ...], Tensor]:
        """Gradients of the step's loss, times the scale, on the masters; the sums behind the metrics, this process's
        images, and their errors.
        """
        run = self.run
        visits = self._visits()
        total_weight = dataset.judge(visits, self.data.kind).weight.sum().item()
        parts = self._parts(visits)
        together = run.parity == "batch" and (len(parts) > 1 or self.world > 1)
        coupled = self._gather(parts) if run.objective.coupled and together else None
        sums, seen = torch.zeros(6, dtype=torch.float64, device=self.accelerator.device), []
        self.denoiser.train(False)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.denoiser):
                errors, judgement, weight = self.passes.measure(part)
                outcome = run.objective(errors, judgement, coupled)
                loss = (weight.to(outcome.loss.dtype) * outcome.loss).sum() / total_weight
                (loss * self.world * self.scale.value).backward()
            if last or self.world == 1:  # several processes add up before
                optimizers.collect(self.policy.parameters, self.policy.masters)
            sums += measuring.sums(errors, judgement, outcome, loss.detach())
            seen.append(errors.altogether())
        images = tuple(i for part in parts for visit in part for i in visit.group.images)
        return sums, images, torch.cat(seen)

    def _clip(self) -> Tensor:
        """The gradients' length, to which they are cut where it is too long."""
        weights = [w for w in self.policy.masters.values() if w.grad is not None]
        if self.scale.value > 1:
            torch._foreach_div_([w.grad for w in weights], self.scale.value)
        return torch.nn.utils.clip_grad_norm_(weights, self.run.optimizer.max_grad_norm)

    def _parts(self, visits: Sequence[dataset.Visit]) -> list[Sequence[dataset.Visit]]:
        """This process's share of the visits, cut into micro-batches of one picture size."""
        mine = visits[self.rank :: self.world]
        size = self.run.micro_batch or max(1, len(mine))
        return self.material.parts(mine, size)

    @torch.no_grad()
    def _gather(self, parts: Sequence[Sequence[dataset.Visit]]) -> Tensor:
        total = sum(self.run.objective.gather(*self.passes.measure(part)[:2]) for part in parts)
        return self.accelerator.reduce(total) if self.world > 1 else total

    def _move(self) -> None:
        """Move the past selves that are due, and take the reference's divergence from the start where that ends it."""
        self.policy.follow("old", self.step)
        if (not self.limit or self.divergence <= self.limit) and self.policy.follow("reference", self.step):
            self.divergence = self._winner_error() - self.start_error if self.limit else 0.0

    def _winner_error(self) -> float:
        """Mean reference error over the winners of the run's first groups, at their first forward noise."""
        run = self.run
        groups = min(run.reference.probe, len(self.data.groups))
        total = sum(self.passes.winner_errors(part) for part in self._parts(self.data.visits(run.seed, 0, groups)))
        total = self.accelerator.reduce(total) if self.world > 1 else total
        return float(total[0] / total[1])

    def save(self, folder: Path) -> None:
        """Write policy, moving past selves, optimizer and step, whole or not at all."""
        moments, numbers = optimizers.state(self.optimizer, self.policy.masters)
        tensors = {"policy": self.policy.state(), "optimizer": moments}
        if moving := self.policy.moving():
            tensors["pasts"] = moving
        data = {"step": self.step, "divergence": self.divergence}
        data |= {"optimizer": numbers, "scale": [self.scale.value, self.scale.steps]}
        checkpoint.save(folder, tensors, data, self.policy.write_adapter)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint; raises InputError where it is damaged or of another policy."""
        tensors, data = checkpoint.load(folder)
        self.policy.restore(tensors["policy"], tensors.get("pasts", {}))
        optimizers.restore(self.optimizer, self.policy.masters, tensors["optimizer"], data["optimizer"])
        self.scale = optimizers.Scale(*data["scale"])
        self.step, self.divergence = data["step"], data["divergence"]


def dtypes(run: Run) -> tuple[torch.dtype, torch.dtype | None]:
    """(dtype to load in, dtype to compute in where full training keeps what it loaded beside it)."""
    full, bfloat16 = isinstance(run.policy, Full), run.precision == "bfloat16"
    if run.precision == "float64":
        return torch.float64, None
    return (torch.bfloat16, None) if bfloat16 and not full else (torch.float32, torch.bfloat16 if bfloat16 else None)


def factor(run: Run, step: int) -> float:
    """The learning rate's factor at the step after `step` finished ones: linear warm-up, then the schedule's shape."""
    schedule = run.schedule
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    if schedule.shape == "constant":
        return 1.0
    done = (step - schedule.warmup) / max(1, run.steps - schedule.warmup)
    return 1 - done if schedule.shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))

"""Visits -> optimizer steps. The loop is an iterator; logging and saving are the body of somebody's `for`."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diffalign import (
    activations,
    attention,
    backbones,
    bank,
    checkpoint,
    compiling,
    dataset,
    launching,
    material,
    measuring,
    optimizers,
    states,
    step,
    wrapping,
)
from diffalign.deciding import dtypes, factor, pasts, watched
from diffalign.objectives.base import Errors
from diffalign.passes import Passes
from diffalign.policy import Policy
from diffalign.records import InputError
from diffalign.run import Full, HardCopy, LoRA, Run, to_data

UNSEEN = 64  # steps whose numbers are looked at together


@dataclass(frozen=True)
class Step:
    """One optimizer step: how many are done, and the learning rate it had."""

    index: int
    learning_rate: float
    measured: Callable[[], dict[str, Tensor]]

    @functools.cached_property
    def metrics(self) -> dict[str, Tensor]:
        """Its metrics as tensors on the device: computed when they are asked for, and reading them waits for it."""
        return self.measured()


class Trainer:
    """Owns what resumes (policy, optimizer, step) and yields a `Step` after each optimizer step.

    Step loss = sum(w loss) / sum(w) over the whole optimizer batch, across micro-batches and processes.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        outside = run.log_with not in ("tensorboard", "none")
        self.asked = launching.asked(run)
        with launching.plainly():
            self.accelerator = Accelerator(mixed_precision="no", log_with=run.log_with if outside else None)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.shards = self.asked.shards and self.world > 1  # one process has nobody to share with
        device = self.accelerator.device
        with self.accelerator.main_process_first():
            self.data = material.dataset_of(run)
        if run.batch % self.world:
            raise InputError(f"batch = {run.batch}: expected a multiple of the {self.world} processes")
        self.data.expect(run.objective, staged=run.curriculum.stages > 1)
        optimizers.check(run.optimizer)
        dtype, narrow = dtypes(run)
        stores = material.Stores(run, self.data, dtype)
        encoders = stores.lacking() or watched(run)
        self.backbone = backbones.load(run.model, config=run.config, dtype=dtype, encoders=encoders)
        self.process = states.process(run.states, self.backbone.process)
        self.backbone.process = self.process
        self.backbone.latent_shape(run.resolution, run.resolution)  # refuses a size before anything is computed
        self.step, place = 0, bank.place(material.place(run), self.data)
        if encoders:
            # the denoiser stays on the host until the encoders are done: a card need not hold both
            self.backbone.move(device, "text_encoder", "vae")
        with self.accelerator.main_process_first():
            self.bank = self._bank(place) if bank.wanted(run, place) else None
            self.material = stores.material(self.backbone)
        if watched(run):
            self.backbone.move("cpu", "text_encoder")
        else:
            self.backbone.release()
        self.policy = self._policy(narrow)
        if self.shards:
            self.policy.shard(again=self.asked.again)
        elif self.world > 1:
            self.policy.copied()
        self.denoiser = self.policy.denoiser
        self.passes = Passes(
            run, self.data, self.backbone, self.process, self.material, self.policy, self.denoiser, device,
            self.bank,
        )  # fmt: skip
        self.optimizer = optimizers.build(run.optimizer, self.policy.masters)
        self.scale = optimizers.Scale(2.0**16) if run.precision == "float16" else optimizers.Scale(1.0)
        self.bad = torch.full((2,), -1, device=device)
        self.unseen: list[tuple[int, list[Errors], Tensor]] = []
        self.best: dict[str, Any] | None = None
        self.limit = run.reference.until_divergence if isinstance(run.reference, HardCopy) else 0.0
        self.divergence = 0.0
        self.start_error = self._winner_error() if self.limit else 0.0
        self._tune()

    def _bank(self, folder: Path) -> bank.Bank:
        run, device = self.run, self.accelerator.device
        shape = self.backbone.latent_shape(run.resolution, run.resolution)
        dtype = torch.float64 if run.precision == "float64" else torch.float32
        return bank.Bank(folder, bank.key(run, self.data, self.process, shape, device), self.data, dtype)

    def _policy(self, narrow: torch.dtype | None) -> Policy:
        """The policy with the past selves that are asked; no copy of all weights where a bank says what they would."""
        run, asked = self.run, pasts(self.run)
        if self.bank is not None and (isinstance(run.policy, Full) or self.world > 1) and self._covered(self.bank):
            asked["reference"] = None
        return Policy(
            self.backbone, run.policy, run.seed, **asked, init_lora=run.init_lora, narrow=narrow,
            device=self.accelerator.device,
        )  # fmt: skip

    def _covered(self, kept: bank.Bank) -> bool:
        """Whether the bank says it all, here and in every other process.

        Several processes read it only then: they pass through the network together or not at all.
        """
        covered = kept.covers(part for s in range(self.run.steps) for part in self._parts(self._visits(s)))
        if self.world > 1:
            device = self.accelerator.device
            covered = bool(self.accelerator.reduce(torch.tensor(float(covered), device=device)) == self.world)
            kept.reads = covered
        return covered

    def prefill(self) -> Iterator[int]:
        """Put all reference errors of the run into the bank, in the run's own micro-batches; yields after each step."""
        for number in range(self.run.steps):
            for part in self._parts(self._visits(number)):
                self.passes.refer(part)
            yield number
        if self.bank is not None:
            self.bank.flush()

    def _tune(self) -> None:
        """Attention's kernel and what the forward pass keeps: as asked, or as the free memory allows."""
        run, denoiser = self.run, self.policy.denoiser
        part = self._parts(self._visits(0))[0]

        def call() -> Tensor:
            with wrapping.quiet(self.denoiser):
                return self.passes.alone(part[:1])

        attention.prepare(denoiser, run.attention)
        with torch.no_grad():
            attention.verify(run.attention, call)
        told = optimizers.room(run.optimizer, self.policy.state())
        times = min(len(part), (run.chunk or math.inf) / len(part[0].group.images))
        activations.arrange(denoiser, run.gradient_checkpointing, call, told, times)
        if run.compile:
            compiling.compile_blocks(denoiser)

    def _visits(self, step: int) -> list[dataset.Visit]:
        run, curriculum = self.run, self.run.curriculum
        return self.data.visits(run.seed, step, run.batch, curriculum.stages, curriculum.every, run.draws)

    def __iter__(self) -> Iterator[Step]:
        while self.step < self.run.steps:
            with attention.using(self.run.attention):
                done = self._advance()
            yield done

    def _advance(self) -> Step:
        run = self.run
        self.step += 1
        told, norm = self._gradients(), self._clip()
        while self.scale.value > 1 and not norm.isfinite():
            # too large for float16: the step is computed again, not left out
            self.scale = self.scale.halved()
            self.optimizer.zero_grad(set_to_none=True)
            told, norm = self._gradients(), self._clip()
        self.scale = self.scale.kept()
        self.unseen.append((self.step, [t.errors for t in told], norm))
        self._look(UNSEEN)
        lr = run.optimizer.lr * factor(run, self.step - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        optimizers.publish(self.policy.parameters, self.policy.masters)
        self._move()
        done = Step(self.step, lr, functools.partial(self._metrics, told, norm, self.divergence))
        if self.world > 1:
            _ = done.metrics  # all processes add them up, so none waits until it is asked
        return done

    def _look(self, least: int = 1) -> None:
        """Note the first number that is not finite of the steps not looked at, if they are many; waits for nothing."""
        if len(self.unseen) >= least:
            self.bad = measuring.first_bad(self.bad, self.unseen)
            self.unseen = []

    def _metrics(self, told: Sequence[measuring.Told], norm: Tensor, divergence: float) -> dict[str, Tensor]:
        """The metrics of a step over all processes."""
        sums = functools.reduce(torch.add, map(measuring.sums, told))
        sums = self.accelerator.reduce(sums) if self.world > 1 else sums
        metrics = measuring.means(sums, reference_free=self.run.objective.reference_free) | {"gradient_norm": norm}
        return metrics | ({"reference_divergence": sums.new_tensor(divergence)} if self.limit else {})

    def _gradients(self) -> list[measuring.Told]:
        """Gradients of the step's loss, times the scale, on the masters; what each micro-batch leaves to measure."""
        run, visits = self.run, self._visits(self.step - 1)
        parts = self._parts(visits)
        together = run.parity == "batch" and (len(parts) > 1 or self.world > 1)
        coupled = self._gather(parts) if run.objective.coupled and together else None
        self.denoiser.train(False)
        weight = math.fsum(r.weight for v in visits for r in v.group.judgements)
        share = step.Share(weight, coupled, self.world, self.scale.value)
        quiet = functools.partial(wrapping.quiet, self.denoiser)
        told = step.gradients(self.passes, parts, share, quiet)
        if self.world > 1 and not self.shards:
            wrapping.average(list(self.policy.masters.values()))
        return told

    def _clip(self) -> Tensor:
        """The gradients' length, to which they are cut where it is too long."""
        weights = [w for w in self.policy.masters.values() if w.grad is not None]
        if self.scale.value > 1:
            torch._foreach_div_([w.grad for w in weights], self.scale.value)
        return wrapping.norm(torch.nn.utils.clip_grad_norm_(weights, self.run.optimizer.max_grad_norm))

    def _parts(self, visits: Sequence[dataset.Visit], rank: int | None = None) -> list[Sequence[dataset.Visit]]:
        """This process's (or another's) share of the visits, cut into micro-batches of one picture size."""
        mine = visits[self.rank if rank is None else rank :: self.world]
        size = self.run.micro_batch or max(1, len(mine))
        return self.material.parts(mine, size)

    @torch.no_grad()
    def _gather(self, parts: Sequence[Sequence[dataset.Visit]]) -> Tensor:
        total = sum(self.run.objective.gather(*self.passes.measure(part)[:2]) for part in parts)
        return self.accelerator.reduce(total) if self.world > 1 else total

    def _move(self) -> None:
        """Move the past selves that are due, and take the reference's divergence from the start where that ends it."""
        self.policy.follow("old", self.step)
        self.policy.follow("average", self.step)
        if (not self.limit or self.divergence <= self.limit) and self.policy.follow("reference", self.step):
            self.divergence = self._winner_error() - self.start_error if self.limit else 0.0

    def _winner_error(self) -> float:
        """Mean reference error over the winners of the run's first groups, at their first forward noise."""
        run = self.run
        groups = min(run.reference.probe, len(self.data.groups))
        total = sum(self.passes.winner_errors(part) for part in self._parts(self.data.visits(run.seed, 0, groups)))
        total = self.accelerator.reduce(total) if self.world > 1 else total
        return float(total[0] / total[1])

    def check(self) -> None:
        """Raise InputError where an error or gradient of the steps so far was not finite, naming the first.

        Waits for the device, and every process must ask; to be called before anything of these steps is kept. What
        the bank was told of meanwhile is written.
        """
        if self.bank is not None:
            self.bank.flush()
        self._look()
        found = self.accelerator.gather(self.bad[None]).tolist()
        first = min((number for number, _ in found if number >= 0), default=0)
        if not first:
            return
        bad = [(rank, place) for rank, (number, place) in enumerate(found) if number == first]
        names = [step.named(self._parts(self._visits(first - 1), rank), place) for rank, place in bad]
        groups = [v.group.id for v in self._visits(first - 1)]
        more = f" and {len(groups) - 3} more" * (len(groups) > 3)
        norm = f"the gradient's norm (groups {', '.join(groups[:3])}{more})"  # which is the same in all processes
        what = next(filter(None, names), norm)
        raise InputError(
            f"step {first}: {what} is not finite; nothing of this step was saved, and the checkpoints before it stay. "
            f"The same command would end the same: begin again with a lower optimizer.lr ({self.run.optimizer.lr}) and "
            "another --out"
        )

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Around what one process may fail at: then all fail."""
        return wrapping.together(self.accelerator.device)

    def agreed(self, told: bool) -> bool:
        """Whether any process was told; all of them ask."""
        if self.world == 1:
            return told
        return bool(self.accelerator.reduce(torch.tensor(float(told), device=self.accelerator.device)))

    def save(self, folder: Path) -> None:
        """Write policy, moving past selves, optimizer, step and run, whole or not at all; sharded, each its part."""
        moments, numbers = optimizers.state(self.optimizer, self.policy.masters)
        tensors = {"policy": self.policy.state(), "optimizer": {n: wrapping.local(v) for n, v in moments.items()}}
        if moving := self.policy.moving():
            tensors["pasts"] = moving
        data = {"step": self.step, "divergence": self.divergence, "best": self.best}
        data |= {"optimizer": numbers, "scale": [self.scale.value, self.scale.steps]}
        data["run"] = to_data(self.run) | {"out": ""}
        main, adapts = self.accelerator.is_main_process, isinstance(self.run.policy, LoRA)
        final = self.policy.final() if adapts else {}
        if not self.shards:
            if main:
                checkpoint.save(folder, tensors, data, lambda place: self.policy.write_adapter(place, final))
            return
        with self.together():
            if main:
                self.policy.write_adapter(checkpoint.scratch(folder), final)
        with self.together():
            checkpoint.save_part(folder, tensors, self.rank, self.world)
        if main:
            checkpoint.join_parts(folder, data)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint of any number of processes; raises InputError where it is damaged or does not fit."""
        tensors, data = checkpoint.load(folder)
        self.policy.restore(tensors["policy"], tensors.get("pasts", {}))
        masters = {name: p.data for name, p in self.policy.masters.items()}
        moments = {
            name: wrapping.like(v, masters[name.rpartition(".")[0]]) if v.ndim else v
            for name, v in tensors["optimizer"].items()
        }
        optimizers.restore(self.optimizer, self.policy.masters, moments, data["optimizer"])
        self.scale = optimizers.Scale(*data["scale"])
        self.step, self.divergence, self.best = data["step"], data["divergence"], data.get("best")

    def export(self, folder: Path, beside: Mapping[str, bytes] = MappingProxyType({})) -> None:
        """Write the policy as others load it, with files beside it; all processes take part, the first one writes."""
        final = self.policy.final()
        if self.accelerator.is_main_process:
            self.policy.export(folder, beside, final)

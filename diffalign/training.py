"""Preferences -> policy. The loop is an iterator of steps; logging and saving are the body of somebody's `for`."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from diffalign import backbones, cache, checkpoint, dataset, journal, measuring, weights
from diffalign.backbones.base import Conditioning, residuals, select
from diffalign.diffusion import VP, Noised, Process, draw_noise, draw_time
from diffalign.objectives.base import Errors, Judgement, to
from diffalign.policy import Policy
from diffalign.progress import track
from diffalign.records import InputError
from diffalign.run import Run
from diffalign.streams import stream


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
        self.data = dataset.Dataset(Path(run.data))
        if run.batch % self.world:
            raise InputError(f"batch = {run.batch}: expected a multiple of the {self.world} processes")
        self._check_kind()
        self.backbone = backbones.load(run.model, device=device)
        self.process = _in_prediction(self.backbone.process, run.states.prediction)
        self.backbone.process = self.process
        self.shape = self.backbone.latent_shape(run.resolution, run.resolution)
        with self.accelerator.main_process_first():
            self.latents, self.embeddings = self._caches(Path(run.out) / "cache")
        self.negative = self.backbone.encode_negative()
        self.policy = Policy(self.backbone, run.policy, run.seed, reference_free=run.objective.reference_free)
        self.denoiser = self.policy.denoiser
        if self.world > 1:
            self.denoiser = self.accelerator.prepare_model(self.denoiser)
        options = {"lr": run.optimizer.lr, "betas": run.optimizer.betas, "eps": run.optimizer.eps}
        parameters = list(self.policy.parameters.values())
        self.optimizer = torch.optim.AdamW(parameters, weight_decay=run.optimizer.weight_decay, **options)
        self.step = 0

    def _check_kind(self) -> None:
        kinds = {"pair": "Pairs", "unpaired": "Unpaired", "ranking": "Ranking", "advantages": "Advantages"}
        wanted = self.run.objective.judgement.__name__
        if kinds[self.data.kind] != wanted:
            name = type(self.run.objective).__name__
            raise InputError(
                f"{self.run.data}: holds judgements of kind {self.data.kind}, but {name} learns from {wanted}"
            )

    def _caches(self, folder: Path) -> tuple[cache.Store, cache.Store]:
        model = weights.fingerprint(weights.locate(self.run.model))
        images, prompts = self.data.image_ids(), self.data.prompt_ids()
        key = {"model": model, "resolution": self.run.resolution}
        size = self.run.resolution
        latents = cache.fill(folder / "latents", key, images, self._encode_images, _cutter("latents", 16))
        rows = [self.data.images[i] for i in images]
        sizes = self.backbone.size_conditioning([(r["height"], r["width"]) for r in rows], (size, size))
        self.sizes = {"order": {name: i for i, name in enumerate(images)}, "rows": sizes}
        embeddings = cache.fill(
            folder / "prompts", {"model": model}, prompts, self._encode_prompts, _cutter("prompts", 32)
        )
        return latents, embeddings

    def _encode_images(self, ids: Sequence[str]) -> dict[str, Tensor]:
        found = dict(dataset.pixels(self.data.folder, ids, self.run.resolution))
        latents = self.backbone.encode_images(torch.stack([found[i] for i in ids]))
        bad = [i for i, ok in zip(ids, latents.isfinite().flatten(1).all(1).tolist(), strict=True) if not ok]
        if bad:
            raise InputError(f"{self.data.folder}: the latents of image {bad[0]} are not finite")
        return {"latents": latents}

    def _encode_prompts(self, ids: Sequence[str]) -> dict[str, Tensor]:
        return self.backbone.encode_prompts([self.data.texts[i] for i in ids])

    def __iter__(self) -> Iterator[Step]:
        while self.step < self.run.steps:
            yield self._advance()

    def _advance(self) -> Step:
        run = self.run
        visits = self.data.visits(run.seed, self.step, run.batch)
        total_weight = dataset.judge(visits, self.data.kind).weight.sum().item()
        mine = visits[self.rank :: self.world]
        size = run.micro_batch or len(mine)
        parts = [mine[i : i + size] for i in range(0, len(mine), size)]
        coupled = self._gather(parts) if run.objective.coupled and (len(parts) > 1 or self.world > 1) else None
        sums = torch.zeros(6, dtype=torch.float64, device=self.accelerator.device)
        self.denoiser.train(False)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.denoiser):
                errors, judgement = self._measure(part)
                outcome = run.objective(errors, judgement, coupled)
                loss = (judgement.weight.to(outcome.loss.dtype) * outcome.loss).sum() / total_weight
                (loss * self.world).backward()
            sums += measuring.sums(errors, judgement, outcome, loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters.values(), run.optimizer.max_grad_norm)
        lr = run.optimizer.lr * factor(run, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        sums = self.accelerator.reduce(sums) if self.world > 1 else sums
        metrics = measuring.means(sums, reference_free=run.objective.reference_free)
        return Step(self.step, metrics | {"gradient_norm": norm}, lr)

    @torch.no_grad()
    def _gather(self, parts: Sequence[Sequence[dataset.Visit]]) -> Tensor:
        total = sum(self.run.objective.gather(*self._measure(part)) for part in parts)
        return self.accelerator.reduce(total) if self.world > 1 else total

    def _measure(self, visits: Sequence[dataset.Visit]) -> tuple[Errors, Judgement]:
        device, objective = self.accelerator.device, self.run.objective
        noised, conditioning = self._noised(visits), self._conditioning(visits)
        judgement = to(dataset.judge(visits, self.data.kind), device)
        narrow = torch.autocast(device.type, torch.bfloat16, enabled=self.narrow)
        old = None
        if not objective.reference_free:
            with self.policy.reference(self.denoiser) as denoiser, narrow:
                old = residuals(self.backbone, denoiser, noised, conditioning)
        with narrow:
            new = residuals(self.backbone, self.denoiser, noised, conditioning)
        return measuring.errors(new, old, noised, judgement, objective.needs), judgement

    def _noised(self, visits: Sequence[dataset.Visit]) -> Noised:
        run, device = self.run, self.accelerator.device
        ids = [i for v in visits for i in v.group.images]
        x0 = self.latents.rows(ids)["latents"].to(device, non_blocking=True)
        u = [draw_time(run.seed, v.group.id, v.draw) for v in visits for _ in v.group.images]
        independent = run.states.noise == "independent"
        eps = [
            torch.from_numpy(draw_noise(run.seed, v.group.id, v.draw, i if independent else None, tuple(self.shape)))
            for v in visits
            for i in v.group.images
        ]
        t = self.process.time(run.states.times(torch.tensor(u, dtype=torch.float64)))
        return self.process.noise(x0, torch.stack(eps).to(x0), t.to(device))

    def _conditioning(self, visits: Sequence[dataset.Visit]) -> Conditioning:
        run, device = self.run, self.accelerator.device
        rows = self.embeddings.rows([v.group.prompt for v in visits])
        if run.caption_dropout:
            for i, v in enumerate(visits):
                if stream("caption", run.seed, v.group.id, v.draw).random() < run.caption_dropout:
                    for name in rows:
                        rows[name][i] = self.negative[name][0]
        repeats = torch.tensor([len(v.group.images) for v in visits])
        order = torch.tensor([self.sizes["order"][i] for v in visits for i in v.group.images])
        rows = select(rows, torch.arange(len(visits)).repeat_interleave(repeats)) | select(self.sizes["rows"], order)
        return {name: value.to(device, non_blocking=True) for name, value in rows.items()}

    def save(self, folder: Path) -> None:
        """Write policy, optimizer and step, whole or not at all."""
        moments = {f"{n}.{k}": v for n, p in self.policy.parameters.items() for k, v in self.optimizer.state[p].items()}
        checkpoint.save(folder, {"policy": self.policy.state(), "optimizer": moments}, {"step": self.step})

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint; raises InputError where it is damaged or of another policy."""
        tensors, data = checkpoint.load(folder)
        self.policy.restore(tensors["policy"])
        for name, parameter in self.policy.parameters.items():
            moments = {k: tensors["optimizer"][f"{name}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {
                k: v if k == "step" else v.to(parameter.device) for k, v in moments.items()
            }
        self.step = data["step"]


def _in_prediction(process: Process, prediction: str) -> Process:
    if prediction == "native":
        return process
    if not isinstance(process, VP):
        raise InputError(f"states.prediction = {prediction}: this model is a flow, whose error is measured in velocity")
    return dataclasses.replace(process, prediction=prediction)


def _cutter(title: str, size: int) -> Callable[[Sequence[str]], Iterable[Sequence[str]]]:
    return lambda ids: track(list(cache.cut(ids, size)), title, math.ceil(len(ids) / size))


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
    out = Path(run.out)
    run = dataclasses.replace(run, precision=_precision(run.precision))
    journal.claim(out, run, recipe or {}, torch.get_num_threads())
    if (out / "policy").exists():
        return _closing(run)
    trainer = Trainer(run)
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
        passed = f" ({'; '.join(damaged)})" if damaged else ""
        return f"went on from {folder}{passed}; "
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
    return f"{policy} after {run.steps} steps; next: diffalign sample --model {run.model} --lora {policy} …"

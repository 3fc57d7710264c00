"""It learns: every objective on UNet (epsilon and v) and DiT (flow) raises implicit accuracy on held-out pairs.

Pictures are rendered, not drawn: the scene that a caption describes against scenes that break it in up to three
demanded attributes. From these come pairs, rankings, desirability and advantages, so each objective learns from its
own kind. Every `train/shapes_*.py` trains a few tens of steps with the library's own trainer. Then, whatever the
objective, the implicit reward is reference error - policy error, the reference being the untouched model, and accuracy
is the share of held-out pairs, at fixed times and noises, whose right picture has the higher one (ties count half).
Before training it is 1/2 exactly. Right pictures are what the models were trained on, so that supervised fine-tuning
has nothing to learn from them: it learns a taste instead, and its error on held-out pictures of that taste must fall.
Intervals are of 95 %, resampled by group.

    python scripts/learns.py --out build/learns    # Markdown on stdout; OUT/learns.json; goes on where it was stopped
"""

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learns_table import learned, markdown
from learns_world import GROUP, write_taste, write_world
from torch import Tensor, nn

from diffalign import backbones, dataset, folders, material, places, states, weights
from diffalign.backbones.base import Backbone, errors
from diffalign.intervals import bootstrap, prompt_means
from diffalign.objectives import SFT
from diffalign.objectives.base import Pairs
from diffalign.recipes import load_recipe
from diffalign.records import digest
from diffalign.run import Run, States
from diffalign.trainer import Trainer

# Images that a step, or a pass of the measurement over held-out pairs, sees at once.
IMAGES = 32
GROUNDS = {"unet": ("sdxl", "native"), "unet-v": ("sdxl", "v_prediction"), "dit": ("sd3", "native")}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Training groups, held-out groups (a draw each), and the most steps of a run."""

    train: int = 256
    held: int = 512
    steps: int = 32


@dataclasses.dataclass(frozen=True)
class Task:
    """One combination: a recipe's stem without "shapes_", and a ground."""

    method: str
    ground: str


def methods() -> list[str]:
    """The shipped recipes of the embedded world, by what follows "shapes_"; those for the DiT stand in for theirs."""
    found = sorted(p.stem.removeprefix("shapes_") for p in places.recipe("shapes_dpo").parent.glob("shapes_*.py"))
    return [name for name in found if not name.startswith("sd3_")]


def held_run(models: Path, out: Path, ground: str, kind: str = "pair") -> Run:
    """The run whose data, times and noises the measurement reads; it is never trained."""
    model, prediction = GROUNDS[ground]
    cache = {"pair": "held"}.get(kind, f"held-{kind}")
    where = {"data": str(out / "held" / kind), "out": str(out / model / cache), "model": str(models / model)}
    return Run(objective=SFT(), states=States(prediction=prediction), seed=1, resolution=64, **where)


@torch.no_grad()
def held_errors(run: Run, backbone: Backbone, denoiser: nn.Module) -> tuple[dataset.Dataset, Tensor]:
    """The held-out data, and the error of each of its images at the one time and noise of its group, (images,)."""
    data = dataset.Dataset(Path(run.data))
    known = material.prepare(run, data, backbone)
    visits, found = [dataset.Visit(group, 0) for group in data.groups], []
    denoiser.train(False)
    for start in range(0, len(visits), IMAGES // 2):
        part = visits[start : start + IMAGES // 2]
        x0, t = states.clean(run, backbone.process, known, part)
        noised = states.forward(run, backbone.process, x0, t, part)
        found.append(errors(backbone, denoiser, noised, states.conditioning(run, known, part)))
    return data, torch.cat(found).double()


def judge(data: dataset.Dataset, policy: Tensor, reference: Tensor) -> dict[str, list[float]]:
    """winner_error (policy's less reference's, relative to the latter) and, of pairs, accuracy: [mean, low, high]."""
    judgement = dataset.judge([dataset.Visit(group, 0) for group in data.groups], data.kind)
    values = {"winner_error": judgement.winner(policy - reference) / judgement.winner(reference).mean()}
    if isinstance(judgement, Pairs):
        values = {"accuracy": 0.5 * (1 + judgement.margin(reference - policy).sign())} | values
    stacked = np.stack([prompt_means(v.numpy(), np.arange(len(v))) for v in values.values()])
    ends = bootstrap(stacked, 2000, np.random.default_rng(0))
    return {n: [float(v.mean()), *map(float, e)] for n, v, e in zip(values, stacked, ends, strict=True)}


def prepare(models: Path, out: Path, sizes: Sizes, todo: Sequence[Task]) -> None:
    """Write the data, and for each ground the reference's held-out errors, so that tasks only read."""
    write_world(out / "train", "train", sizes.train, tuple(GROUP))
    write_world(out / "held", "dev", sizes.held, ("pair",))
    write_taste(out / "train", "train", sizes.train)
    write_taste(out / "held", "dev", sizes.held)
    for ground in sorted({task.ground for task in todo}):
        runs = [run_of(task, models, out, sizes) for task in todo if task.ground == ground]
        backbone = backbones.load(runs[0].model)
        for run in {run.out: run for run in runs}.values():
            material.prepare(run, dataset.Dataset(Path(run.data)), backbone)
        for kind in ("pair", "taste") if any(isinstance(run.objective, SFT) for run in runs) else ("pair",):
            run = held_run(models, out, ground, kind)
            backbone.process = states.process(run.states, backbone.process)
            _, reference = held_errors(run, backbone, backbone.denoiser)
            np.save(out / f"reference-{kind}-{ground}.npy", reference.numpy())


def _cache(out: Path, ground: str, kind: str) -> Path:
    return out / GROUNDS[ground][0] / kind


def run_of(task: Task, models: Path, out: Path, sizes: Sizes) -> Run:
    """A recipe's run on a ground: its objective, states and optimizer, on the rendered groups of its kind."""
    model, prediction = GROUNDS[task.ground]
    own = task.ground == "dit" and (places.recipe("shapes_dpo").parent / f"shapes_sd3_{task.method}.py").is_file()
    run = load_recipe(f"shapes_{'sd3_' if own else ''}{task.method}").run
    wanted = run.objective.judgement
    kind = next(name for name in GROUP if issubclass(dataset.KINDS[name], wanted))
    kind = "taste" if isinstance(run.objective, SFT) else kind
    return dataclasses.replace(
        run,
        model=str(models / model),
        states=dataclasses.replace(run.states, prediction=prediction),
        data=str(out / "train" / kind),
        out=str(_cache(out, task.ground, kind)),
        steps=min(run.steps, sizes.steps),
        batch=min(run.batch, IMAGES // GROUP.get(kind, 1)),
    )


def made_from(task: Task, models: Path, out: Path, sizes: Sizes) -> dict[str, Any]:
    """What a row must have been made from to be read again: the weights, the run and the sizes."""
    run = run_of(task, models, out, sizes)
    return {
        "weights": weights.fingerprint(weights.locate(run.model)),
        "run": digest(json.dumps(chosen(dataclasses.replace(run, model="", data="", out="")), sort_keys=True)),
        "data": folders.load(Path(run.data)).fingerprint,
        "sizes": dataclasses.asdict(sizes),
    }


def chosen(value: Any) -> Any:
    """As `to_data`, without the fields that have their default value: one more option does not make another run."""
    if not dataclasses.is_dataclass(value):
        return [chosen(v) for v in value] if isinstance(value, tuple) else value
    usual = {
        f.name: f.default_factory() if callable(f.default_factory) else f.default for f in dataclasses.fields(value)
    }
    given = {n: getattr(value, n) for n in usual if getattr(value, n) != usual[n]}
    return {"class": type(value).__qualname__} | {n: chosen(v) for n, v in given.items()}


def perform(task: Task, models: Path, out: Path, sizes: Sizes) -> dict[str, Any]:
    """Train one combination and measure it before and after."""
    torch.set_num_threads(1)
    started = time.process_time()
    run = run_of(task, models, out, sizes)
    trainer = Trainer(run)

    def measured(kind: str) -> dict[str, list[float]]:
        reference = torch.from_numpy(np.load(out / f"reference-{kind}-{task.ground}.npy"))
        held = held_run(models, out, task.ground, kind)
        return judge(*held_errors(held, trainer.backbone, trainer.denoiser), reference)

    before = measured("pair")
    last = [step.metrics for step in trainer][-1]
    after = measured("pair") | (measured("taste") if isinstance(run.objective, SFT) else {})
    return {
        **dataclasses.asdict(task),
        **made_from(task, models, out, sizes),
        "objective": repr(run.objective),
        "target": "error" if isinstance(run.objective, SFT) else "below" if run.labels == "swapped" else "above",
        "steps": run.steps,
        "groups": run.batch,
        "before": before["accuracy"][0],
        **after,
        "train_accuracy": float(last["accuracy"]),
        "seconds": round(time.process_time() - started, 1),
    }


def tasks(only: Sequence[str], grounds: Sequence[str]) -> list[Task]:
    """All combinations there are: a flow cannot be inverted."""
    found = [Task(method, ground) for method in only for ground in grounds]
    steps = {m: load_recipe(f"shapes_{m}").run.states.inversion.steps for m in only}
    return [t for t in found if not (t.ground == "dit" and steps[t.method])]


def table(models: Path, out: Path, todo: Sequence[Task], sizes: Sizes, workers: int) -> list[dict[str, Any]]:
    """The rows of all tasks, each also at OUT/rows, from where it is read again; raises what a task raises."""
    prepare(models, out, sizes, todo)
    rows = {t: out / "rows" / f"{t.method}-{t.ground}.json" for t in todo}
    missing = [t for t in todo if not _there(rows[t], made_from(t, models, out, sizes))]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        started = {pool.submit(perform, task, models, out, sizes): task for task in missing}
        for done in concurrent.futures.as_completed(started):
            folders.write_atomically(rows[started[done]], (json.dumps(done.result()) + "\n").encode())
            print(f"{started[done]}: {done.result()['accuracy']}", file=sys.stderr, flush=True)
    found = [json.loads(path.read_text()) for path in rows.values()]
    folders.write_atomically(out / "learns.json", (json.dumps(found, indent=1) + "\n").encode())
    return found


def _there(path: Path, wanted: dict[str, Any]) -> bool:
    if not path.exists():
        return False
    found = json.loads(path.read_text())
    return all(found.get(name) == value for name, value in wanted.items())


def main() -> None:
    """Read the command line, run all combinations, print the table; status 1 where one does not learn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for data, caches and results")
    parser.add_argument("--models", type=Path, default=None, help="folder with sdxl and sd3 (default: the shipped)")
    parser.add_argument("--only", nargs="*", default=None, help="methods, by what follows shapes_ in a recipe's name")
    parser.add_argument("--grounds", nargs="*", default=list(GROUNDS), choices=list(GROUNDS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--steps", type=int, default=Sizes().steps)
    asked = parser.parse_args()
    models = asked.models or places.asset("shapes")
    sizes = Sizes(steps=asked.steps)
    rows = table(models, asked.out, tasks(asked.only or methods(), asked.grounds), sizes, asked.workers)
    print(markdown(rows))
    sys.exit(0 if all(map(learned, rows)) else 1)


if __name__ == "__main__":
    main()

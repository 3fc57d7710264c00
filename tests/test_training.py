"""Training: exact on resume, exact in parts, honest in its metrics, and stopped by what is wrong with one line."""

import dataclasses
import hashlib
import json
import math
import re
import shutil
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
import worlds
from commands import Command, contents, run
from torch import Tensor

from diffalign import backbones, dataset, states, training
from diffalign.backbones.base import errors
from diffalign.objectives import DPO, KTO, SFT
from diffalign.objectives.base import Errors
from diffalign.passes import Batch, Passes
from diffalign.records import InputError
from diffalign.run import AdamW, Adaptation, Full, LoRA, Run, Schedule, States
from diffalign.trainer import Trainer, factor
from diffalign.training import train

ADAPTATIONS: list[Adaptation] = [LoRA(rank=2, alpha=4.0), Full()]
every_adaptation = pytest.mark.parametrize("policy", ADAPTATIONS, ids=lambda a: type(a).__name__)
both = pytest.mark.parametrize("family", ["sdxl", "sd3"])


def make(models: dict[str, Path], pairs: Path, out: Path, family: str = "sdxl", **changes: object) -> Run:
    known = Run(
        model=str(models[family]), objective=DPO(beta=2000.0), policy=LoRA(rank=2, alpha=4.0), data=str(pairs),
        out=str(out), steps=6, batch=3, resolution=32, optimizer=AdamW(lr=3e-3), save_every=2, log_every=1,
    )  # fmt: skip
    return dataclasses.replace(known, **changes)


@pytest.fixture
def plain(models: dict[str, Path], pairs: Path, tmp_path: Path) -> Run:
    return make(models, pairs, tmp_path / "run")


def metrics(out: Path | str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def results(out: Path | str) -> dict[str, bytes]:
    """What a run is: its policy, its last checkpoint and its metrics, as bytes."""
    return contents(Path(out), without=("tensorboard", "cache", "run.json"))


def message(run: Run) -> str:
    with pytest.raises(InputError) as caught:
        train(run)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Stop(Exception):
    """What interrupts a run in the middle."""


def stopped(run: Run, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Train, and be interrupted when step `after` is done and logged."""
    original = training.journal.append

    def append(path: Path, entry: dict[str, float]) -> None:
        original(path, entry)
        if entry["step"] == after:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(training.journal, "append", append)
        with pytest.raises(Stop):
            train(run)


# --- going on


@both
@every_adaptation
def test_a_resumed_run_is_the_uninterrupted_one(
    models: dict[str, Path],
    pairs: Path,
    tmp_path: Path,
    family: str,
    policy: Adaptation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = make(models, pairs, tmp_path / "whole", family, policy=policy, caption_dropout=0.3)
    parts = dataclasses.replace(whole, out=str(tmp_path / "parts"))
    assert train(whole).startswith(f"{tmp_path / 'whole' / 'policy'} after 6 steps; next: diffalign ")
    stopped(parts, monkeypatch, after=1)
    stopped(parts, monkeypatch, after=5)
    assert train(parts).startswith("went on from step 4; ")
    assert results(parts.out) == results(whole.out)
    assert [m["step"] for m in metrics(parts.out)] == [1, 2, 3, 4, 5, 6]
    assert [p.name for p in sorted(Path(parts.out).glob("checkpoint-*"))] == ["checkpoint-4", "checkpoint-6"]


def test_a_finished_run_says_so_and_does_nothing(plain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said = train(plain)
    before = contents(Path(plain.out))
    monkeypatch.setattr(training, "Trainer", None)
    assert train(plain) == said
    assert train(dataclasses.replace(plain, log_every=3, keep=5)) == said, "how often it speaks is not what it is"
    assert contents(Path(plain.out)) == before


@pytest.fixture(scope="module")
def cut(models: dict[str, Path], pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, bytes]]:
    """A run that was interrupted after five of six steps, not to be written into, and the results of the whole one."""
    place = tmp_path_factory.mktemp("cut")
    whole = make(models, pairs, place / "whole")
    train(whole)
    parts = dataclasses.replace(whole, out=str(place / "parts"))
    with pytest.MonkeyPatch.context() as patch:
        stopped(parts, patch, after=5)
    return parts, results(whole.out)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone", "no state"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    cut: tuple[Run, dict[str, bytes]], tmp_path: Path, damage: str
) -> None:
    parts, whole = cut
    run = dataclasses.replace(parts, out=str(shutil.copytree(parts.out, tmp_path / "run")))
    victim = Path(run.out) / "checkpoint-4" / ("state.json" if damage == "no state" else "policy.safetensors")
    data = bytearray(victim.read_bytes())
    if damage in ("gone", "no state"):
        victim.unlink()
    else:
        data[-1] ^= 1
        victim.write_bytes(data if damage == "flipped" else data[:-10])
    said = train(run)
    assert said.startswith(f"went on from step 2 ({victim.parent}")
    assert "is damaged" in said or "is not whole" in said
    assert results(run.out) == whole


def test_a_damaged_checkpoint_does_not_push_out_whole_ones(
    cut: tuple[Run, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as the newest by its number; kept, it would be the only one that is kept."""
    run = dataclasses.replace(cut[0], keep=1, out=str(shutil.copytree(cut[0].out, tmp_path / "run")))
    shutil.rmtree(Path(run.out) / "checkpoint-2")
    (Path(run.out) / "checkpoint-4" / "state.json").write_text("{")
    stopped(run, monkeypatch, after=3)
    assert [p.name for p in Path(run.out).glob("checkpoint-*")] == ["checkpoint-2"]
    assert train(run).startswith("went on from step 2; ")


def test_another_run_in_the_folder_is_refused_by_its_fields(plain: Run, pairs: Path, tmp_path: Path) -> None:
    train(dataclasses.replace(plain, steps=1))
    before = contents(Path(plain.out))
    other = dataclasses.replace(plain, objective=DPO(beta=3000.0), optimizer=AdamW(lr=1e-4), steps=2)
    said = message(other)
    assert said.startswith(f"{plain.out}: holds another run (")
    for field in ("objective.beta: 2000.0 -> 3000.0", "optimizer.lr: 0.003 -> 0.0001", "steps: 1 -> 2"):
        assert field in said
    assert said.count(" -> ") == 3
    assert "policy.class: " in message(dataclasses.replace(plain, policy=Full(), steps=1))
    changed = shutil.copytree(pairs.parent, tmp_path / "elsewhere") / "pairs"
    manifest = json.loads((changed / "diffalign.json").read_text())
    (changed / "diffalign.json").write_text(json.dumps(manifest | {"arguments": {"scorer": "other"}}))
    assert "data (content): " in message(dataclasses.replace(plain, data=str(changed), steps=1))
    assert contents(Path(plain.out)) == before


# --- what a step is


@every_adaptation
def test_a_batch_in_parts_is_the_batch(
    models: dict[str, Path], pairs: Path, tmp_path: Path, policy: Adaptation
) -> None:
    """1 x 8 = 2 x 4 = 4 x 2 = 8 x 1, in float64."""
    whole = make(models, pairs, tmp_path, batch=8, steps=2, precision="float64", policy=policy)
    found = []
    for micro in (8, 4, 2, 1):
        trainer = Trainer(dataclasses.replace(whole, micro_batch=micro))
        told = [{k: float(v) for k, v in step.metrics.items()} for step in trainer]
        found.append((told, {n: t.clone() for n, t in trainer.policy.state().items()}))
    for told, state in found[1:]:
        for a, b in zip(told, found[0][0], strict=True):
            assert a == pytest.approx(b, rel=1e-6, abs=1e-10)
        for name, tensor in state.items():
            assert tensor.dtype == torch.float64
            torch.testing.assert_close(tensor, found[0][1][name], rtol=1e-6, atol=1e-8)


def test_the_run_is_a_function_of_its_seed(plain: Run) -> None:
    def losses(run: Run) -> list[float]:
        torch.manual_seed(hash(run) % 1000)
        return [float(step.metrics["loss"]) for step in Trainer(run)]

    short = dataclasses.replace(plain, steps=3)
    first = losses(short)
    torch.rand(7)
    assert losses(short) == first
    assert losses(dataclasses.replace(short, seed=1)) != first


def by_hand(trainer: Trainer) -> tuple[list[dataset.Visit], Tensor, Tensor]:
    """(visits, policy errors, reference errors) of the step that comes next, by the functions that everybody has."""
    run = trainer.run
    visits = trainer.data.visits(run.seed, trainer.step, run.batch)
    x0, t = states.clean(run, trainer.process, trainer.material, visits)
    noised = states.forward(run, trainer.process, x0, t, visits)
    given = states.conditioning(run, trainer.material, visits)
    with torch.no_grad():
        new = errors(trainer.backbone, trainer.denoiser, noised, given)
        with trainer.policy.reference(trainer.denoiser) as denoiser:
            old = errors(trainer.backbone, denoiser, noised, given)
    return visits, new, old


@both
def test_metrics_mean_what_they_are_said_to_mean(
    models: dict[str, Path], pairs: Path, tmp_path: Path, family: str
) -> None:
    trainer = Trainer(make(models, pairs, tmp_path, family, steps=3))
    start = True
    for _ in range(3):
        visits, new, old = by_hand(trainer)
        gap = (new - old).double()
        chosen, rejected, p, place = [], [], [], 0
        for visit in visits:
            at = {image: place + i for i, image in enumerate(visit.group.images)}
            place += len(at)
            for row in visit.group.judgements:
                better, worse = row.images if row.p >= 0.5 else row.images[::-1]
                chosen.append(at[better])
                rejected.append(at[worse])
                p.append(max(row.p, 1 - row.p))
        margin = -1000.0 * (gap[chosen] - gap[rejected])
        label = torch.tensor(p)
        logsigmoid = torch.nn.functional.logsigmoid
        expected = {
            "loss": -(label * logsigmoid(margin) + (1 - label) * logsigmoid(-margin)).mean(),
            "margin": margin.mean(),
            "accuracy": ((margin > 0).double() + 0.5 * (margin == 0)).mean(),
            "chosen_error": gap[chosen].mean(),
            "rejected_error": gap[rejected].mean(),
        }
        step = trainer._advance()
        found = {name: float(value) for name, value in step.metrics.items()}
        for name, value in expected.items():
            assert found[name] == pytest.approx(float(value), rel=1e-4, abs=1e-7), name
        assert found["gradient_norm"] > 0
        if start:
            assert (found["margin"], found["accuracy"]) == (0.0, 0.5)
            assert found["chosen_error"] == found["rejected_error"] == 0.0
            assert found["loss"] == pytest.approx(math.log(2), abs=1e-6)
        else:
            assert found["margin"] != 0
        start = False


def test_weights_of_judgements_weigh(models: dict[str, Path], tmp_path: Path) -> None:
    """A pair of weight 3 is three pairs; one of weight 0 is none."""
    pairs = worlds.pairs(tmp_path / "pairs")
    trainer = Trainer(make(models, pairs, tmp_path / "run", steps=1, batch=12))
    rows = {g.id: dataclasses.replace(g.judgements[0], weight=3.0 * (n % 2)) for n, g in enumerate(trainer.data.groups)}
    trainer.data.groups = [dataclasses.replace(g, judgements=(rows[g.id],)) for g in trainer.data.groups]
    weighed = trainer._advance()
    kept = Trainer(make(models, pairs, tmp_path / "run", steps=1, batch=6))
    kept.data.groups = kept.data.groups[1::2]
    assert float(weighed.metrics["loss"]) == pytest.approx(float(kept._advance().metrics["loss"]), rel=1e-5)
    torch.testing.assert_close(weighed.metrics["gradient_norm"], _first_norm(kept), rtol=1e-4, atol=0)


def _first_norm(trainer: Trainer) -> Tensor:
    fresh = Trainer(trainer.run)
    fresh.data.groups = trainer.data.groups
    return fresh._advance().metrics["gradient_norm"]


def test_a_dropped_caption_is_dropped_for_the_group_and_for_both_sides(
    models: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    run = make(models, pairs, tmp_path, caption_dropout=0.5, batch=24)
    trainer = Trainer(run)
    visits = trainer.data.visits(0, 0, 24)
    given = states.conditioning(run, trainer.material, visits)
    whole = states.conditioning(dataclasses.replace(run, caption_dropout=0.0), trainer.material, visits)
    dropped = []
    for n in range(24):
        rows = slice(2 * n, 2 * n + 2)
        kept = [torch.equal(given[k][rows], whole[k][rows]) for k in given]
        gone = [
            torch.equal(given[k][rows], trainer.material.negative[k].expand_as(given[k][rows]))
            for k in trainer.material.negative
        ]
        assert all(kept) != all(gone)
        dropped.append(all(gone))
    assert 6 <= sum(dropped) <= 18
    again = states.conditioning(run, trainer.material, visits)
    assert all(torch.equal(given[k], again[k]) for k in given)
    assert float(next(iter(trainer)).metrics["margin"]) == 0.0, "policy and reference are told the same"


@pytest.mark.parametrize("noise", ["shared", "independent"])
def test_noise_and_time_of_a_group(models: dict[str, Path], pairs: Path, tmp_path: Path, noise: str) -> None:
    run = make(models, pairs, tmp_path, states=States(noise=noise))
    trainer = Trainer(run)
    visits = trainer.data.visits(0, 0, 12)
    x0, t = states.clean(run, trainer.process, trainer.material, visits)
    eps = states.forward(run, trainer.process, x0, t, visits).target
    assert torch.equal(t[0::2], t[1::2]), "one time a group"
    assert torch.equal(eps[0::2], eps[1::2]) == (noise == "shared")
    order = list(reversed(visits))
    x0, t = states.clean(run, trainer.process, trainer.material, order)
    back = states.forward(run, trainer.process, x0, t, order).target
    assert torch.equal(back, eps.unflatten(0, (12, 2)).flip(0).flatten(0, 1)), "whatever shares the batch"


def test_schedules() -> None:
    run = Run(model="", objective=DPO(), steps=10, schedule=Schedule(warmup=4))
    assert [factor(run, s) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    linear = dataclasses.replace(run, schedule=Schedule("linear", warmup=2))
    assert [factor(linear, s) for s in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 1 - 7 / 8]
    cosine = dataclasses.replace(run, schedule=Schedule("cosine"))
    assert [factor(cosine, s) for s in (0, 5)] == pytest.approx([1.0, 0.5])
    assert factor(cosine, 9) == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))


def test_reference_free_objectives_make_no_reference(plain: Run) -> None:
    trainer = Trainer(dataclasses.replace(plain, objective=SFT(), steps=1))
    step = next(iter(trainer))
    assert set(step.metrics) == {"loss", "margin", "accuracy", "gradient_norm"}
    with pytest.raises(InputError, match="compares with none"):
        trainer.policy.reference(trainer.denoiser).__enter__()


# --- what stops it


def test_a_number_that_is_none_stops_it_and_saves_nothing(plain: Run) -> None:
    wild = dataclasses.replace(plain, optimizer=AdamW(lr=1e30), policy=Full(), save_every=1, steps=5)
    said = message(wild)
    data = dataset.Dataset(Path(plain.data))
    first = data.visits(wild.seed, 1, wild.batch)[0].group
    assert said.startswith(f"step 2: the error of image {first.images[0]} (group {first.id}, judgements ")
    assert "is not finite; nothing of this step was saved, and the checkpoints" in said
    assert [p.name for p in Path(wild.out).glob("checkpoint-*")] == ["checkpoint-1"]
    assert [m["step"] for m in metrics(wild.out)] == [1]
    assert not (Path(wild.out) / "policy").exists()


def test_one_bad_image_is_named_at_its_step(plain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though only every other step is looked at, and whatever the loss makes of the number."""
    third = dataset.Dataset(Path(plain.data)).visits(plain.seed, 2, plain.batch)
    image, original = third[1].group.images[0], Passes.errors

    def spoiled(self: Passes, batch: Batch, new: Tensor) -> Errors:
        found = original(self, batch, new)
        names = [i for v in batch.visits for i in v.group.images]
        hit = torch.tensor([math.inf if batch.visits[0] == third[0] and n == image else 0.0 for n in names])
        return dataclasses.replace(found, policy=found.policy + hit)

    monkeypatch.setattr(Passes, "errors", spoiled)
    said = message(dataclasses.replace(plain, log_every=100, save_every=100))
    group = third[1].group
    known = f"(group {group.id}, judgements {group.judgements[0].id})"
    assert said.startswith(f"step 3: the error of image {image} {known} is not finite; nothing of this step was saved,")
    assert not list(Path(plain.out).glob("checkpoint-*"))


def test_a_run_that_cannot_start_claims_no_folder(plain: Run, tmp_path: Path, models: dict[str, Path]) -> None:
    def claimed() -> bool:
        return (Path(plain.out) / "run.json").exists()

    assert "no such model" in message(dataclasses.replace(plain, model=str(tmp_path / "nowhere")))
    assert "no such folder" in message(dataclasses.replace(plain, data=str(tmp_path / "nowhere")))
    assert "LoRA targets ['nothing']" in message(dataclasses.replace(plain, policy=LoRA(targets=("nothing",))))
    assert "multiples of 4" in message(dataclasses.replace(plain, resolution=30))
    assert "holds judgements of kind pair, but KTO learns from Unpaired" in message(
        dataclasses.replace(plain, objective=KTO())
    )
    flow = dataclasses.replace(plain, model=str(models["sd3"]), states=States(prediction="v_prediction"))
    assert "states.prediction = v_prediction: this model is a flow" in message(flow)
    images = Path(plain.data).parent / "images"
    assert "holds the output of `sample`, expected that of `pair`" in message(
        dataclasses.replace(plain, data=str(images))
    )
    assert not claimed()
    train(dataclasses.replace(plain, steps=1))


def test_latents_that_are_not_finite_are_refused_by_image(plain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = backbones.SDXL.encode_images

    def spoiled(self: object, pixels: Tensor) -> Tensor:
        found = original(self, pixels)
        found[1, 0, 0, 0] = math.nan
        return found

    monkeypatch.setattr(backbones.SDXL, "encode_images", spoiled)
    images = dataset.Dataset(Path(plain.data)).image_ids()
    assert f"the latents of image {images[1]} are not finite" in message(plain)
    assert not list(Path(plain.out).rglob("part-*.safetensors")), "nothing half-written"


def test_images_that_cannot_be_decoded_are_refused_by_name(models: dict[str, Path], tmp_path: Path) -> None:
    pairs = worlds.pairs(tmp_path / "pairs")
    from diffalign import folders

    rows = folders.records(pairs.parent / "images", "images")
    data = b"no picture"
    sha256 = hashlib.sha256(data).hexdigest()
    broken = dataclasses.replace(rows[4], image={"bytes": data, "path": None}, sha256=sha256)
    folders.write_part(pairs.parent / "images", "images", 0, [*rows[:4], broken, *rows[5:]])
    said = message(make(models, pairs, tmp_path / "run"))
    assert f"image {rows[4].id} cannot be decoded" in said


# --- in processes

RECIPE = """
from diffalign.objectives import DPO
from diffalign.run import AdamW, LoRA, Run

run = Run(
    model={model!r}, objective=DPO(beta=2000.0), policy=LoRA(rank=2, alpha=4.0), data={data!r}, steps=8, batch=3,
    resolution=32, optimizer=AdamW(lr=3e-3), save_every=2, log_every=1, out="run",
)
"""


@pytest.fixture(scope="module")
def uninterrupted(
    models: dict[str, Path], pairs: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, bytes]]:
    """Family -> what a run leaves."""
    found = {}
    for family in ("sdxl", "sd3"):
        cwd = tmp_path_factory.mktemp("whole")
        (cwd / "recipe.py").write_text(RECIPE.format(model=str(models[family]), data=str(pairs)))
        ended = run("train", "recipe.py", cwd=cwd)
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.startswith("run/policy after 8 steps; next: diffalign sample --model ")
        found[family] = results(cwd / "run")
    return found


@pytest.mark.parametrize(
    ("number", "family"),
    [(signal.SIGINT, "sdxl"), (signal.SIGINT, "sd3"), (signal.SIGKILL, "sdxl")],
    ids=lambda v: v if isinstance(v, str) else v.name,
)
def test_interrupted_ends_in_the_same_bytes(
    models: dict[str, Path],
    pairs: Path,
    tmp_path: Path,
    number: signal.Signals,
    family: str,
    uninterrupted: dict[str, dict[str, bytes]],
) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE.format(model=str(models[family]), data=str(pairs)))
    for sign in ("cache/texts-*", "checkpoint-2", "checkpoint-4"):
        command = Command("train", "recipe.py", cwd=tmp_path).until(lambda s=sign: any((tmp_path / "run").glob(s)))
        ended = command.signal(number).ended()
        if number == signal.SIGINT:
            assert (ended.status, ended.err) == (130, "diffalign: interrupted; the same command goes on\n")
        else:
            assert ended.status == -signal.SIGKILL
        assert not (tmp_path / "run" / "policy").exists()
    ended = run("train", "recipe.py", cwd=tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("went on from step ")
    assert results(tmp_path / "run") == uninterrupted[family]
    assert not [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")], "nothing is left lying about"


def test_told_to_stop_saves_and_ends_in_the_same_bytes(
    models: dict[str, Path], pairs: Path, tmp_path: Path, uninterrupted: dict[str, dict[str, bytes]]
) -> None:
    """SIGTERM, as a scheduler sends it before it kills: the step at work is saved, whatever `save_every`."""
    (tmp_path / "recipe.py").write_text(RECIPE.format(model=str(models["sdxl"]), data=str(pairs)))
    metrics = tmp_path / "run" / "metrics.jsonl"
    command = Command("train", "recipe.py", cwd=tmp_path).until(lambda: metrics.exists() and metrics.stat().st_size > 0)
    ended = command.signal(signal.SIGTERM).ended()
    found = re.fullmatch(r"diffalign: told to stop; step (\d) is saved, and the same command goes on\n", ended.err)
    assert found, ended
    assert ended.status == 128 + signal.SIGTERM
    assert (tmp_path / "run" / f"checkpoint-{found[1]}").is_dir()
    assert not (tmp_path / "run" / "policy").exists()
    ended = run("train", "recipe.py", cwd=tmp_path)
    assert ended.out.startswith(f"went on from step {found[1]}; "), ended
    whole = uninterrupted["sdxl"]
    last = {name: data for name, data in results(tmp_path / "run").items() if name in whole}
    assert {"metrics.jsonl", "policy/pytorch_lora_weights.safetensors", "checkpoint-8/policy.safetensors"} <= set(last)
    assert last == {name: whole[name] for name in last}


@pytest.mark.parametrize(("largest", "family"), [(3_000, "sdxl"), (20_000, "sdxl"), (60_000, "sdxl"), (20_000, "sd3")])
def test_no_room_is_one_line_and_the_command_goes_on(
    models: dict[str, Path],
    pairs: Path,
    tmp_path: Path,
    largest: int,
    family: str,
    uninterrupted: dict[str, dict[str, bytes]],
) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE.format(model=str(models[family]), data=str(pairs)))
    ended = run("train", "recipe.py", cwd=tmp_path, largest=largest)
    assert ended.status == 2, ended
    assert ended.err.startswith("diffalign: ")
    assert ended.err.count("\n") == 1
    assert ended.err.endswith("; free some room and run the same command again\n")
    assert not [p for p in (tmp_path / "run").rglob("*") if ".tmp" in p.name], "nothing half-written"
    assert run("train", "recipe.py", cwd=tmp_path).status == 0
    assert results(tmp_path / "run") == uninterrupted[family]


def test_what_is_exported_is_what_was_trained(plain: Run) -> None:
    train(plain)
    state = safetensors.torch.load_file(Path(plain.out) / "checkpoint-6" / "policy.safetensors")
    exported = safetensors.torch.load_file(Path(plain.out) / "policy" / "pytorch_lora_weights.safetensors")
    renamed = {f"unet.{n.replace('.default', '')}": t for n, t in state.items()}
    assert renamed.keys() == exported.keys()
    assert all(torch.equal(t, exported[n]) for n, t in renamed.items())

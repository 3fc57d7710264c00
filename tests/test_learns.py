"""The table of what learns: its world is what it says, and two of its combinations learn on the embedded model."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from diffalign import dataset, folders, objectives, places
from diffalign.objectives import DPO
from diffalign.objectives.base import Modifier, Objective
from diffalign.records import InputError
from diffalign.run import Full
from diffalign.shapes.captions import parse, split_of

SCRIPTS = Path(__file__).parent.parent / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def inside(objective: Objective) -> set[type[Objective]]:
    """The class of an objective, and of those it modifies."""
    return {type(objective)} | (inside(objective.objective) if isinstance(objective, Modifier) else set())


@pytest.fixture(scope="module")
def world() -> ModuleType:
    return load("learns_world")


@pytest.fixture(scope="module")
def learns(world: ModuleType) -> ModuleType:
    load("learns_table")
    return load("learns")


@pytest.mark.parametrize(("size", "split"), [(4, "train"), (2, "dev")])
def test_groups_are_wrong_as_counted(world: ModuleType, size: int, split: str) -> None:
    found = list(world.groups(split, 24, size))
    assert len({text for text, _ in found}) == 24
    for text, scenes in found:
        wanted = parse(text)
        assert split_of(wanted) == split
        counts = [world.wrong(wanted, scene) for scene in scenes]
        assert counts == [0, 1, 2, 3] if size == 4 else (counts[0] == 0 and 1 <= counts[1] <= 3)


def test_every_kind_of_judgement_can_be_trained_on(world: ModuleType, tmp_path: Path) -> None:
    world.write_world(tmp_path, "train", 6, tuple(world.GROUP))
    best = {"pair": "chosen", "unpaired": "desirable", "ranking": "scores", "advantages": "values"}
    for kind, size in world.GROUP.items():
        data = dataset.Dataset(tmp_path / kind)
        images = data.image_ids()
        assert len(images) == 6 * (4 if size == 4 else 2)
        judgement = dataset.judge([dataset.Visit(group, 0) for group in data.groups], kind)
        assert len(getattr(judgement, best[kind])) == (6 if kind == "pair" else len(images))
        right = {row["id"] for row in folders.image_rows(tmp_path / kind).values() if row["index"] == 0}
        names = [i for group in data.groups for i in group.images]
        merit = torch.tensor([float(name in right) for name in names])
        assert judgement.winner(merit).sum() == 6, "the right picture wins"
    before = folders.load(tmp_path / "pair").fingerprint
    world.write_world(tmp_path, "train", 6, tuple(world.GROUP))
    assert folders.load(tmp_path / "pair").fingerprint == before


def test_a_taste_is_more_than_the_captions_say(world: ModuleType, tmp_path: Path) -> None:
    world.write_taste(tmp_path, "dev", 12)
    data = dataset.Dataset(tmp_path / "taste")
    texts = [data.texts[group.prompt] for group in data.groups]
    assert len(data.image_ids()) == len(texts) == 12
    assert all(split_of(parse(text)) == "dev" for text in texts)
    assert sum("red" in text for text in texts) < 12
    assert dataset.judge([dataset.Visit(group, 0) for group in data.groups], data.kind).desirable.tolist() == [1.0] * 12
    before = folders.load(tmp_path / "taste").fingerprint
    world.write_taste(tmp_path, "dev", 12)
    assert folders.load(tmp_path / "taste").fingerprint == before


def test_rows_are_of_what_was_asked_for(learns: ModuleType) -> None:
    run = learns.load_recipe("shapes_dpo").run
    assert learns.chosen(run) == learns.chosen(dataclasses.replace(run))
    assert "parity" not in learns.chosen(run), "what has its default value is left out"
    assert learns.chosen(run)["objective"] == {"class": "DPO", "beta": 1000.0}
    for changes in ({"steps": 7}, {"objective": DPO(beta=999.0)}, {"parity": "micro"}, {"policy": Full()}):
        assert learns.chosen(dataclasses.replace(run, **changes)) != learns.chosen(run)


def test_verdicts(learns: ModuleType) -> None:
    row = {"before": 0.5, "accuracy": [0.6, 0.51, 0.7], "winner_error": [-0.1, -0.2, 0.0], "target": "above"}
    assert learns.learned(row)
    assert not learns.learned(row | {"before": 0.501})
    assert not learns.learned(row | {"accuracy": [0.6, 0.5, 0.7]})
    assert not learns.learned(row | {"target": "below"})
    assert not learns.learned(row | {"target": "error"})
    assert learns.learned(row | {"target": "error", "winner_error": [-0.1, -0.2, -0.01]})
    assert learns.learned(row | {"target": "below", "accuracy": [0.4, 0.3, 0.49]})


def test_judging_counts_ties_half(learns: ModuleType, world: ModuleType, tmp_path: Path) -> None:
    world.write_world(tmp_path, "dev", 8, ("pair",))
    data = dataset.Dataset(tmp_path / "pair")
    reference = torch.rand(16, dtype=torch.float64)
    found = learns.judge(data, reference, reference)
    assert found == {"accuracy": [0.5, 0.5, 0.5], "winner_error": [0.0, 0.0, 0.0]}
    pairs = dataset.judge([dataset.Visit(group, 0) for group in data.groups], "pair")
    policy = reference.clone()
    policy[pairs.chosen] *= 0.9
    found = learns.judge(data, policy, reference)
    assert found["accuracy"] == [1.0, 1.0, 1.0]
    np.testing.assert_allclose(found["winner_error"][0], -0.1, rtol=1e-12)


def test_all_objectives_are_in_the_table(learns: ModuleType) -> None:
    todo = learns.tasks(learns.methods(), list(learns.GROUNDS))
    assert len(set(todo)) == len(todo) == 3 * len(learns.methods()) - 1
    assert learns.Task("inpo", "dit") not in todo
    runs = [learns.load_recipe(f"shapes_{m}").run for m in learns.methods()]
    assert {c for run in runs for c in inside(run.objective)} == {
        c for c in vars(objectives).values() if isinstance(c, type) and issubclass(c, Objective)
    }
    names = {learns.load_recipe(f"shapes_{m}").path.stem for m in learns.methods()}
    assert names == {p.stem for p in (SCRIPTS.parent / "train").glob("shapes_*.py") if "_sd3_" not in p.stem}


@pytest.mark.parametrize(("method", "ground"), [("dpo", "unet"), ("rankdpo", "dit")])
def test_it_learns(learns: ModuleType, tmp_path: Path, method: str, ground: str) -> None:
    try:
        models = places.asset("shapes")
        places.asset(f"shapes/{learns.GROUNDS[ground][0]}")
    except InputError as missing:
        pytest.skip(str(missing))
    sizes = learns.Sizes(train=64, held=192, steps=20)
    task = learns.Task(method, ground)
    learns.prepare(models, tmp_path, sizes, [task])
    row = learns.perform(task, models, tmp_path, sizes)
    assert learns.learned(row), row

"""Every recipe in train/ takes two steps on a tiny model of its family; a recipe is one expression."""

import ast
import copy
import dataclasses
import functools
import math
from pathlib import Path
from typing import get_args

import pytest
import worlds

from diffalign import backbones, places, run
from diffalign.backbones.base import Backbone
from diffalign.journal import differences
from diffalign.recipes import load_recipe
from diffalign.records import InputError
from diffalign.run import Run, to_data
from diffalign.trainer import Trainer

TRAIN = Path(__file__).parent.parent / "train"
# Scripts of rounds loop over the stages; what they are held to stands in test_rounds.py.
RECIPES = sorted(p.stem for p in TRAIN.glob("*.py") if not p.stem.startswith("rounds_"))
FAMILY = {
    **{"sd15": "sd", "sd21": "sd", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux", "flux2": "flux2-klein"},
    **{"pixart": "pixart", "qwen": "qwen-image", "sana": "sana", "zimage": "z-image"},
}
# the tiny pipeline of a family where it is named otherwise
TINY = {"flux2-klein": "flux2_klein", "qwen-image": "qwen_image", "z-image": "zimage"}
KINDS = {"Pairs": "pair", "Judgement": "pair", "Unpaired": "unpaired", "Ranking": "ranking", "Advantages": "advantages"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind of judgement -> a folder of such judgements."""
    place = tmp_path_factory.mktemp("judgements")
    return {
        "pair": worlds.pairs(place / "pair"),
        "ranking": worlds.ranked(place / "ranking"),
        "unpaired": worlds.single(place / "unpaired"),
        "advantages": worlds.single(place / "advantages", "advantages"),
    }


@pytest.fixture(scope="module")
def load(models: dict[str, Path]) -> object:
    """`backbones.load` that reads each tiny model once and gives copies of it."""
    read = functools.cache(backbones.load)

    def fresh(model: str, **options: object) -> Backbone:
        return copy.deepcopy(read(model, **options))

    return fresh


def tiny(recipe: Run) -> str:
    if recipe.model.startswith("shapes/"):
        return recipe.model.removeprefix("shapes/")
    return TINY.get(recipe.family, recipe.family)


@pytest.mark.parametrize("name", RECIPES)
def test_two_steps(
    name: str, models: dict[str, Path], data: dict[str, Path], load: object, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe = load_recipe(str(TRAIN / f"{name}.py")).run
    kind, model = KINDS[recipe.objective.judgement.__name__], models[tiny(recipe)]
    small = dataclasses.replace(
        recipe, model=str(model), data=str(data[kind]), resolution=32, steps=2, batch=2,
        micro_batch=min(recipe.micro_batch, 1), out=str(tmp_path_factory.getbasetemp() / "recipes" / model.name / kind),
        curriculum=dataclasses.replace(recipe.curriculum, every=1),
    )  # fmt: skip
    monkeypatch.setattr(backbones, "load", load)
    trainer = Trainer(small)
    before = {n: t.clone() for n, t in trainer.policy.state().items()}
    steps = list(trainer)
    assert [step.index for step in steps] == [1, 2]
    for step in steps:
        assert all(math.isfinite(float(v)) for v in step.metrics.values()), step.metrics
        assert step.metrics["gradient_norm"] > 0
    after = trainer.policy.state()
    assert any((after[n] != t).any() for n, t in before.items())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_one_expression(name: str) -> None:
    path = TRAIN / f"{name}.py"
    text = path.read_text(encoding="utf-8")
    body = ast.parse(text).body
    assert ast.get_docstring(ast.parse(text))
    kinds = [type(node).__name__ for node in body[1:]]
    assert kinds == ["ImportFrom"] * (len(kinds) - 1) + ["Assign"]
    assert ast.unparse(body[-1]).startswith("run = Run(")
    imported = {node.module.split(".")[0] for node in body[1:-1]}
    assert imported == {"diffalign"}
    assert len(text.splitlines()) <= 50
    assert places.recipe(name) == path, "found by its name"
    recipe = load_recipe(name).run
    assert recipe.family == ("any" if name.startswith("shapes_") else FAMILY[name.split("_")[0]]), "says what it is for"
    json_like = to_data(recipe)
    assert json_like["class"] == "diffalign.run:Run"


# --- a recipe of one's own


def write(place: Path, text: str) -> Path:
    path = place / "mine.py"
    path.write_text(text)
    return path


HEAD = "from diffalign.objectives import DPO\nfrom diffalign.run import AdamW, Evaluate, LoRA, Run, Schedule\n"


def test_a_recipe_may_bring_an_objective_of_its_own(tmp_path: Path) -> None:
    text = HEAD + (
        "from dataclasses import dataclass\nfrom diffalign.objectives import SFT\n"
        "@dataclass(frozen=True)\nclass Mine(SFT.__mro__[1]):\n    beta: float = 3.0\n"
        "    def __call__(self, errors, judgement, total=None):\n        raise NotImplementedError\n"
        'run = Run(model="m", objective=Mine(beta=4.0))\nother = Run(model="n", objective=DPO())\n'
    )
    path = write(tmp_path, text)
    found = load_recipe(str(path))
    assert found.run.objective.beta == 4.0
    assert to_data(found.run)["objective"] == {"class": "recipe_mine:Mine", "beta": 4.0}
    assert load_recipe(f"{path}:other").run.model == "n"
    assert len(found.sha256) == 64


def test_types_that_cannot_be_asked_refuse_nothing(tmp_path: Path) -> None:
    text = HEAD + (
        "from collections.abc import Callable\nfrom dataclasses import dataclass\nfrom typing import Any, Protocol\n"
        "from diffalign.objectives.base import Objective\n"
        "class Named(Protocol):\n    name: str\n"
        "@dataclass(frozen=True)\nclass Mine(Objective):\n"
        "    given: Any = 3\n    named: Named = 3\n    kind: type = DPO\n    made: Callable[[int], str] = str\n"
        "    rate: float | None = None\n    weights: tuple[float, ...] = (1, 0.5)\n    {more}\n"
        "    def __call__(self, errors, judgement, total=None):\n        raise NotImplementedError\n"
        'run = Run(model="m", objective=Mine())\n'
    )
    assert load_recipe(str(write(tmp_path, text.format(more="")))).run.objective.given == 3
    unknown = text.format(more='more: "Checked" = 3')
    assert load_recipe(str(write(tmp_path, unknown))).run.objective.more == 3, "a name for a type checker alone"
    with pytest.raises(InputError, match="objective.more = '3': expected float"):
        load_recipe(str(write(tmp_path, text.format(more="more: float = '3'"))))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run = Run(model='m', objective=DPO(), stepz=3)", "TypeError: .*unexpected keyword argument 'stepz'"),
        ("run = Run(model='m', objective=DPO(), steps=0)", "ValueError: steps = 0: expected at least 1"),
        ("run = Run(model='m', objective=DPO(beta=-1.0))", "ValueError: beta = -1.0: expected a positive number"),
        ("run = Run(", "SyntaxError: '\\(' was never closed"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("run = 3", "defines no `run = Run\\(...\\)`"),
        ("", "defines no `run = Run\\(...\\)`"),
        ("run = [][1]", "IndexError: list index out of range"),
        ("raise KeyError('mine')", "KeyError: 'mine'"),
        ("run = Run(model='m', objective=DPO)", "objective = <class .*DPO'>: expected Objective"),
        ("run = Run(model='m', objective=DPO(), seed='3')", "seed = '3': expected int"),
        (
            "run = Run(model='m', objective=DPO(), labels='swaped')",
            "labels = 'swaped': expected 'as_given' or 'swapped'",
        ),
        (
            "run = Run(model='m', objective=DPO(), schedule=Schedule('cosin'))",
            "schedule.shape = 'cosin': expected '.*' or 'cosine'",
        ),
        ("run = Run(model='m', objective=DPO(), compile=1)", "compile = 1: expected bool"),
        ("run = Run(model='m', objective=DPO(), ema=False)", "ema = False: expected float"),
        (
            "run = Run(model='m', objective=DPO(), evaluate=Evaluate(scorers='gold'))",
            "evaluate.scorers = 'gold': expected tuple",
        ),
        (
            "run = Run(model='m', objective=DPO(), optimizer=AdamW(betas=(0.9, '1')))",
            "TypeError: '<=' not supported",
        ),
        ("run = Run(model='m', objective=DPO(), policy=LoRA(targets=('q', 3)))", "policy.targets = .*: expected tuple"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, HEAD + text + "\n")
    with pytest.raises(InputError, match=said) as caught:
        load_recipe(str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_recipe_can_be_for_every_family_and_every_family_has_one() -> None:
    assert set(FAMILY.values()) == {kind.family for kind in backbones.FAMILIES.values()}
    assert set(get_args(run.Family)) == {"any", *(kind.family for kind in backbones.FAMILIES.values())}


def test_a_misspelt_field_has_a_suggestion(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "run = Run(model='m', objective=DPO(), step=3)\n")
    with pytest.raises(InputError, match="did you mean 'steps'"):
        load_recipe(str(path))
    path = write(tmp_path, HEAD + "run = Run(model='m', objective=DPO(bet=3))\n")
    with pytest.raises(InputError, match="did you mean 'beta'"):
        load_recipe(str(path))


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such recipe file, nor a shipped recipe .*shapes_dpo"):
        load_recipe("nothing")
    (tmp_path / "mine.txt").write_text("run = 3")
    with pytest.raises(InputError, match="is not a Python file"):
        load_recipe(str(tmp_path / "mine.txt"))
    path = write(tmp_path, HEAD)
    with pytest.raises(InputError, match="defines no `other"):
        load_recipe(f"{path}:other")
    path.write_bytes(b"run = '\xff'\n")
    with pytest.raises(InputError, match="SyntaxError"):
        load_recipe(str(path))


def test_an_edit_counts_within_the_same_second(tmp_path: Path) -> None:
    for steps in (3, 4, 5):
        path = write(tmp_path, HEAD + f"run = Run(model='m', objective=DPO(), steps={steps})\n")
        assert load_recipe(str(path)).run.steps == steps
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"], "nothing is left beside it"


def test_differences_are_listed_by_field() -> None:
    recipe = load_recipe("shapes_dpo").run
    other = dataclasses.replace(recipe, seed=3, policy=dataclasses.replace(recipe.policy, rank=7))
    found = differences(to_data(recipe), to_data(other))
    assert found == [f"policy.rank: {recipe.policy.rank} -> 7", f"seed: {recipe.seed} -> 3"]
    assert not differences(to_data(recipe), to_data(recipe))

"""The table of methods in the README is what the recipes say, and no method is without a recipe."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from diffalign import objectives
from diffalign.objectives.base import Modifier, Objective

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("methods_table", ROOT / "scripts" / "methods_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def inside(objective: Objective) -> set[type[Objective]]:
    """The class of an objective, and of those it modifies."""
    return {type(objective)} | (inside(objective.objective) if isinstance(objective, Modifier) else set())


def test_readme_has_the_table(script: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert script.put(text) == text, "run scripts/methods_table.py README.md"
    with pytest.raises(ValueError, match="once each"):
        script.put(text.replace(script.BEGIN, ""))


@pytest.mark.parametrize("shapes", [True, False], ids=["embedded-world", "paper"])
def test_every_objective_has_recipes(script: ModuleType, shapes: bool) -> None:
    public = {
        v for n in objectives.__all__ if isinstance(v := getattr(objectives, n), type) and issubclass(v, Objective)
    }
    found = [d.run.objective for d in script.recipes() if d.name.startswith("shapes_") == shapes]
    assert public == set().union(*map(inside, found))


def test_recipes_say_what_beta_is(script: ModuleType) -> None:
    for one in script.recipes():
        text = (ROOT / "train" / f"{one.name}.py").read_text(encoding="utf-8")
        assert "\nbeta: " in text or "\nbeta and " in text, one.name
        assert text.count("run = Run(") == 1, one.name
        assert "def " not in text, one.name
        assert 10 <= len(text.split("\nrun = ")[1].splitlines()) <= 25, one.name


def test_extra_passes(script: ModuleType) -> None:
    runs = {d.name: d.run for d in script.recipes()}
    assert script.forwards([runs["sdxl_mapo"]]) == "0"
    assert script.forwards([runs["sd15_dpo"]]) == "1 reference"
    assert script.forwards([runs["sdxl_smpo"]]) == "1 reference, up to 20 inverting"
    assert "all again" in script.forwards([runs["sd15_kto"]])
    assert script.reference(runs["sd3_crd"]) == "frozen, previous policy"
    assert script.data(runs["sd15_madpo"]) == "pairs, score gaps"

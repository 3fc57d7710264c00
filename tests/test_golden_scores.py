"""The check that users run where the weights are: it passes on the published numbers and on nothing else."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import pytest

from diffalign.records import InputError
from diffalign.scorers import Scorer


@pytest.fixture
def golden(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parent.parent / "scripts" / "golden_scores.py"
    spec = importlib.util.spec_from_file_location("golden_scores", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judged(values: dict[str, list[float]]):
    return lambda name, place: Scorer(name, "", "", lambda: lambda images, prompts: np.array(values[name]))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for n in range(1, 5):
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / f"{n}.webp")
    return tmp_path


PUBLISHED = [0.58116, 0.27453, -1.41318, -2.02957]


def test_published_numbers_pass(golden, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    values = {"imagereward": PUBLISHED, "hpsv2.1": [0.2885], "hpsv2.1_aliased": [0.31]}
    monkeypatch.setattr(golden, "_load", judged(values))
    assert golden.main(imagereward_images=pictures, hps_image=pictures / "1.webp") == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 8
    assert said.endswith("as published\n")


@pytest.mark.parametrize(
    "values",
    [
        {"imagereward": [*PUBLISHED[:3], -2.02], "hpsv2.1": [0.288], "hpsv2.1_aliased": [0.288]},
        {"imagereward": PUBLISHED, "hpsv2.1": [0.3], "hpsv2.1_aliased": [0.28]},
    ],
)
def test_other_numbers_do_not(golden, values, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(golden, "_load", judged(values))
    assert golden.main(imagereward_images=pictures, hps_image=pictures / "1.webp") == 1
    assert "not as published: " in capsys.readouterr().out


def test_nothing_to_check(golden) -> None:
    with pytest.raises(InputError, match="nothing to check"):
        golden.main()

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
    values = {"imagereward": PUBLISHED, "hpsv2.1": [0.2885], "hpsv2.1_aliased": [0.289]}
    monkeypatch.setattr(golden, "_load", judged(values))
    assert golden.main(imagereward_images=pictures, hps_image=pictures / "1.webp") == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 + 6 + 3
    assert said[-3:] == [f"{name}: as published" for name in ("imagereward", "hpsv2.1", "hpsv2.1_aliased")]


@pytest.mark.parametrize("right", ["hpsv2.1", "hpsv2.1_aliased"])
def test_where_one_way_of_resizing_gives_the_number_the_other_is_named(
    golden, right: str, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (wrong,) = {"hpsv2.1", "hpsv2.1_aliased"} - {right}
    monkeypatch.setattr(golden, "_load", judged({right: [0.2885], wrong: [0.31]}))
    assert golden.main(hps_image=pictures / "1.webp") == 0
    said = capsys.readouterr().out.splitlines()
    assert f"{right}: as published" in said
    assert f"{wrong}: not as published" in said
    assert said[-1].startswith(f"only {right} gives HPSv2.1's number")
    assert said[-1].endswith(f"not {wrong}")


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"imagereward": [*PUBLISHED[:3], -2.02], "hpsv2.1": [0.288], "hpsv2.1_aliased": [0.288]}, {"imagereward"}),
        ({"imagereward": [*PUBLISHED[:3], np.nan], "hpsv2.1": [0.288], "hpsv2.1_aliased": [0.288]}, {"imagereward"}),
        (
            {"imagereward": PUBLISHED, "hpsv2.1": [0.3], "hpsv2.1_aliased": [0.28]}, {"hpsv2.1", "hpsv2.1_aliased"},
        ),
    ],
)  # fmt: skip
def test_other_numbers_do_not(
    golden, values, wrong, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:  # fmt: skip
    monkeypatch.setattr(golden, "_load", judged(values))
    assert golden.main(imagereward_images=pictures, hps_image=pictures / "1.webp") == 1
    said = capsys.readouterr().out.splitlines()
    assert {line.partition(":")[0] for line in said if "not as published" in line} == wrong


def test_numbers_of_the_authors_code(golden, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    file, asked = pictures / "official.csv", []
    head = "scorer,image,prompt,value,tolerance\n"
    file.write_text(f'{head}pickscore=A,1.webp,"a cat, red",20.5,0.01\nict=B,2.webp,a dog,0.4,0.01\n'
                    "pickscore=A,3.webp,a fish,21,0.01\n")  # fmt: skip

    def load(name: str, place: str) -> Scorer:
        values = {"pickscore": [20.505, 21.0], "ict": [0.42]}
        return Scorer(name, "", "", lambda: lambda images, prompts: asked.append((place, prompts)) or values[name])

    monkeypatch.setattr(golden, "_load", load)
    assert golden.main(numbers=file) == 1
    assert asked == [("A", ["a cat, red", "a fish"]), ("B", ["a dog"])]
    assert capsys.readouterr().out.splitlines()[-2:] == ["pickscore: as expected", "ict: not as expected"]
    for text, said in (
        ("scorer,image\n", r"official.csv: has no column prompt, value, tolerance, expected scorer, "),
        (f"{head}ict,1.webp,x,one,0.1\n", r"official.csv: line 2: value = 'one', expected a number$"),
        (f"{head}ict,1.webp,x,1,nan\n", r"official.csv: line 2: tolerance = 'nan', expected a number$"),
        (f"{head}ict,1.webp,x,1\n", r"official.csv: line 2: expected 5 fields"),
        (f"{head}ict,1.webp,x,1,2,3\n", r"official.csv: line 2: expected 5 fields"),
        (head, "nothing to check"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=said):
            golden.main(numbers=file)


def test_ones_own_number_is_not_excused_by_a_published_one(
    golden, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    file = pictures / "official.csv"
    file.write_text("scorer,image,prompt,value,tolerance\nhpsv2.1,1.webp,a cat,0.2,0.01\n")
    monkeypatch.setattr(golden, "_load", judged({"hpsv2.1": [0.288, 0.3], "hpsv2.1_aliased": [0.288]}))
    assert golden.main(hps_image=pictures / "1.webp", numbers=file) == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "hpsv2.1: as published", "hpsv2.1_aliased: as published", "hpsv2.1: not as expected",
    ]  # fmt: skip


def test_nothing_to_check(golden) -> None:
    with pytest.raises(InputError, match="nothing to check"):
        golden.main()

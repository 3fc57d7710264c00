"""The wheel: recipes and models travel inside the package, and are found without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages that holds the wheel's files and nothing of the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", place, ROOT], check=True, capture_output=True)
    (wheel,) = place.glob("diffalign-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site-packages")
    return place / "site-packages"


def test_it_holds_every_recipe_and_model_and_no_other_package(installed: Path) -> None:
    inside = {p.relative_to(installed / "diffalign").as_posix() for p in (installed / "diffalign").rglob("*")}
    shipped = [p for kind in ("train", "assets") for p in (ROOT / kind).rglob("*") if "__pycache__" not in p.parts]
    assert {p.relative_to(ROOT).as_posix() for p in shipped} <= inside
    assert {p.name for p in installed.iterdir() if p.suffix != ".dist-info"} == {"diffalign"}


def test_shipped_recipes_and_models_are_found_from_anywhere(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    draw = ["sample", "--model", "shapes/sdxl", "--prompts", "prompts.txt", "--steps", "1", "--out", "images"]
    judge = ["score", "images", "--scorer", "shapes_clip", "gold", "--out", "scores"]
    code = (
        "import diffalign; from diffalign.cli import _run; from diffalign.recipes import load_recipe;"
        f"print(diffalign.__file__); print(load_recipe('shapes_dpo').path); _run({draw!r}); _run({judge!r})"
    )
    known = {**os.environ, "PYTHONPATH": str(installed)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=known, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    package = installed / "diffalign"
    assert ended.stdout.splitlines() == [str(package / "__init__.py"), str(package / "train" / "shapes_dpo.py")]
    assert pq.read_table(tmp_path / "scores" / "scores").num_rows == 2

"""Recipes of rounds on a tiny model: what a round starts from, and that a kill anywhere changes nothing."""

import dataclasses
import importlib.util
import itertools
import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import commands
import numpy as np
import pytest
import worlds

from diffalign import cli, folders
from diffalign.records import InputError
from diffalign.run import Full, Run

ROOT = Path(__file__).parent.parent
NAMES = sorted(p.stem for p in (ROOT / "train").glob("rounds_*.py"))
SCORER = "import numpy as np\ndef bright(images, prompts):\n    return [float(np.asarray(i).mean()) for i in images]\n"
# What a run says of itself and its time, and what a cache keeps.
APART = ("tensorboard", "run.json", "cache", "scores.csv")


def recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "train" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def small(run: Run, model: Path) -> Run:
    return dataclasses.replace(run, model=str(model), resolution=32, steps=2, batch=2, log_every=1, save_every=1)


def go(name: str, model: Path, place: Path, out: Path) -> str:
    """A recipe of rounds at its smallest."""
    module = recipe(name)
    logging.disable(logging.INFO)
    asked: dict[str, Any] = {"run": small(module.RUN, model), "rounds": 2, "steps": 1, "guidance": 1.0, "batch": 3}
    if name == "rounds_spin":
        return module.rounds(real=place / "real", out=out, fine_tuning=2, **asked)
    asked |= {"per_prompt": 2, "scorer": f"{place}/mine.py:bright"}
    asked |= {"real": place / "real", "real_share": 0.25} if name == "rounds_curated" else {}
    return module.rounds(prompts=place / "prompts.txt", out=out, **asked)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, a scorer and real images. Not to be written into."""
    found = tmp_path_factory.mktemp("rounds")
    (found / "prompts.txt").write_text("a red circle\na blue square\na green star\na small circle\n")
    (found / "mine.py").write_text(SCORER)
    worlds.images(found / "real", per_prompt=1)
    return found


@pytest.fixture(scope="module")
def whole(place: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name -> where its rounds were run without interruption."""
    done: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name) / "out"
            go(name, models["sdxl"], place, done[name])
        return done[name]

    return of


@pytest.mark.parametrize("name", NAMES)
def test_a_round_goes_on_from_the_last_one(name: str, whole: Callable[[str], Path]) -> None:
    out = whole(name)
    runs = [out / f"round-{n}" / "run" for n in (0, 1, 2) if (out / f"round-{n}").exists()]
    starts = [json.loads((run / "run.json").read_text())["run"]["policy"]["start"] for run in runs]
    assert starts == ["", *map(str, runs[:-1])]
    drawn = {n: folders.records(out / f"round-{n}" / "images", "images")[0].adapter for n in (1, 2)}
    assert drawn[1] != drawn[2], "drawn by what the round before learnt"
    assert (drawn[1] is None) == (name != "rounds_spin"), "SPIN starts from fine-tuning"
    for earlier, later in itertools.pairwise(runs):
        assert policy(earlier) != policy(later)


def policy(run: Path) -> bytes:
    return (run / "policy" / "pytorch_lora_weights.safetensors").read_bytes()


def test_rounds_share_the_prompts_out(whole: Callable[[str], Path]) -> None:
    for name in ("rounds_online_dpo", "rounds_rankdpo"):
        texts = [set(folders.texts(whole(name) / f"round-{n}" / "images").values()) for n in (1, 2)]
        assert texts == [{"a red circle", "a green star"}, {"a blue square", "a small circle"}]


def test_nothing_judges_spin(whole: Callable[[str], Path], place: Path) -> None:
    out = whole("rounds_spin")
    assert not list(out.rglob("scores"))
    real = {row.id for row in folders.records(place / "real", "images")}
    for n in (1, 2):
        rows = folders.records(out / f"round-{n}" / "pairs", "judgements")
        assert len(rows) == len(real)
        assert all(r.images[0] in real and r.images[1] not in real for r in rows)


def test_the_share_of_real_images(whole: Callable[[str], Path]) -> None:
    for n in (1, 2):
        rows = folders.records(whole("rounds_curated") / f"round-{n}" / "kept", "judgements")
        assert np.mean([r.source == "real" for r in rows]) == pytest.approx(0.2), "one beside four, the nearest to 0.25"


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("rounds_online_dpo", "round-1/images/images/part-00000.parquet"),
        ("rounds_online_dpo", "round-2/run/checkpoint-1"),
        ("rounds_rankdpo", "round-2/scores/diffalign.json"),
        ("rounds_spin", "round-0/run/policy"),
        ("rounds_curated", "round-1/kept/diffalign.json"),
    ],
)
def test_killed_anywhere_the_same_command_goes_on(
    name: str, reached: str, whole: Callable[[str], Path], place: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    expected, out = whole(name), tmp_path / "out"
    process = commands.forked(go, name, models["sdxl"], place, out)
    commands.wait(process, lambda: (out / reached).exists())
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (out / "round-2" / "run" / "policy").exists()
    go(name, models["sdxl"], place, out)
    found, wanted = (said(folder) for folder in (out, expected))
    assert found.keys() == wanted.keys()
    assert [n for n in found if found[n] != wanted[n]] == []


def said(out: Path) -> dict[str, bytes]:
    """Relative path -> bytes, but for the place of OUT itself, which images keep with their adapter."""
    found = commands.contents(out, without=APART)
    return {n: data.replace(str(out).encode(), b"OUT") for n, data in found.items()}


def test_a_finished_command_again_changes_nothing(
    whole: Callable[[str], Path], place: Path, models: dict[str, Path]
) -> None:
    out = whole("rounds_online_dpo")
    before = commands.contents(out)
    assert go("rounds_online_dpo", models["sdxl"], place, out).startswith(f"{out / 'round-2' / 'run'}: the policy")
    assert commands.contents(out) == before


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its flags are typed, the run's too; a mistake is one line and status 2."""
    module = recipe("rounds_online_dpo")
    for words, expected in (
        (["--out", "o", "--prompt", "p"], "no flag --prompt, did you mean --prompts?"),
        (["--out", "o", "--prompts", "none.txt", "--run.objective.beta", "7"], "none.txt: no such prompt file"),
        (["--out", "o", "--prompts", "p", "--run.objective.bet", "7"], "did you mean --run.objective.beta?"),
    ):
        monkeypatch.setattr(sys, "argv", ["rounds_online_dpo.py", *words])
        with pytest.raises(SystemExit) as ended:
            cli.script(module.rounds, "rounds_online_dpo.py")
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert expected in said
        assert said.count("\n") == 1


def test_a_moving_reference_is_asked_for_by_refresh(
    place: Path, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, runs = recipe("rounds_online_dpo"), []
    for stage in ("sample", "score", "pair"):
        monkeypatch.setattr(module, stage, lambda *_, **__: "")
    monkeypatch.setattr(module, "train", lambda run: runs.append(run))
    for refresh in (0, 7):
        module.rounds(prompts=place / "prompts.txt", out=tmp_path, run=module.RUN, rounds=1, refresh=refresh)
    assert [vars(run.reference).get("every") for run in runs] == [None, 7]


def test_rounds_of_full_training_are_refused(place: Path, tmp_path: Path) -> None:
    for name in NAMES:
        module = recipe(name)
        given = {"real": place / "real"} if name == "rounds_spin" else {"prompts": place / "prompts.txt"}
        with pytest.raises(InputError, match="expected a LoRA"):
            module.rounds(out=tmp_path / "o", run=dataclasses.replace(module.RUN, policy=Full()), **given)
    assert not (tmp_path / "o").exists()

"""The demonstration at reduced size, end to end with the shipped models: what it writes, resumes and refuses."""

import importlib.util
import json
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import commands
import pytest
import torch
from safetensors.torch import load_file

from diffalign import cli, demo, folders
from diffalign.demo import Sizes, run_demo
from diffalign.recipes import load_recipe
from diffalign.records import InputError

SMALL = Sizes(train_prompts=10, per_prompt=2, train_steps=2, test_prompts=6, batch=8, steps=2)
ASKED = (
    "gold_base",
    "gold_policy",
    "gold_delta",
    "gold_delta_low",
    "win_rate",
    "win_rate_low",
    "seconds",
    "peak_rss_mib",
)


@pytest.fixture(scope="module", params=sorted(demo.RECIPES))
def backbone(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small demonstration. Not to be written into."""
    out = tmp_path_factory.mktemp("demo") / "out"
    run_demo(out, 0, backbone, SMALL)
    return out


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_result_holds_what_was_compared(whole: Path, backbone: str) -> None:
    found = json.loads((whole / "result.json").read_text())
    scorers = json.loads((whole / "compare" / "compare.json").read_text())["scorers"]
    assert set(ASKED) <= set(found)
    assert found["gold_base"] == scorers["gold_right"]["mean_a"]
    assert found["gold_policy"] == scorers["gold_right"]["mean_b"]
    assert found["gold_delta"] == pytest.approx(found["gold_policy"] - found["gold_base"], abs=1e-12)
    assert (found["win_rate"], found["win_rate_low"]) == tuple(scorers["gold"][k] for k in ("win_rate", "win_rate_low"))
    assert found["seconds"] == pytest.approx(sum(found["stages"].values()), abs=0.1)
    assert 100 < found["peak_rss_mib"] < 16_000
    assert (found["seed"], found["backbone"], found["sizes"]) == (0, backbone, asdict(SMALL))


def test_out_is_a_run_with_an_adapter_and_a_page(whole: Path) -> None:
    assert (whole / "policy" / "pytorch_lora_weights.safetensors").is_file()
    assert json.loads((whole / "run.json").read_text())["run"]["steps"] == 2
    text = (whole / "report.html").read_text()
    assert text.count("<img") >= 12
    assert "judged the training pairs" in text
    assert (whole / "report.png").is_file()


def test_no_gold_score_reaches_training(whole: Path) -> None:
    rows = folders.read(whole / "train" / "pairs", "judgements", ["rater"])
    assert set(rows["rater"].to_pylist()) == {"shapes_clip"}
    for place in folders.lineage(whole / "train" / "pairs"):
        assert set(folders.read(place, "scores", ["scorer"])["scorer"].to_pylist()) <= {"shapes_clip"}


def test_train_and_test_share_no_prompt(whole: Path) -> None:
    learnt, tested = (set((whole / "prompts" / f"{s}.txt").read_text().splitlines()) for s in ("train", "test"))
    assert len(learnt) == 10
    assert len(tested) == 6
    assert not learnt & tested


def test_the_same_command_again_ends_at_once(whole: Path, backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(whole)
    monkeypatch.setattr(demo, "plan", forbidden)
    assert run_demo(whole, 0, backbone, SMALL) == json.loads(before["result.json"])
    assert files(whole) == before


def forbidden(*asked: object) -> None:
    raise AssertionError(f"called with {asked}")


def test_the_commands_do_the_same(whole: Path) -> None:
    """Every stage finds its own finished work under the printed command, so all arguments are the same."""
    before = files(whole)
    lines = [line for line in (whole / "commands.sh").read_text().splitlines() if line.startswith("diffalign ")]
    assert len(lines) == 10
    for line in lines:
        said = cli._run(shlex.split(line)[1:])
        assert "next:" in said
    assert files(whole) == before


@pytest.mark.parametrize("broken", ["score", "train"])
def test_an_interrupted_demonstration_goes_on_to_the_same_tensors(
    broken: str, whole: Path, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(demo, broken, interrupted(getattr(demo, broken)))
        with pytest.raises(KeyboardInterrupt):
            run_demo(out, 0, backbone, SMALL)
    assert not (out / "result.json").exists()
    run_demo(out, 0, backbone, SMALL)
    assert_same(out, whole)


def test_killed_inside_its_stages_it_goes_on_to_the_same_tensors(whole: Path, backbone: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for begun in ("train/images*", "checkpoint-*", "test/policy*"):
        process = commands._CONTEXT.Process(target=run_demo, args=(out, 0, backbone, SMALL))
        process.start()
        while process.is_alive() and not any(out.glob(begun)):
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, begun
    run_demo(out, 0, backbone, SMALL)
    assert_same(out, whole)


def assert_same(out: Path, whole: Path) -> None:
    """The numbers of both results, but time and memory, and the tensors of both adapters."""
    found, wanted = (json.loads((place / "result.json").read_text()) for place in (out, whole))
    same = [name for name in ASKED if name not in ("seconds", "peak_rss_mib")]
    assert {n: found[n] for n in same} == {n: wanted[n] for n in same}
    adapter = Path("policy") / "pytorch_lora_weights.safetensors"
    tensors, wanted_tensors = load_file(out / adapter), load_file(whole / adapter)
    assert tensors.keys() == wanted_tensors.keys()
    assert all(torch.equal(tensors[name], wanted_tensors[name]) for name in tensors)


def interrupted(stage: Callable[..., str]) -> Callable[..., str]:
    """The stage, ended by Ctrl-C as soon as its work is on disk."""

    def stopped(*positional: object, **flags: object) -> str:
        stage(*positional, **flags)
        raise KeyboardInterrupt

    stopped.__name__ = stage.__name__
    return stopped


def test_all_pictures_are_drawn_as_the_recipe_is_evaluated(backbone: str) -> None:
    known = load_recipe(demo.RECIPES[backbone]).run.evaluate
    commands = [stage.command for stage in demo.plan(Path("out"), 0, backbone, Sizes())]
    drawn = [command for command in commands if command.startswith("diffalign sample")]
    assert len(drawn) == 3
    assert all(f"--steps {known.steps} --guidance {known.guidance} " in command for command in drawn)


def test_another_demonstration_in_the_same_folder_is_refused(whole: Path, backbone: str) -> None:
    before = files(whole)
    with pytest.raises(InputError, match="seed = 0, not 1"):
        run_demo(whole, 1, backbone, SMALL)
    assert files(whole) == before


def test_a_foreign_folder_and_a_damaged_state_are_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no demonstration"):
        run_demo(tmp_path, 0, "sdxl", SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(InputError, match="demo.json: is damaged"):
        run_demo(tmp_path, 0, "sdxl", SMALL)


@pytest.mark.parametrize("name", ["demo.json", "result.json"])
@pytest.mark.parametrize("damage", ["{", "{}", "[]", "3", '"x"', b"\xff\xfe"])
def test_a_damaged_file_of_a_finished_demonstration_is_named(name: str, damage: str | bytes, tmp_path: Path) -> None:
    state = {"backbone": "sdxl", "seed": 0, "sizes": asdict(SMALL), "stages": {}}
    (tmp_path / "demo.json").write_text(json.dumps(state))
    (tmp_path / "report.html").write_text("a page")
    (tmp_path / "result.json").write_text("{}")
    (tmp_path / name).write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    before = files(tmp_path)
    with pytest.raises(InputError, match=f"^{tmp_path / name}: is damaged .*$"):
        run_demo(tmp_path, 0, "sdxl", SMALL)
    assert files(tmp_path) == before


@pytest.mark.parametrize("stages", [None, 3, {"a": 1}, {"a": {"seconds": 1}}])
def test_stages_that_are_none_are_damage(stages: object, tmp_path: Path) -> None:
    state = {"backbone": "sdxl", "seed": 0, "sizes": asdict(SMALL), "stages": stages}
    (tmp_path / "demo.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="demo.json: is damaged"):
        run_demo(tmp_path, 0, "sdxl", SMALL)


def test_it_says_what_it_does_stage_by_stage(
    whole: Path, backbone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = demo.plan(whole, 0, backbone, SMALL)
    assert len({stage.title for stage in plan}) == len(plan)
    monkeypatch.setattr(demo, "plan", lambda *asked: plan[:3])
    monkeypatch.setattr(demo, "result", lambda out, state: {"stages": state["stages"]})
    with caplog.at_level("INFO", logger="diffalign.demo"):
        run_demo(tmp_path / "out", 0, backbone, SMALL)
    assert caplog.messages == [f"{n}/3 {stage.title}" for n, stage in enumerate(plan[:3], 1)]


def test_command_lines_are_quoted_and_lists_spread() -> None:
    said = demo.command("score", (Path("a b"),), {"scorer": ("gold", "clip"), "per_prompt": 4})
    assert said == "diffalign score 'a b' --scorer gold clip --per-prompt 4"


def test_the_table_has_a_line_per_seed_and_the_numbers_of_the_results() -> None:
    place = Path(__file__).parent.parent / "scripts" / "demo_table.py"
    spec = importlib.util.spec_from_file_location("demo_table", place)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    row = {"gold_base": 0.5, "gold_policy": 0.6, "gold_delta": 0.1, "gold_delta_low": 0.05, "gold_delta_high": 0.15}
    row |= {"win_rate": 0.61, "win_rate_low": 0.55, "win_rate_high": 0.67, "seconds": 200.4, "seed": 2}
    row |= {"proxy_win_rate": 0.7, "proxy_win_rate_low": 0.65, "proxy_win_rate_high": 0.75}
    lines = script.markdown([row]).splitlines()
    assert [line.count("|") for line in lines] == [8, 8, 8]
    wanted = "| 2 | 50.0% | 60.0% | +10.0 [+5.0, +15.0] | 61.0% [55.0%, 67.0%] | 70.0% [65.0%, 75.0%] | 200 |"
    assert lines[2] == wanted

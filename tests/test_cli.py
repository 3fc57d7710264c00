"""The command line: what is typed wrongly is named with what was meant; exit statuses; Ctrl-C, kill and full disks."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import test_report
import worlds
from commands import Command, Ended, contents, forked, run

from diffalign import __version__
from diffalign.cli import VERBS
from diffalign.comparing import compare
from diffalign.pairing import pair
from diffalign.report import report
from diffalign.scoring import score

SCORER = """
import numpy as np

def brightness(images, prompts):
    return np.array([np.asarray(i).mean() for i in images])
"""


def said(ended: Ended) -> str:
    """The one line of a refusal."""
    assert ended.status == 2, ended
    assert ended.out == ""
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("diffalign: ")
    return ended.err.removeprefix("diffalign: ").rstrip("\n")


@pytest.fixture(params=["sdxl", "sd3"])
def model(request: pytest.FixtureRequest, models: dict[str, Path]) -> Path:
    """A tiny UNet and a tiny DiT, each in turn."""
    return models[request.param]


# --- as everybody starts it


def test_as_a_module_and_as_a_script(tmp_path: Path) -> None:
    module = [sys.executable, "-m", "diffalign"]
    script = Path(sys.executable).with_name("diffalign")
    for command in [module, *([[str(script)]] if script.exists() else [])]:
        found = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=tmp_path, check=True)
        assert found.stdout == f"{__version__}\n"
        wrong = subprocess.run([*command, "smaple"], capture_output=True, text=True, cwd=tmp_path)
        assert wrong.returncode == 2
        assert wrong.stderr.startswith("diffalign: no verb 'smaple', did you mean 'sample'? (demo, sample, ")


def test_a_reader_that_has_gone_is_no_error() -> None:
    """As in `diffalign doctor … | head -3`."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "diffalign", "--help"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_pipe_that_breaks_is_an_error() -> None:
    """A tracker or worker that has died must not end a run without a word."""
    text = "from diffalign.cli import carry_out\ndef call(): raise BrokenPipeError('a tracker')\ncarry_out(call)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True)
    assert done.returncode == 1
    assert done.stderr.endswith(b"BrokenPipeError: a tracker\n")


@pytest.mark.parametrize("slow", ["pyarrow", "tyro", "torch"])
def test_ctrl_c_while_a_command_still_imports_is_one_line(slow: str, tmp_path: Path) -> None:
    """Python itself has started, and nothing but its own modules is loaded."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / f"{slow}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    paths = [str(tmp_path / "fake"), str(Path(__file__).parent.parent)]
    done = subprocess.run(
        [sys.executable, "-m", "diffalign", "train", "shapes_dpo"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "diffalign: interrupted; the same command goes on\n"


def test_before_its_first_statement_a_command_loads_nothing_but_python() -> None:
    """What is loaded before cannot be interrupted in one line."""
    code = "import os, sys; old = set(sys.modules); import diffalign.cli; print(*sorted(set(sys.modules) - old))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["__future__", "diffalign", "diffalign.cli"]


def test_help_lists_every_verb(tmp_path: Path) -> None:
    for words in ([], ["--help"], ["-h"]):
        ended = run(*words, cwd=tmp_path)
        assert (ended.status, ended.err) == (0, "")
        assert all(f"  {verb} " in ended.out for verb in VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_says_what_every_flag_is(verb: str, tmp_path: Path) -> None:
    ended = run(verb, "--help", cwd=tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert f"usage: diffalign {verb}" in ended.out


def test_help_of_train_shows_the_recipes_own_fields(tmp_path: Path) -> None:
    ended = run("train", "shapes_dpo", "--help", cwd=tmp_path)
    assert ended.status == 0
    for flag in ("--objective.beta", "--policy.rank", "--optimizer.lr", "--states.noise", "--caption-dropout"):
        assert flag in ended.out


# --- typed wrongly


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["smaple"], "no verb 'smaple', did you mean 'sample'?"),
        (["xyz"], "no verb 'xyz' ("),
        (["train"], "usage: diffalign train RECIPE"),
        (["train", "--steps", "3"], "usage: diffalign train RECIPE"),
        (["doctor"], "usage: diffalign doctor RECIPE [--card"),
        (["train", "shapes_dpoo"], "shapes_dpoo: no such recipe file, nor a shipped recipe"),
        (["train", "shapes_dpo", "--data", "d", "--objective.beta", "-1"], "beta = -1.0: expected a positive number"),
        (["train", "shapes_dpo", "--data", "d", "--steps", "0"], "steps = 0: expected at least 1"),
        (["train", "shapes_dpo"], "data: is missing; give --data FOLDER"),
        (["train", "shapes_dpo", "--data", "nowhere"], "nowhere: no such folder"),
        (
            ["train", "shapes_dpo", "--data", "d", "--out", "o", "--resume"],
            "o: holds no checkpoint to go on from",
        ),
        (["sample", "--model", "m", "--prompts", "p.txt", "--out", "o"], "p.txt: no such prompt file"),
        (["score", "nowhere", "--scorer", "gold", "--out", "o"], "nowhere"),
        (["pair", "nowhere", "--out", "o"], "nowhere: no such folder"),
        (["compare", "nowhere", "there", "--out", "o"], "nowhere: no such folder"),
        (["report", "nowhere", "--out", "o.html"], "nowhere: "),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else "",
)
def test_mistakes_are_one_line(words: list[str], expected: str, tmp_path: Path) -> None:
    assert expected in said(run(*words, cwd=tmp_path))
    assert {p.name for p in tmp_path.iterdir()} == {".out", ".err"}, "nothing was written"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["sample", "--modle", "m", "--prompts", "p", "--out", "o"], "--model"),
        (["sample", "--model", "m", "--prompts", "p", "--out", "o", "--per-promt", "3"], "--per-prompt"),
        (["train", "shapes_dpo", "--objective.bet", "3"], "--objective.beta"),
        (["train", "shapes_dpo", "--optimiser.lr", "3"], "--optimizer.lr"),
        (["pair", "s", "--out", "o", "--min-gapp", "3"], "--min-gap"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else "",
)
def test_unknown_flags_are_refused_with_the_nearest(words: list[str], meant: str, tmp_path: Path) -> None:
    line = said(run(*words, cwd=tmp_path))
    assert f"did you mean {meant}? (`diffalign {words[0]}" in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sample", "--model", "m", "--prompts", "p", "--out", "o", "--seed", "three"], "--seed"),
        (["sample", "--model", "m", "--prompts", "p"], "--out"),
        (["pair", "s", "--out", "o", "--rule", "best"], "--rule"),
        (["train", "shapes_dpo", "--policy.rank", "many"], "--policy.rank"),
        (["score", "--out", "o"], "Missing from diffalign score: PATH"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else "",
)
def test_values_of_another_type_are_refused_by_flag(words: list[str], expected: str, tmp_path: Path) -> None:
    assert expected in said(run(*words, cwd=tmp_path))


def test_a_recipe_with_a_misspelt_field(tmp_path: Path) -> None:
    text = "from diffalign.objectives import DPO\nfrom diffalign.run import Run\n"
    (tmp_path / "mine.py").write_text(text + 'run = Run(model="m", objective=DPO(), step=3)\n')
    assert said(run("train", "mine.py", cwd=tmp_path)) == (
        "mine.py, line 3: TypeError: Run.__init__() got an unexpected keyword argument 'step', did you mean 'steps'?"
    )


# --- stages on the wrong folders


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """images, scores and pairs below a folder to work in, and a scorer."""
    worlds.pairs(tmp_path)
    (tmp_path / "scorer.py").write_text(SCORER)
    return tmp_path


def test_stages_refuse_folders_of_other_stages(world: Path, model: Path) -> None:
    holds = "holds the output of"
    assert run("pair", "scores", "--out", "made", cwd=world).status == 0
    assert f"made: {holds} `pair`, expected that of `score`" in said(run("pair", "made", "--out", "o", cwd=world))
    wrong = run("score", "scores", "--scorer", "scorer.py:brightness", "--out", "o", cwd=world)
    assert f"scores: {holds} `score`, expected that of `sample`" in said(wrong)
    assert f"images: {holds} `sample`" in said(run("compare", "images", "scores", "--out", "o", cwd=world))
    flags = ("--model", model, "--resolution", 32, "--out", "o")
    assert f"images: {holds} `sample`" in said(run("train", "shapes_dpo", "--data", "images", *flags, cwd=world))
    assert "pairs: " in said(run("report", "pairs", "--out", "o.html", cwd=world))
    assert not (world / "o").exists()
    assert not (world / "o.html").exists()


def test_folders_that_hold_something_else_are_left_alone(world: Path, model: Path) -> None:
    (world / "full").mkdir()
    (world / "full" / "mine.txt").write_text("mine")
    (world / "p.txt").write_text("a red circle\n")
    (world / "file").write_text("mine")
    before = contents(world, without=(".out", ".err"))
    draw = ("sample", "--model", model, "--prompts", "p.txt", "--steps", 1, "--out")
    score = ("score", "images", "--scorer", "scorer.py:brightness", "--out")
    for words in ((*draw, "full"), (*score, "full"), ("pair", "scores", "--out", "full")):
        assert "full: is not empty and holds no record folder; choose another --out" in said(run(*words, cwd=world))
    for words in ((*draw, "file"), (*score, "file"), ("pair", "scores", "--out", "file")):
        assert "file: is a file" in said(run(*words, cwd=world))
    assert "images: holds the output of `sample`" in said(run(*score, "images", cwd=world))
    assert contents(world, without=(".out", ".err", "__pycache__")) == before


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("p.txt", None, "p.txt: no such prompt file"),
        ("p.txt", b"\n \n", "p.txt: holds no prompt"),
        ("p.txt", "a\n\u00fc".encode("latin-1"), "p.txt, line 2: is not UTF-8 (byte 2)"),
        (
            "p.jsonl", b'{"text": "a", "id": "1"}\n{"text": "b", "id": "1"}',
            "p.jsonl, line 2, field id: '1' already stands for 'a'",
        ),
    ],
    ids=("missing", "empty", "not UTF-8", "an id twice"),
)  # fmt: skip
def test_bad_prompt_files(name: str, data: bytes | None, expected: str, model: Path, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert said(run("sample", "--model", model, "--prompts", name, "--out", "o", cwd=tmp_path)) == expected
    assert not (tmp_path / "o").exists()


def test_a_damaged_run_is_named(world: Path, models: dict[str, Path]) -> None:
    """`run.json`, then what is read back where a run goes on."""
    words = ("train", "shapes_dpo", "--model", models["sdxl"], "--resolution", 32, "--steps", 2, "--batch", 2)
    words += ("--policy.rank", 2, "--log-every", 1, "--data", "pairs", "--out", "run")
    assert run(*words, cwd=world).status == 0
    whole = (world / "run" / "run.json").read_bytes()
    for damage in (b"{", b"{}", b"[]", b'{"run": 3}', b'{"run": {}}', b"\xff\xfe"):
        (world / "run" / "run.json").write_bytes(damage)
        assert said(run(*words, cwd=world)).startswith("run/run.json")
    (world / "run" / "run.json").write_bytes(b'{"run": {"model": "m", "steps": 1, "objective": {}}}')
    assert said(run(*words, cwd=world)).startswith("run: holds another run (")
    (world / "run" / "run.json").write_bytes(whole)
    shutil.rmtree(world / "run" / "policy")
    metrics = world / "run" / "metrics.jsonl"
    good = metrics.read_bytes()
    metrics.write_bytes(b"[]\n" + good)
    assert said(run(*words, cwd=world)) == "run/metrics.jsonl, row 1: expected an object with the field 'step'"
    metrics.write_bytes(good + b'{"step": 3}\n\xff\xfe')
    ended = run(*words, cwd=world)
    assert (ended.status, metrics.read_bytes()) == (0, good), ended


def test_training_leaves_other_folders_alone(world: Path, models: dict[str, Path]) -> None:
    (world / "full").mkdir()
    (world / "full" / "mine.txt").write_text("mine")
    (world / "file").write_text("mine")
    words = ("--model", models["sdxl"], "--resolution", 32, "--steps", 1, "--batch", 2, "--policy.rank", 2, "--data")
    before = contents(world, without=(".out", ".err"))
    for verb in ("train", "cache"):
        for out, message in {
            "pairs": "pairs: holds the output of `pair`; choose another --out",
            "images": "images: holds the output of `sample`; choose another --out",
            "full": "full: is not empty and holds no run; choose another --out",
            "file": "file: is a file, expected a folder or a new name",
        }.items():
            assert said(run(verb, "shapes_dpo", *words, "pairs", "--out", out, cwd=world)) == message
    assert contents(world, without=(".out", ".err")) == before
    # its own cache, wherever it is
    assert run("cache", "shapes_dpo", *words, "pairs", "--out", "run", "--cache", "run/kept/x", cwd=world).status == 0
    assert run("train", "shapes_dpo", *words, "pairs", "--out", "run", "--cache", "run/kept/x", cwd=world).status == 0


def test_folders_of_another_run_are_refused_and_stay(world: Path, model: Path) -> None:
    (world / "p.txt").write_text("a red circle\n")
    flags = ("--model", model, "--resolution", 32, "--steps", 1, "--batch", 2, "--policy.rank", 2, "--data", "pairs")
    stages = {
        "images-2": (("sample", "--model", model, "--prompts", "p.txt", "--steps", 1), "--seed", "seed = 0, not 1"),
        "scores-2": (("score", "images", "--scorer", "scorer.py:brightness"), "--batch", "batch = "),
        "pairs-2": (("pair", "scores-2"), "--seed", "seed = 0, not 1"),
        "compare": (("compare", "scores-2", "scores-2"), None, "holds the comparison of "),
        "run": (("train", "shapes_dpo", *flags), "--objective.beta", "objective.beta: 1000.0 -> 1.0"),
    }
    for out, (words, flag, expected) in stages.items():
        assert run(*words, "--out", out, cwd=world).status == 0
        before = contents(world / out)
        other = (*words, flag, 1) if flag else (*words[:2], "scores")
        line = said(run(*other, "--out", out, cwd=world))
        assert out in line
        assert expected in line
        assert contents(world / out) == before


def test_a_half_written_shard_is_named(world: Path) -> None:
    victim = world / "images" / "images" / "part-00000.parquet"
    victim.write_bytes(victim.read_bytes()[:100])
    line = said(run("score", "images", "--scorer", "scorer.py:brightness", "--out", "o", cwd=world))
    assert "images/images/part-00000.parquet: is not a whole Parquet file" in line
    words = ("--model", "m", "--data", "pairs", "--out", "o")
    line = said(run("train", "shapes_dpo", *words, cwd=world))
    whole = "is not a whole Parquet file (Parquet magic bytes not found in footer); run its stage again"
    assert line.endswith(f"images/images/part-00000.parquet: {whole}")
    victim.unlink()
    line = said(run("score", "images", "--scorer", "scorer.py:brightness", "--out", "o", cwd=world))
    assert line.endswith("images: 1 of 1 parts are missing; run its `sample` again")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("scores/scores", ("pair", "scores", "--out", "o")),
        ("scores/scores", ("compare", "scores", "scores", "--out", "o")),
        ("pairs/judgements", ("train", "shapes_dpo", "--model", "m", "--data", "pairs", "--out", "o")),
    ],
    ids=lambda v: v[0] if isinstance(v, tuple) else "",
)
def test_a_half_written_shard_of_any_table_is_named(table: str, words: tuple[str, ...], world: Path) -> None:
    victim = world / table / "part-00000.parquet"
    victim.write_bytes(victim.read_bytes()[:100])
    assert said(run(*words, cwd=world)).startswith(f"{table}/part-00000.parquet: is not a whole Parquet file (")
    assert not (world / "o").exists()


def test_a_report_says_which_shard_is_half_written(world: Path) -> None:
    """The numbers are in compare.json, so the page is made, without pictures."""
    test_report.make_run(world, prompts=3, lines=3)
    victim = world / "run/test/policy-scores/scores/part-00000.parquet"
    victim.write_bytes(victim.read_bytes()[:100])
    ended = run("report", "run", "--out", "page.html", cwd=world)
    assert (ended.status, ended.err) == (0, "")
    assert "policy-scores/scores/part-00000.parquet: is not a whole Parquet file" in (world / "page.html").read_text()
    assert not (world / "page.png").exists()


# --- interrupted


def test_ctrl_c_ends_a_demonstration_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = Command("demo", "--backbone", "sd3", "--out", "o", cwd=tmp_path)
    ended = command.until((tmp_path / "o/train/images/diffalign.json").exists).signal(signal.SIGINT).ended()
    assert (ended.status, ended.out) == (130, "")
    assert re.sub(r"^1/10 draw 4 pictures .*\n", "", ended.err) == "diffalign: interrupted; the same command goes on\n"
    assert not (tmp_path / "o/result.json").exists()
    assert not [p for p in (tmp_path / "o").rglob("*") if ".tmp" in p.name]
    other = said(run("demo", "--backbone", "sd3", "--seed", 1, "--out", "o", cwd=tmp_path))
    assert other == "o: holds a demonstration with seed = 0, not 1; choose another --out"


SLOW = """
import os, time
import numpy as np

def brightness(images, prompts):
    time.sleep(float(os.environ.get("SLOW", "0")))
    return np.array([np.asarray(i).mean() for i in images])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_scoring_goes_on_to_the_same_bytes(world: Path, number: signal.Signals) -> None:
    (world / "scorer.py").write_text(SLOW.replace('os.environ.get("SLOW", "0")', '"0.05"'))
    words = ("score", "images", "--scorer", "scorer.py:brightness", "--batch", 2, "--out")
    assert run(*words, "whole", cwd=world).status == 0
    command = Command(*words, "parts", cwd=world)
    ended = command.until((world / "parts/scores/part-00001.parquet").exists).signal(number).ended()
    assert ended.status == (130 if number == signal.SIGINT else -9)
    assert not (world / "parts/scores/part-00008.parquet").exists()
    assert run(*words, "parts", cwd=world).status == 0
    assert contents(world / "parts") == contents(world / "whole")


# --- a full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place]).returncode:
        pytest.skip("a disk can only be mounted by root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk but for `leave` bytes."""
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(b"0" * max(0, free - leave))
    return disk / "ballast"


def test_a_full_disk_under_training(disk: Path, pairs: Path, model: Path, tmp_path: Path) -> None:
    words = [
        *("train", "shapes_dpo", "--model", model, "--data", pairs, "--resolution", 32, "--steps", 2),
        *("--batch", 2, "--policy.rank", 2, "--save-every", 1, "--out"),
    ]
    assert run(*words, "whole", cwd=tmp_path).status == 0
    expected = contents(tmp_path / "whole", without=("tensorboard", "cache", "run.json"))
    for leave in (0, 30_000, 150_000):
        ballast = fill(disk, leave)
        line = said(run(*words, disk / "run", cwd=tmp_path))
        assert "No space left on device; free some room and run the same command again" in line
        assert not [p for p in disk.rglob("*") if ".tmp" in p.name], "nothing half-written"
        ballast.unlink()
    assert run(*words, disk / "run", cwd=tmp_path).status == 0
    assert contents(disk / "run", without=("tensorboard", "cache", "run.json")) == expected


def test_a_full_disk_under_every_stage(disk: Path, model: Path, world: Path) -> None:
    (world / "p.txt").write_text("a red circle\nthe blue square\n")
    draw = ("sample", "--model", model, "--prompts", "p.txt", "--steps", 1, "--per-prompt", 3, "--batch", 2)
    score = ("score", "images", "--scorer", "scorer.py:brightness", "--batch", 2)
    assert run(*score, "--out", "scored", cwd=world).status == 0
    test_report.make_run(world, prompts=3, lines=3)
    keep = ("cache", "shapes_dpo", "--model", model, "--data", "pairs", "--resolution", 32, "--steps", 1, "--batch", 2)
    stages = {
        "images": draw, "scores": score, "pairs": ("pair", "scored"), "compare": ("compare", "scored", "scored"),
        "page.html": ("report", "run"), "kept": (*keep, "--policy.rank", 2), "demo": ("demo",),
    }  # fmt: skip
    for name, words in stages.items():
        ballast = fill(disk, 0)
        line = said(run(*words, "--out", disk / name, cwd=world))
        assert line.endswith("No space left on device; free some room and run the same command again")
        assert not [p for p in disk.rglob("*") if p.is_file() and p != ballast and p.stat().st_size], (
            "nothing half-written"
        )
        ballast.unlink()
        if name == "demo":
            continue  # minutes long; as it goes on is tested where it is small
        ended = run(*words, "--out", disk / name, cwd=world)
        assert (ended.status, ended.complaints) == (0, ""), ended
        shutil.rmtree(disk / name, ignore_errors=name == "page.html")
        for path in disk.glob("page.*"):
            path.unlink()


def test_a_place_that_cannot_be_written(disk: Path, tmp_path: Path, model: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    (tmp_path / "p.txt").write_text("a red circle\n")
    words = ("sample", "--model", model, "--prompts", "p.txt", "--steps", 1, "--out", disk / "out")
    line = said(run(*words, cwd=tmp_path))
    assert line == (
        f"{disk / 'out'}: Read-only file system; choose a folder that can be written and run the same command again"
    )


# --- every write may be the last


def judged(cwd: Path, out: Path) -> None:
    score(Path("images"), scorer=(f"{cwd / 'scorer.py'}:brightness",), out=out, batch=9)


STAGES: dict[str, Callable[[Path, Path], object]] = {
    "scores": judged,
    "pairs": lambda _, out: pair(Path("scored"), out=out),
    "compare": lambda _, out: compare(Path("scored"), Path("scored"), out=out, resamples=50),
    "page": lambda _, out: report(Path("run"), out=out / "report.html"),
}


def interrupted(name: str, cwd: Path, at: int) -> bool:
    """Whether Ctrl-C at the `at`-th sync came before the stage's end."""
    count, sync = 0, os.fsync

    def fsync(handle: int) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        sync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        try:
            STAGES[name](cwd, Path("made"))
        except KeyboardInterrupt:
            return True
    return False


def mortal(name: str, cwd: Path, at: int) -> None:
    """The stage in a process of its own, killed at its `at`-th sync."""
    count, sync = 0, os.fsync

    def fsync(handle: int) -> None:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    os.chdir(cwd)
    os.fsync = fsync
    STAGES[name](cwd, Path("made"))


def killed(name: str, cwd: Path, at: int) -> bool:
    """Whether kill -9 at the `at`-th sync came before the stage's end."""
    process = forked(mortal, name, cwd, at)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("stopped", [interrupted, killed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_stopped_at_any_write_goes_on(
    name: str, stopped: Callable[..., bool], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is written is synced before it is renamed: after Ctrl-C nothing half-written is left, and after either
    the same call ends in the same bytes.
    """
    monkeypatch.chdir(world)
    judged(world, Path("scored"))
    test_report.make_run(world, prompts=3, lines=3)
    place = world / "made"
    STAGES[name](world, Path("made"))
    expected = contents(place)
    for at in range(1, 100):
        shutil.rmtree(place)
        if not stopped(name, world, at):
            break
        assert stopped is killed or not [p for p in place.rglob("*") if ".tmp" in p.name]
        STAGES[name](world, Path("made"))
        assert contents(place) == expected, f"stopped at write {at}"
    assert (2 if name == "page" else 4) < at < 99

"""What no objective can learn from, or no model can do, ends `train` with one line before a run is begun."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import worlds
from commands import run

from diffalign import folders

RECIPE = """
from diffalign.objectives import *
from diffalign.run import *

run = Run(
    model={model!r}, objective={objective}, policy=LoRA(rank=2, alpha=4.0), data={data!r}, steps=2, batch=3,
    resolution=32, out="run", {more}
)
"""


def edited(pairs: Path, column: str, change: Callable[[object], object]) -> Path:
    """The same folder, a column of its first judgement changed by somebody who knows nothing of records."""
    file = pairs / "judgements" / "part-00000.parquet"
    table = pq.read_table(file)
    values = table[column].to_pylist()
    at = table.column_names.index(column)
    new = pa.array([change(values[0]), *values[1:]], table[column].type)
    pq.write_table(table.set_column(at, table.schema.field(column), new), file)
    return pairs


def raw(place: Path) -> Path:
    """Rankings by raw scores."""
    worlds.ranked(place)
    rows = folders.records(place / "pairs", "judgements")
    return worlds.judged(place, [dataclasses.replace(r, scores=(21.4, 19.8, 20.1)) for r in rows])


def tied(place: Path) -> Path:
    worlds.pairs(place)
    rows = folders.records(place / "pairs", "judgements")
    return worlds.judged(place, [dataclasses.replace(r, p=0.5) for r in rows])


def gapless(place: Path) -> Path:
    worlds.pairs(place)
    rows = folders.records(place / "pairs", "judgements")
    return worlds.judged(place, [dataclasses.replace(r, score_gap=None) for r in rows])


BAD = {
    "a ranking for pairs": (worlds.ranked, "DPO()", "", "holds judgements of kind ranking, but DPO learns from Pairs"),
    "pairs for a ranking": (worlds.pairs, "RankDPO()", "", "of kind pair, but RankDPO learns from Ranking"),
    "pairs for a list, mixed": (worlds.pairs, "Mixed(KTO())", "", "kind pair, but Mixed learns from Unpaired"),
    "nothing but ties": (tied, "DPO()", "", "all 12 judgements are ties, p = 0.5; DPO learns nothing from them"),
    "raw scores": (
        raw, "RankDPO()", "",
        ", field scores: lie in [19.8, 21.4]; RankDPO expects shares of duels won, in [0, 1], as `pair` writes them",
    ),
    "raw scores, mixed": (raw, "Mixed(RankDPO())", "", "Mixed expects shares of duels won"),
    "no gaps": (gapless, "Safeguarded(MADPO())", "", ", field score_gap: is missing, and Safeguarded reads it"),
    "beta of nothing": (worlds.pairs, "DPO(beta=0)", "", "ValueError: beta = 0: expected a positive number"),
    "negative beta": (worlds.pairs, "Pairwise(ElboRatio(-1.0), Logistic())", "", "beta = -1.0: expected a positive"),
    "a reference never read": (
        worlds.pairs, "MaPO()", "reference=EMA()", "MaPO is reference-free, but a reference was asked for",
    ),
    "a probability above 1": (
        lambda place: edited(worlds.pairs(place), "p", lambda p: 1.5), "DPO()", "", "p = 1.5 lies outside [0, 1]",
    ),
    "a probability that is none": (
        lambda place: edited(worlds.pairs(place), "p", lambda p: math.nan), "DPO()", "", "p = nan lies outside [0, 1]",
    ),
    "a pair of one": (
        lambda place: edited(worlds.pairs(place), "images", lambda i: i[:1]), "DPO()", "",
        "1 images, which a judgement of kind pair cannot have",
    ),
    "a ranking of one": (
        lambda place: edited(edited(worlds.ranked(place), "images", lambda i: i[:1]), "scores", lambda s: s[:1]),
        "PlackettLuce()", "", "1 images, which a judgement of kind ranking cannot have",
    ),
    "an inversion of a flow": (
        worlds.pairs, "DPO()", "states=States(inversion=Inversion(steps=4))",
        "states.inversion.steps = 4: DDIM inversion is defined for variance-preserving models, and this one is a flow",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused_in_one_line_and_no_run_begun(case: str, models: dict[str, Path], tmp_path: Path) -> None:
    data, objective, more, message = BAD[case]
    place = data(tmp_path / "data")
    model = str(models["sd3" if "flow" in case else "sdxl"])
    text = RECIPE.format(model=model, objective=objective, data=str(place), more=more)
    if "inversion" in case:
        text = "from diffalign.inversion import Inversion\n" + text
    (tmp_path / "recipe.py").write_text(text)
    ended = run("train", "recipe.py", cwd=tmp_path)
    assert (ended.status, ended.out) == (2, ""), ended
    assert ended.err.count("\n") == 1, ended.err
    assert message in ended.err
    assert {path.name for path in (tmp_path / "run").glob("*")} <= {"cache"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--objective.beta", "0"), "beta = 0"),
        (("--objective.beta", "-3"), "beta = -3"),
        (("--objective.beta", "nan"), "beta = nan"),
        (("--states.noise", "independent", "--states.inversion.steps", "3"), "an inverted state draws none"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_flags_that_make_no_sense_are_one_line(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    ended = run("train", "shapes_dpo", *flags, cwd=tmp_path)
    assert (ended.status, ended.out) == (2, ""), ended
    assert ended.err.count("\n") == 1, ended.err
    assert message in ended.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            'evaluate=Evaluate(prompts="prompts.txt", scorers=("gold",), every=1)',
            "prompts.txt, line 3: gold cannot judge by it: caption 'a photo of a cat': unknown word 'photo'",
        ),
        ('evaluate=Evaluate(prompts="none.txt", scorers=("gold",), every=1)', "none.txt: no such prompt file"),
        (
            'log_with="comet_ml"',
            "log_with = comet_ml: its package is not installed; pip install it, or use tensorboard",
        ),
    ],
    ids=["a prompt without meaning", "no prompts", "no tracker"],
)
def test_what_cannot_watch_a_run_is_named_before_anything_is_written(
    more: str, message: str, models: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n\na photo of a cat\n")
    text = RECIPE.format(model=str(models["sdxl"]), objective="DPO()", data=str(pairs), more=more)
    (tmp_path / "recipe.py").write_text(text)
    ended = run("train", "recipe.py", cwd=tmp_path)
    assert (ended.status, ended.out, ended.err) == (2, "", f"diffalign: {message}\n")
    assert not (tmp_path / "run").exists()

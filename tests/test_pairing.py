"""Pairing: the rules, what is left out and counted, and that nothing depends on the order of rows."""

import math
import random
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from diffalign import folders, gathering, pairing, rules
from diffalign.dataset import Dataset
from diffalign.records import Image, InputError, Judgement, Prompt, Score, prompt_id


def scored(place: Path, groups: dict[str, dict[str, list[float | None]]], order: random.Random | None = None) -> Path:
    """A scores folder of prompt text -> scorer -> value of each image, beside an images folder; rows in any order."""
    folders.begin(place / "images", folders.Manifest("sample", {"groups": sorted(groups)}, 1))
    prompts, images, rows = [], [], []
    for text, by_scorer in groups.items():
        prompts.append(Prompt(prompt_id(text), text))
        for scorer, values in by_scorer.items():
            for index, value in enumerate(values):
                rows.append(Score(f"{text}-{index}", prompt_id(text), scorer, "r", "none", value))
        images += [
            Image(f"{text}-{i}", prompt_id(text), {"bytes": b"x", "path": None}, "0", 1, 1, seed=0, index=i)
            for i in range(max(map(len, by_scorer.values())))
        ]
    if order:
        order.shuffle(rows)
    folders.write_part(place / "images", "prompts", 0, prompts)
    folders.write_part(place / "images", "images", 0, images)
    parents = (folders.parent(place / "scores", place / "images"),)
    folders.begin(place / "scores", folders.Manifest("score", {}, 1, parents))
    folders.write_part(place / "scores", "scores", 0, rows)
    return place / "scores"


def paired(place: Path, groups: dict[str, dict[str, list[float | None]]], **flags: Any) -> list[Judgement]:
    pairing.pair(scored(place, groups), out=place / "pairs", **flags)
    return folders.records(place / "pairs", "judgements")


# --- rules


def test_the_flag_offers_exactly_the_rules() -> None:
    assert set(get_args(get_type_hints(pairing.pair)["rule"])) == set(pairing.READS)
    assert set(rules.RULES) | {*pairing.SEVERAL, *pairing.LISTS, *gathering.RULES} == set(pairing.READS)


# --- records


def test_a_pair_names_images_gap_and_judge(tmp_path: Path) -> None:
    [found] = paired(tmp_path, {"a": {"clip": [0.25, 0.75, 0.5]}})
    assert found.images == ("a-1", "a-0")
    assert (found.p, found.score_gap, found.rater, found.source) == (1.0, 0.5, "clip", "best_vs_worst")
    assert (found.kind, found.status) == ("pair", "decided")
    assert [g.prompt for g in Dataset(tmp_path / "pairs").groups] == [prompt_id("a")]


@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0])
def test_soft_labels_are_a_sigmoid_of_the_gap(temperature: float, tmp_path: Path) -> None:
    found = paired(tmp_path, {"a": {"clip": [0.0, 0.5, 2.0]}}, rule="all_pairs", temperature=temperature)
    assert sorted(j.score_gap for j in found) == [0.5, 1.5, 2.0]
    for judgement in found:
        odds = judgement.p / (1 - judgement.p) if judgement.p < 1 else math.inf
        assert math.log(odds) == pytest.approx(judgement.score_gap / temperature, rel=1e-6)


@pytest.mark.parametrize("rule", list(rules.RULES))
@pytest.mark.parametrize("shuffle", [1, 2])
def test_nothing_depends_on_the_order_of_rows(rule: str, shuffle: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 4)).round(1)
    groups = {f"p{n}": {"clip": row.tolist(), "gold": row[::-1].tolist()} for n, row in enumerate(values)}
    turned = dict(reversed(groups.items()))
    for place, made, order in (("a", groups, None), ("b", turned, random.Random(shuffle))):
        pairing.pair(scored(tmp_path / place, made, order), out=tmp_path / place / "pairs", rule=rule)
    first, second = (folders.records(tmp_path / p / "pairs", "judgements") for p in ("a", "b"))
    assert first == second
    assert len(first) >= 5


def test_again_gives_the_same_file(tmp_path: Path) -> None:
    scores = scored(tmp_path, {"a": {"clip": [0.0, 1.0, 0.5]}, "b": {"clip": [0.3, 0.2, 0.1]}})
    said = pairing.pair(scores, out=tmp_path / "pairs", rule="best_vs_random", seed=3)
    before = folders.part(tmp_path / "pairs", "judgements", 0).read_bytes()
    assert pairing.pair(scores, out=tmp_path / "pairs", rule="best_vs_random", seed=3) == said
    assert folders.part(tmp_path / "pairs", "judgements", 0).read_bytes() == before
    with pytest.raises(InputError, match="made with seed = 3, not 4"):
        pairing.pair(scores, out=tmp_path / "pairs", rule="best_vs_random", seed=4)


# --- what is left out


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    groups = {
        "spread": {"clip": [0.0, 1.0, None]},
        "flat": {"clip": [0.5, 0.5, 0.5]},
        "close": {"clip": [0.5, 0.55]},
        "one": {"clip": [0.5]},
        "one left": {"clip": [None, 0.5]},
        "none left": {"clip": [None, None]},
    }
    scores = scored(tmp_path, groups)
    said = pairing.pair(scores, out=tmp_path / "pairs", min_gap=0.1)
    assert said == (
        f"{tmp_path / 'pairs'}: 1 pairs of 6 prompts by clip (best_vs_worst), median gap 1; left out: "
        f"4 missing scores, 1 prompts without any score, 2 groups of one, 2 groups without spread; "
        f"next: diffalign train RECIPE.py --data {tmp_path / 'pairs'} --out …"
    )


def test_tied_pairs_of_a_group_with_spread(tmp_path: Path) -> None:
    scores = scored(tmp_path, {"a": {"clip": [0.0, 0.0, 1.0, 1.05]}})
    said = pairing.pair(scores, out=tmp_path / "pairs", rule="all_pairs", min_gap=0.1)
    assert "4 pairs" in said
    assert "left out: 2 tied pairs" in said
    assert {j.score_gap for j in folders.records(tmp_path / "pairs", "judgements")} == {1.0, 1.05}


def test_a_gap_of_exactly_the_tolerance_is_a_tie(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gives no pair by clip; left out: 1 groups without spread"):
        pairing.pair(scored(tmp_path, {"a": {"clip": [0.0, 0.5]}}), out=tmp_path / "pairs", min_gap=0.5)
    assert not (tmp_path / "pairs").exists()


# --- the gold scores only measure


@pytest.mark.parametrize("name", ["gold", "gold_right"])
def test_no_preference_is_made_of_gold_scores(name: str, tmp_path: Path) -> None:
    alone = scored(tmp_path / "alone", {"a": {name: [0.0, 1.0]}})
    beside = scored(tmp_path / "beside", {"a": {name: [0.0, 1.0], "clip": [1.0, 0.0]}})
    for scores, wanted in ((alone, None), (alone, name), (beside, name)):
        with pytest.raises(InputError, match=f"{name} is for measuring only; nothing is ever trained on it"):
            pairing.pair(scores, out=tmp_path / "pairs", scorer=() if wanted is None else (wanted,))
    assert not (tmp_path / "pairs").exists()
    pairing.pair(beside, out=tmp_path / "pairs")
    [found] = folders.records(tmp_path / "pairs", "judgements")
    assert (found.images[0], found.rater) == ("a-0", "clip")


# --- mistakes


def test_which_scorer(tmp_path: Path) -> None:
    groups = {"a": {"clip": [0.0, 1.0], "mine.py:f": [1.0, 0.0], "gold": [1.0, 0.0]}}
    scores = scored(tmp_path, groups)
    with pytest.raises(InputError, match="holds scores by clip, mine.py:f; choose one with --scorer"):
        pairing.pair(scores, out=tmp_path / "pairs")
    with pytest.raises(InputError, match="holds no scores by 'clop', only by clip, gold, mine.py:f"):
        pairing.pair(scores, out=tmp_path / "pairs", scorer=("clop",))
    assert "by mine.py:f" in pairing.pair(scores, out=tmp_path / "pairs", scorer=("mine.py:f",))


@pytest.mark.parametrize(
    "flags", [{"min_gap": -1.0}, {"min_gap": math.nan}, {"temperature": 0.0}, {"temperature": -1.0}, {"rule": "best"}]
)
def test_flags_out_of_range(flags: dict[str, Any], tmp_path: Path) -> None:
    scores = scored(tmp_path, {"a": {"clip": [0.0, 1.0]}})
    with pytest.raises(InputError, match="out of range|expected one of best_vs_worst"):
        pairing.pair(scores, out=tmp_path / "pairs", **flags)


def test_folders_that_are_no_scores(tmp_path: Path) -> None:
    scores = scored(tmp_path, {"a": {"clip": [0.0, 1.0]}})
    with pytest.raises(InputError, match="output of `sample`, expected that of `score`"):
        pairing.pair(tmp_path / "images", out=tmp_path / "pairs")
    with pytest.raises(InputError, match="holds the output of `score`, expected that of `pair`"):
        pairing.pair(scores, out=scores)
    rows = folders.records(scores, "scores")
    folders.write_part(scores, "scores", 0, [*rows, rows[0]])
    with pytest.raises(InputError, match="image a-0 has two scores by clip"):
        pairing.pair(scores, out=tmp_path / "pairs")
    folders.part(scores, "scores", 0).unlink()
    with pytest.raises(InputError, match="run its `score` again"):
        pairing.pair(scores, out=tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()

"""Comparing: exact answers where they are known, intervals that cover, and folders that do not compare."""

import csv
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffalign import folders
from diffalign.comparing import compare, comparison
from diffalign.intervals import bootstrap, outcomes, prompt_means, sign_flip
from diffalign.records import Image, InputError, Prompt, Score, prompt_id
from diffalign.streams import stream

Values = dict[str, dict[tuple[int, int], float | None]]


def scored(
    place: Path, name: str, values: Values, sampler: str = "5 steps", seed: int = 0, revision: str = "r"
) -> Path:
    """Scores of one model at `place/name`, its images beside it: scorer -> (prompt, index) -> value."""
    images, scores = place / f"{name}-images", place / name
    cells = sorted({cell for by_cell in values.values() for cell in by_cell})
    texts = {n: f"prompt {n}" for n, _ in cells}
    ids = {n: prompt_id(text) for n, text in texts.items()}
    rows = [
        Image(
            f"{name}-{n}-{i}", ids[n], {"bytes": b"x", "path": None}, "0", 1, 1,
            model=name, sampler=sampler, seed=seed, index=i,
        )
        for n, i in cells
    ]  # fmt: skip
    folders.begin(images, folders.Manifest("sample", {"model": name}, 1))
    folders.write_part(images, "prompts", 0, [Prompt(ids[n], text) for n, text in texts.items()])
    folders.write_part(images, "images", 0, rows)
    folders.begin(scores, folders.Manifest("score", {}, 1, (folders.parent(scores, images),)))
    found = [
        Score(f"{name}-{n}-{i}", ids[n], scorer, revision, "none", value)
        for scorer, by_cell in values.items()
        for (n, i), value in by_cell.items()
    ]
    folders.write_part(scores, "scores", 0, found)
    return scores


def grid(values: np.ndarray) -> dict[tuple[int, int], float | None]:
    return {cell: float(v) for cell, v in np.ndenumerate(values)}


@pytest.fixture
def base() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 3))


# --- exact cases


def test_a_model_against_itself(tmp_path: Path, base: np.ndarray) -> None:
    a, b = (scored(tmp_path, n, {"gold": grid(base)}) for n in "ab")
    found = comparison(a, b)["scorers"]["gold"]
    assert (found["win_rate"], found["win_rate_low"], found["win_rate_high"]) == (0.5, 0.5, 0.5)
    assert (found["delta"], found["delta_low"], found["delta_high"], found["p_value"]) == (0, 0, 0, 1)
    assert (found["wins"], found["ties"], found["losses"]) == (0, 18, 0)


@pytest.mark.parametrize(("shift", "rate"), [(1.5, 1.0), (-1.5, 0.0)])
def test_better_everywhere(shift: float, rate: float, tmp_path: Path, base: np.ndarray) -> None:
    a, b = scored(tmp_path, "a", {"gold": grid(base)}), scored(tmp_path, "b", {"gold": grid(base + shift)})
    found = comparison(a, b)["scorers"]["gold"]
    assert (found["win_rate"], found["win_rate_low"], found["win_rate_high"]) == (rate, rate, rate)
    assert found["delta"] == pytest.approx(shift)
    assert found["delta_low"] == pytest.approx(shift)
    assert found["mean_b"] - found["mean_a"] == pytest.approx(found["delta"])
    assert found["median_b"] == pytest.approx(np.median(base) + shift)
    # all six signs must agree: 2 of 64 flips
    assert found["p_value"] == pytest.approx(2 / 64, abs=0.006)


def test_prompts_weigh_alike_however_many_images_they_have(tmp_path: Path) -> None:
    a = scored(tmp_path, "a", {"gold": dict.fromkeys([(0, 0), (1, 0), (1, 1), (1, 2), (1, 3)], 0.0)})
    b = scored(tmp_path, "b", {"gold": {(0, 0): 1.0, (1, 0): -1.0, (1, 1): -1.0, (1, 2): -1.0, (1, 3): 0.0}})
    found = comparison(a, b)["scorers"]["gold"]
    assert found["win_rate"] == (1 + 0.125) / 2
    assert found["delta"] == (1 - 0.75) / 2
    assert (found["wins"], found["ties"], found["losses"]) == (1, 1, 3)


def test_swapping_the_sides_mirrors_the_result(tmp_path: Path, base: np.ndarray) -> None:
    other = np.where(base > 0.5, base, np.random.default_rng(1).normal(size=base.shape))
    a, b = scored(tmp_path, "a", {"gold": grid(base)}), scored(tmp_path, "b", {"gold": grid(other)})
    there, back = comparison(a, b)["scorers"]["gold"], comparison(b, a)["scorers"]["gold"]
    assert there["win_rate"] + back["win_rate"] == pytest.approx(1)
    assert there["win_rate_low"] + back["win_rate_high"] == pytest.approx(1)
    assert there["delta_low"] == pytest.approx(-back["delta_high"])
    assert there["p_value"] == back["p_value"]
    assert (there["wins"], there["ties"], there["losses"]) == (back["losses"], back["ties"], back["wins"])


def test_tolerance_makes_ties(tmp_path: Path) -> None:
    a = scored(tmp_path, "a", {"gold": {(0, 0): 0.0, (1, 0): 0.0, (2, 0): 0.0}})
    b = scored(tmp_path, "b", {"gold": {(0, 0): 0.25, (1, 0): -0.25, (2, 0): 0.5}})
    found = comparison(a, b, tolerance=0.25)["scorers"]["gold"]
    assert (found["wins"], found["ties"], found["losses"]) == (1, 2, 0)


def test_same_seed_same_result_whatever_the_order(tmp_path: Path, base: np.ndarray) -> None:
    a, b = scored(tmp_path, "a", {"gold": grid(base)}), scored(tmp_path, "b", {"gold": grid(base[::-1])})
    first = comparison(a, b)
    for side in (a, b):
        folders.write_part(side, "scores", 0, folders.records(side, "scores")[::-1])
    assert comparison(a, b) == first
    assert comparison(a, b, seed=1)["scorers"] != first["scorers"]


# --- intervals and tests in numbers


def test_outcomes_and_means() -> None:
    assert outcomes(np.zeros(3), np.array([1.0, -1.0, 0.0])).tolist() == [1, 0, 0.5]
    assert prompt_means(np.array([1.0, 3.0, 5.0]), np.array([1, 1, 0])).tolist() == [5, 2]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_bootstrap_stays_between_the_extremes(values: list[float]) -> None:
    means = np.array([values, [2 * v + 1 for v in values]])
    (low, high), (low2, high2) = bootstrap(means, 200, stream("test", 0))
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert (low2, high2) == pytest.approx((2 * low + 1, 2 * high + 1))


def test_bootstrap_of_a_share_is_the_binomial() -> None:
    """Resampling n prompts of which half win gives Binomial(n, 1/2) / n."""
    n, k = 40, np.arange(41)
    mass = np.array([math.comb(n, i) for i in k]) / 2**n
    [(low, high)] = bootstrap(np.repeat([0.0, 1.0], n // 2)[None], 20_000, stream("test", 0))
    assert low == k[np.searchsorted(mass.cumsum(), 0.025)] / n
    assert high == k[np.searchsorted(mass.cumsum(), 0.975)] / n


def test_sign_flip_agrees_with_all_sign_patterns() -> None:
    differences = np.random.default_rng(2).normal(0.4, 1, size=9)
    patterns = np.array(list(itertools.product((-1, 1), repeat=9)))
    exact = (np.abs(patterns @ differences) >= abs(differences.sum()) - 1e-12).mean()
    assert 0.02 < exact < 0.5
    assert sign_flip(differences, 20_000, stream("test", 0)) == pytest.approx(exact, abs=0.012)


def test_sign_flip_is_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(3)
    found = np.array([sign_flip(rng.normal(size=20), 300, rng) for _ in range(400)])
    assert abs((found <= 0.1).mean() - 0.1) < 0.05
    assert abs((found <= 0.5).mean() - 0.5) < 0.08


def test_coverage_with_correlated_images() -> None:
    """80 prompts x 5 images, correlation 0.5: by prompts the interval covers, by images it would not."""
    rng, clustered, naive, runs = np.random.default_rng(4), 0, 0, 300
    for _ in range(runs):
        cells = 0.3 + rng.normal(size=(80, 1)) + rng.normal(size=(80, 5))
        for means, hits in ((cells.mean(axis=1), "clustered"), (cells.ravel(), "naive")):
            [(low, high)] = bootstrap(means[None], 400, rng)
            covered = low <= 0.3 <= high
            clustered, naive = clustered + (hits == "clustered") * covered, naive + (hits == "naive") * covered
    assert 0.90 <= clustered / runs <= 0.98
    assert naive / runs < 0.82


# --- folders


def test_what_is_written(tmp_path: Path, base: np.ndarray) -> None:
    a = scored(tmp_path, "a", {"clip": grid(base), "gold": grid(base), "extra": grid(base)})
    b = scored(tmp_path, "b", {"clip": grid(base + 1), "gold": grid(base - 1)})
    said = compare(a, b, out=tmp_path / "run" / "compare")
    found = json.loads((tmp_path / "run" / "compare" / "compare.json").read_text())
    assert (found["a"], found["b"]) == ("../../a", "../../b")
    assert (found["prompts"], found["cells"], found["resamples"], found["seed"]) == (6, 18, 10_000, 0)
    assert list(found["scorers"]) == ["gold", "clip"]
    assert found["scorers_left_out"] == ["extra"]
    assert found["drawn"]["b"] == {"model": ["b"], "adapter": [None], "sampler": ["5 steps"], "seed": [0]}
    assert "gold: win rate 0.0% [0.0%, 0.0%]" in said
    assert "clip: win rate 100.0% [100.0%, 100.0%]" in said
    lines = list(csv.DictReader(io.StringIO((tmp_path / "run" / "compare" / "cells.csv").read_text())))
    assert len(lines) == 18
    cell = next(x for x in lines if (x["prompt"], x["index"]) == ("prompt 2", "1"))
    assert float(cell["clip b"]) == base[2, 1] + 1
    assert float(cell["gold a"]) == base[2, 1]
    before = {p.name: p.read_bytes() for p in (tmp_path / "run" / "compare").iterdir()}
    assert compare(a, b, out=tmp_path / "run" / "compare") == said
    assert {p.name: p.read_bytes() for p in (tmp_path / "run" / "compare").iterdir()} == before


def test_cells_on_one_side_are_counted_and_named(tmp_path: Path, base: np.ndarray) -> None:
    some, others = grid(base), grid(base + 1)
    del some[0, 2], others[1, 1], others[1, 2]
    a, b = scored(tmp_path, "a", {"gold": some}), scored(tmp_path, "b", {"gold": others})
    found = comparison(a, b)
    assert (found["cells"], found["cells_only_a"], found["cells_only_b"]) == (15, 2, 1)
    names = {n: prompt_id(f"prompt {n}") for n in (0, 1)}
    assert found["unmatched"] == [f"a {names[1]}/1", f"a {names[1]}/2", f"b {names[0]}/2"]
    assert "3 images on one side only" in compare(a, b, out=tmp_path / "c")


def test_missing_scores_are_left_out_and_counted(tmp_path: Path, base: np.ndarray) -> None:
    a = scored(tmp_path, "a", {"gold": grid(base) | {(0, 0): None}, "clip": grid(base)})
    b = scored(tmp_path, "b", {"gold": grid(base + 1) | {(0, 0): None, (3, 1): None}, "clip": grid(base)})
    found = comparison(a, b)["scorers"]
    assert (found["gold"]["missing"], found["gold"]["wins"], found["clip"]["missing"]) == (2, 16, 0)


def test_images_drawn_otherwise_do_not_compare(tmp_path: Path, base: np.ndarray) -> None:
    values = {"gold": grid(base)}
    a = scored(tmp_path, "a", values)
    for name, changes, said in (
        ("b", {"sampler": "9 steps"}, "drawn with sampler '5 steps' and '9 steps'"),
        ("c", {"seed": 1}, "drawn with seed 0 and 1"),
        ("d", {"revision": "s"}, "judged by different revisions of gold"),
    ):
        with pytest.raises(InputError, match=said):
            compare(a, scored(tmp_path, name, values, **changes), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_in_common(tmp_path: Path, base: np.ndarray) -> None:
    a = scored(tmp_path, "a", {"gold": grid(base)})
    with pytest.raises(InputError, match="no scorer in common \\(gold; clip\\)"):
        comparison(a, scored(tmp_path, "b", {"clip": grid(base)}))
    with pytest.raises(InputError, match="fewer than two prompts in common"):
        comparison(a, scored(tmp_path, "c", {"gold": {(0, 0): 1.0, (9, 0): 1.0}}))
    with pytest.raises(InputError, match="fewer than two prompts with scores by gold"):
        comparison(a, scored(tmp_path, "d", {"gold": grid(np.full((2, 1), 0.0)) | {(1, 0): None}}))
    with pytest.raises(InputError, match="output of `sample`, expected that of `score`"):
        comparison(a, tmp_path / "a-images")
    for flags in ({"resamples": 0}, {"tolerance": -1.0}):
        with pytest.raises(InputError, match="expected at least"):
            comparison(a, a, **flags)


def test_images_without_a_counterpart(tmp_path: Path, base: np.ndarray) -> None:
    a = scored(tmp_path, "a", {"gold": grid(base)})
    rows = folders.records(tmp_path / "a-images", "images")
    twice = Image(**rows[1].row() | {"index": rows[0].index, "prompt_id": rows[0].prompt_id})
    for row, said in (
        (Image(**rows[1].row() | {"index": None}), "image a-0-1 has no index"),
        (twice, "images a-0-0 and a-0-1 have one prompt and one index"),
    ):
        folders.write_part(tmp_path / "a-images", "images", 0, [rows[0], row, *rows[2:]])
        with pytest.raises(InputError, match=said):
            comparison(a, a)


def test_the_out_folder_is_this_comparison_or_none(tmp_path: Path, base: np.ndarray) -> None:
    a, b, c = (scored(tmp_path, n, {"gold": grid(base)}) for n in "abc")
    compare(a, b, out=tmp_path / "out")
    with pytest.raises(InputError, match="holds the comparison of ../a and ../b"):
        compare(a, c, out=tmp_path / "out")
    (tmp_path / "out" / "compare.json").unlink()
    compare(a, c, out=tmp_path / "out")
    (tmp_path / "out" / "compare.json").write_text("[]")
    with pytest.raises(InputError, match="is not a comparison"):
        compare(a, c, out=tmp_path / "out")
    with pytest.raises(InputError, match="is not empty and holds no comparison"):
        compare(a, b, out=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        compare(a, b, out=tmp_path / "file")

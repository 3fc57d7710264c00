"""Combining judges: laws of the normalisations, and the sums that are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffalign import combining
from diffalign.records import InputError

GROUPS = ["a", "b", "a", "a", "b", "c"]
VALUES = np.array([1.0, 5.0, 2.0, 4.0, 5.0, 3.0])


def test_by_hand() -> None:
    np.testing.assert_allclose(combining.centred(VALUES, GROUPS).values, [-4 / 3, 0, -1 / 3, 5 / 3, 0, 0], atol=1e-15)
    deviation = np.std([1, 2, 4])
    np.testing.assert_allclose(
        combining.zscore(VALUES, GROUPS).values, [-4 / 3 / deviation, 0, -1 / 3 / deviation, 5 / 3 / deviation, 0, 0]
    )
    np.testing.assert_array_equal(combining.rank(VALUES, GROUPS).values, [0, 0.5, 0.5, 1, 0.5, 0.5])
    np.testing.assert_allclose(combining.log_odds(VALUES, GROUPS, 3.0).values, [-4, 0, -1, 5, 0, 0], atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=2, max_size=9), st.floats(0.5, 100.0))
def test_laws(values: list[float], factor: float) -> None:
    x, one = np.array(values), ["p"] * len(values)
    z, r = combining.zscore(x, one).values, combining.rank(x, one).values
    assert abs(z.sum()) < 1e-6
    assert abs(z.std() - (np.ptp(x) > 0)) < 1e-6
    assert r.sum() == pytest.approx(len(x) / 2)
    np.testing.assert_array_equal(combining.rank(x * 2.0, one).values, r)
    np.testing.assert_allclose(combining.zscore(factor * x + 7, one).values, z, atol=1e-4)
    for found in (z, r):
        assert (np.sign(found[:, None] - found[None]) == np.sign(x[:, None] - x[None])).all() or np.ptp(x) < 1e-2


def test_missing_scores_stay_missing_and_move_no_other() -> None:
    holed = np.append(VALUES, np.nan)
    for how in (combining.centred, combining.zscore, combining.rank):
        found = how(holed, [*GROUPS, "a"]).values
        np.testing.assert_array_equal(found[:-1], how(VALUES, GROUPS).values)
        assert np.isnan(found[-1])
    both = {"p": combining.rank(holed, [*GROUPS, "a"]), "q": combining.rank(np.arange(7.0), [*GROUPS, "a"])}
    assert np.isnan(combining.weighted(both)[-1])
    assert np.isnan(combining.minimum(both)[-1])
    assert np.isnan(combining.pareto(both, [*GROUPS, "a"])[-1])


def test_sums_and_minimum() -> None:
    p, q = combining.rank(VALUES, GROUPS), combining.rank(-VALUES, GROUPS)
    np.testing.assert_array_equal(combining.weighted({"p": p, "q": q}), np.ones(6))
    np.testing.assert_array_equal(combining.weighted({"p": p, "q": q}, {"p": 2.0}), 1 + p.values)
    np.testing.assert_array_equal(combining.minimum({"p": p, "q": q}), np.minimum(p.values, q.values))
    np.testing.assert_array_equal(combining.weighted({"only": VALUES}), VALUES)


@pytest.mark.parametrize("combine", [combining.weighted, combining.minimum])
def test_raw_sums_are_refused_with_a_reason(combine) -> None:
    z = combining.zscore(VALUES, GROUPS)
    for scores, said in (
        (
            {"pickscore": VALUES, "hpsv2": VALUES},
            "pickscore: its raw scores are in a unit of its own, so a sum with hps",
        ),
        ({"pickscore": z, "hpsv2": VALUES}, "hpsv2: its raw scores"),
        ({"pickscore": z, "hpsv2": combining.centred(VALUES, GROUPS)}, "hpsv2: its scores are in a unit of its own"),
        (
            {"a": z, "b": combining.rank(VALUES, GROUPS)},
            "different units cannot be combined: a in deviations, b in ranks",
        ),
        ({}, "no scores to combine"),
    ):
        with pytest.raises(InputError, match=said):
            combine(scores)


def test_other_mistakes() -> None:
    z = combining.zscore(VALUES, GROUPS)
    for weights in ({"b": 1.0}, {"a": np.nan}):
        with pytest.raises(InputError, match="expected finite numbers of a"):
            combining.weighted({"a": z}, weights)
    with pytest.raises(InputError, match="6 groups for scores of shape .5,."):
        combining.zscore(VALUES[:5], GROUPS)
    with pytest.raises(InputError, match="slope = 0: expected"):
        combining.log_odds(VALUES, GROUPS, 0)


def test_fronts_are_of_one_group_and_need_no_unit() -> None:
    first = np.array([3.0, 1.0, 2.0, 1.0, 0.0, 9.0])
    second = np.array([1.0, 3.0, 1.0, 1.0, 0.0, 9.0])
    front = combining.pareto({"pickscore": first, "hpsv2": second}, ["a"] * 5 + ["b"])
    np.testing.assert_array_equal(front, [0, 0, 1, 2, 3, 0])
    np.testing.assert_array_equal(combining.pareto({"p": 100 * first, "q": second - 5}, ["a"] * 5 + ["b"]), front)
    assert (combining.pareto({"p": np.ones(3), "q": np.ones(3)}, ["a"] * 3) == 0).all()

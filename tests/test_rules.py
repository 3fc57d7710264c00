"""Rules of pairing as functions of numbers: laws, hand-made cases, and that no scale of a score matters."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffalign import rules, sets
from diffalign.streams import stream

VALUES = st.lists(st.floats(-10, 10), min_size=2, max_size=7)


def rng() -> np.random.Generator:
    return stream("test", 0)


def test_rules_are_short() -> None:
    """A rule is read at a glance: at most ten lines of code beside its docstring."""
    import ast
    from pathlib import Path

    for node in ast.parse(Path(rules.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.body[0].end_lineno <= 10, node.name


def test_rules_on_one_group() -> None:
    values = np.array([0.3, 0.9, 0.1, 0.5])
    assert rules.best_vs_worst(values, rng()) == [(1, 2)]
    assert rules.neighbours(values, rng()) == [(1, 3), (3, 0), (0, 2)]
    assert sorted(rules.all_pairs(values, rng())) == [(0, 2), (1, 0), (1, 2), (1, 3), (3, 0), (3, 2)]
    [(best, other)] = rules.best_vs_random(values, rng())
    assert best == 1
    assert other in (0, 2, 3)
    assert rules.ranking(values) == [1, 3, 0, 2]
    assert rules.ranking(values, 2) == [1, 3]


@given(VALUES)
def test_rules_put_the_better_first(values: list[float]) -> None:
    scores = np.array(values)
    for rule in rules.RULES.values():
        pairs = rule(scores, rng())
        assert pairs
        assert all(scores[better] >= scores[worse] for better, worse in pairs)
        assert all(better != worse for better, worse in pairs if scores[better] > scores[worse])
    n = len(values)
    assert len({frozenset(p) for p in rules.all_pairs(scores, rng())}) == n * (n - 1) // 2
    assert len(rules.neighbours(scores, rng())) == n - 1
    assert rules.best_vs_worst(scores, rng())[0][0] == scores.argmax()


def test_the_random_opponent_is_uniform() -> None:
    scores, generator = np.array([0.0, 3.0, 1.0, 2.0]), rng()
    drawn = [rules.best_vs_random(scores, generator)[0][1] for _ in range(3000)]
    counts = np.bincount(drawn, minlength=4)
    assert counts[1] == 0
    assert (np.abs(counts[[0, 2, 3]] - 1000) < 5 * math.sqrt(3000 * 2 / 9)).all()


@given(VALUES, st.floats(0.1, 10), st.floats(-5, 5))
def test_advantages_have_mean_0_and_deviation_1_on_any_scale(values: list[float], scale: float, shift: float) -> None:
    scores = np.array(values)
    if np.ptp(scores) < 1e-3:
        return
    found = rules.advantages(scores)
    assert found.mean() == pytest.approx(0, abs=1e-9)
    assert found.std() == pytest.approx(1)
    assert rules.advantages(scale * scores + shift) == pytest.approx(found, abs=1e-6)


@given(VALUES, st.floats(0.1, 10))
def test_shares_of_duels_won(values: list[float], temperature: float) -> None:
    scores = np.array(values)
    for shares in (rules.duels(scores, None), rules.duels(scores, temperature), rules.duels(scores, None, 1.0)):
        assert shares.sum() == pytest.approx(len(values) / 2), "every duel gives one away"
        assert 0 <= shares.min() <= shares.max() <= 1
        assert all(np.diff(shares[np.argsort(scores, kind="stable")]) >= -1e-9), "in the order of the scores"
    wide = rules.duels(scores, 1e-6) if np.ptp(scores) == 0 or np.diff(np.sort(scores)).min() > 1e-4 else None
    assert wide is None or wide == pytest.approx(rules.duels(scores, None))


def test_a_curated_choice_follows_bradley_and_terry() -> None:
    values, generator = np.array([0.0, 1.0, 0.5]), rng()
    assert rules.curated(values, None, generator) == 1
    drawn = np.bincount([rules.curated(values, 0.5, generator) for _ in range(4000)], minlength=3) / 4000
    wanted = np.exp(values / 0.5) / np.exp(values / 0.5).sum()
    assert np.abs(drawn - wanted).max() < 5 * 0.5 / math.sqrt(4000)
    of_two = np.bincount([rules.curated(values[:2], 0.5, generator) for _ in range(4000)], minlength=2) / 4000
    assert of_two[1] == pytest.approx(1 / (1 + math.exp(-1 / 0.5)), abs=0.04)
    assert rules.curated(np.array([1e6, 0.0]), 1e-3, generator) == 0, "nothing overflows"


# --- several scorers


def test_agreement_of_three() -> None:
    values = np.array([[3.0, 2.0, 1.0], [30.0, 20.0, 10.0], [1.0, 2.0, 0.0]])
    assert sorted(rules.agreement(values, 3)) == [(0, 2, 1.0), (1, 2, 1.0)]
    assert sorted(rules.agreement(values, 2)) == [(0, 1, 2 / 3), (0, 2, 1.0), (1, 2, 1.0)]
    tied = np.array([[1.0, 0.0], [1.0, 1.0]])
    assert rules.agreement(tied, 2) == []
    assert rules.agreement(tied, 1) == [(0, 1, 0.75)], "a tie is half a vote"
    assert rules.agreement(np.array([[1.0, 0.0], [0.0, 1.0]]), 1) == [], "one against one says nothing"


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=2, max_size=3))
def test_frontiers_are_those_of_brute_force(rows: list[list[int]]) -> None:
    values = np.array(rows, float)

    def dominates(i: int, j: int) -> bool:
        return bool((values[:, i] >= values[:, j]).all() and (values[:, i] > values[:, j]).any())

    everyone = range(values.shape[1])
    upper = [i for i in everyone if not any(dominates(j, i) for j in everyone)]
    lower = [j for j in everyone if not any(dominates(j, i) for i in everyone)]
    wanted = [(i, j) for i, j in itertools.product(upper, lower) if dominates(i, j)]
    assert sorted(rules.frontier(values)) == sorted(wanted)


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=2, max_size=3))
def test_rules_of_several_scorers_know_no_units(rows: list[list[int]]) -> None:
    """Any increasing function of one scorer's values leaves the choice as it is: nothing is added up."""
    values = np.array(rows, float)
    bent = np.stack([np.exp(values[0]), *(1000 * values[1:])])
    assert rules.frontier(bent) == rules.frontier(values)
    assert rules.agreement(bent, 2) == rules.agreement(values, 2)


def test_one_scorer_twice_is_one_scorer() -> None:
    values = np.array([[0.3, 0.9, 0.1]] * 2)
    assert [pair[:2] for pair in rules.agreement(values, 2)] == [(0, 2), (1, 0), (1, 2)]
    assert rules.frontier(values) == rules.best_vs_worst(values[0], rng())


# --- comparisons


def test_win_rates_are_mean_probabilities() -> None:
    found = rules.win_rates(4, [(0, 1, 1.0), (1, 2, 0.5), (2, 0, 0.25)])
    assert found[:3].tolist() == [(1 + 0.75) / 2, (0 + 0.5) / 2, (0.5 + 0.25) / 2]
    assert math.isnan(found[3]), "never compared, so nothing is known"


@given(st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_win_rates_of_a_full_round_sum_to_half(ps: list[float]) -> None:
    duels = [(i, j, p) for (i, j), p in zip(itertools.combinations(range(4), 2), ps, strict=True)]
    found = rules.win_rates(4, duels)
    assert found.sum() == pytest.approx(2)
    swapped = [(j, i, 1 - p) for i, j, p in duels]
    assert rules.win_rates(4, swapped) == pytest.approx(found)


# --- sets


def test_swaps_never_lower_the_score_and_end_where_no_swap_helps() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(size=(2, 12, 3))
    swapped = rules.swaps(first, second, sets.vendi, rng())
    better = np.where(swapped[:, None], second, first)
    assert sets.vendi(better) > sets.vendi(first)
    for i in range(12):
        other = better.copy()
        other[i] = first[i] if swapped[i] else second[i]
        assert sets.vendi(other) <= sets.vendi(better) + 1e-12


def test_swaps_towards_a_mean_are_best_of_each_two() -> None:
    """Where the score of a set is a sum over its elements, swaps are the pointwise choice."""
    generator = np.random.default_rng(4)
    first, second = generator.normal(size=(2, 30, 1))
    swapped = rules.swaps(first, second, lambda rows: float(rows.sum()), rng())
    assert (swapped == (second > first)[:, 0]).all()


def test_real_images_take_turns() -> None:
    assert rules.real_vs_generated(["r", "s"], ["a", "b", "c"]) == [("r", "a"), ("s", "b"), ("r", "c")]


def test_vendi_counts_different_ones() -> None:
    assert sets.vendi(np.ones((5, 3))) == pytest.approx(1)
    assert sets.vendi(np.eye(4)) == pytest.approx(4)
    assert sets.vendi(np.repeat(np.eye(2), [3, 1], axis=0)) == pytest.approx(
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    )


@given(st.integers(2, 9), st.integers(1, 6), st.integers(0, 5))
def test_vendi_is_that_of_the_kernel(n: int, d: int, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(n, d))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / n).clip(min=1e-300)
    assert sets.vendi(features) == pytest.approx(math.exp(-(values * np.log(values)).sum()), rel=1e-6)
    assert sets.vendi(7 * features[::-1]) == pytest.approx(sets.vendi(features))


def test_frechet_of_what_is_known() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4))
    assert sets.frechet(rows, rows) == pytest.approx(0, abs=1e-6)
    assert sets.frechet(rows, rows + 3.0) == pytest.approx(4 * 9)
    one = np.array([[-1.0], [1.0]])
    assert sets.frechet(one[:, [0, 0]] * [1, 0], one[:, [0, 0]] * [5, 0]) == pytest.approx((5 - 1) ** 2)
    other = np.random.default_rng(1).normal(size=(60, 4)) * [1, 2, 3, 4]
    assert sets.frechet(rows, other) == pytest.approx(sets.frechet(other, rows))

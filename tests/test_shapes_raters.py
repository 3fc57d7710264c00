"""The embedded world's raters: Bradley-Terry votes, rankings, ties, tastes, disagreement."""

from dataclasses import replace

import numpy as np
import pytest

from diffalign.shapes import captions, gold, raters, scene


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_temperature_zero_is_the_argmax():
    rater = replace(raters.LITERAL, temperature=0.0)
    utilities = rng_of(40).normal(size=(2, 200))
    first, second = utilities
    assert np.array_equal(raters.p_first(rater, first, second), (first > second).astype(float))
    assert np.array_equal(raters.vote(rater, first, second, rng_of(41)), (first > second).astype(float))
    assert raters.p_first(rater, 0.3, 0.3) == 0.5
    for row in utilities.T.reshape(-1, 5):
        assert raters.rank(rater, row, rng_of(42)) == list(np.argsort(-row))


def test_p_first_is_the_logistic_of_the_gap_and_symmetric():
    first, second = rng_of(43).normal(size=(2, 100))
    p = raters.p_first(replace(raters.LITERAL, temperature=0.7), first, second)
    assert np.allclose(p, 1 / (1 + np.exp(-(first - second) / 0.7)))
    assert np.allclose(p + raters.p_first(replace(raters.LITERAL, temperature=0.7), second, first), 1)
    assert raters.p_first(replace(raters.LITERAL, temperature=1e-12), 1.0, 0.0) == 1


@pytest.mark.parametrize("tie", [0.0, 0.3])
def test_vote_shares_converge_to_p(tie):
    rater = replace(raters.LITERAL, temperature=0.5, tie=tie)
    first, second = rng_of(44).normal(size=(2, 20)) * 0.5
    draws = 40_000
    shape = (draws, 20)
    votes = raters.vote(rater, np.broadcast_to(first, shape), np.broadcast_to(second, shape), rng_of(45))
    p = raters.p_first(rater, first, second)
    # five standard errors of a share
    assert (np.abs(votes.mean(axis=0) - p) <= 5 * np.sqrt(p * (1 - p) / draws)).all()
    near = np.abs(first - second) <= tie
    assert (votes[:, near] == 0.5).all()
    assert np.isin(votes[:, ~near], (0, 1)).all()


def test_rankings_follow_plackett_luce():
    rater = replace(raters.LITERAL, temperature=0.5)
    utilities = np.array([0.6, 0.1, -0.3])
    rng = rng_of(46)
    draws = 20_000
    drawn = [tuple(raters.rank(rater, utilities, rng)) for _ in range(draws)]
    worth = np.exp(utilities / 0.5)
    for order in {(0, 1, 2), (2, 1, 0), (1, 0, 2)}:
        a, b, c = worth[list(order)]
        p = a / (a + b + c) * b / (b + c)
        assert abs(drawn.count(order) / draws - p) < 5 * np.sqrt(p * (1 - p) / draws)
    leads = np.mean([order.index(0) < order.index(1) for order in drawn])
    assert leads == pytest.approx(float(raters.p_first(rater, 0.6, 0.1)), abs=0.02)


def test_equal_utilities_are_ranked_in_random_order():
    rng = rng_of(47)
    rater = replace(raters.LITERAL, temperature=0.0)
    assert {tuple(raters.rank(rater, [1.0, 1.0, 0.0], rng)) for _ in range(50)} == {(0, 1, 2), (1, 0, 2)}


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("gap", [0.0, 0.2, 0.3, 0.30001, 0.5])
def test_of_two_a_ranking_leads_as_p_first_says(temperature, gap):
    rater = replace(raters.LITERAL, temperature=temperature, tie=0.3)
    rng, draws = rng_of(50), 4_000
    leads = np.mean([raters.rank(rater, [gap, 0.0], rng) == [0, 1] for _ in range(draws)])
    p = float(raters.p_first(rater, gap, 0.0))
    assert p == 0.5 or gap > 0.3
    assert abs(leads - p) <= 5 * np.sqrt(p * (1 - p) / draws)


def test_ties_of_a_ranking_are_classes_from_the_best_down():
    rater, rng = replace(raters.LITERAL, temperature=0.0, tie=0.3), rng_of(51)
    drawn = {tuple(raters.rank(rater, [0.0, 1.0, 0.5, 0.75, 0.25], rng)) for _ in range(400)}
    # 1.0 with 0.75, 0.5 with 0.25, and 0.0 alone, though it is no further from 0.25 than that from 0.5
    assert drawn == {(*a, *b, 0) for a in ((1, 3), (3, 1)) for b in ((2, 4), (4, 2))}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_utility_that_is_no_number_is_refused(value):
    for call in (
        lambda: raters.p_first(raters.LITERAL, value, 0.0),
        lambda: raters.vote(raters.LITERAL, [0.0, 0.0], [0.0, value], rng_of(52)),
        lambda: raters.rank(raters.LITERAL, [0.0, value], rng_of(52)),
    ):
        with pytest.raises(ValueError, match=f"^rater literal: a utility is {value}, expected finite numbers$"):
            call()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_only_the_ratio_of_weights_counts(scale):
    prompt = "a large filled red circle at the left on a white background"
    picture = scene.arrange([("circle", "blue", "large", "filled")], "white", "left", rng_of(53))
    reading = gold.read(scene.render(picture))
    weights = {"shape": 3.0, "colour": 1.0}
    scaled = raters.Rater("scaled", attributes={name: scale * w for name, w in weights.items()}, crispness=0.0)
    assert raters.utility(scaled, reading, prompt) == pytest.approx(0.75)
    assert raters.utility(raters.Rater("idle", attributes={}, crispness=0.0), reading, prompt) == 0


def test_utility_rewards_what_the_rater_cares_about():
    rng = rng_of(48)
    prompt = "a large filled red circle at the left on a white background"

    def drawn(colour, background="white"):
        return gold.read(scene.render(scene.arrange([("circle", colour, "large", "filled")], background, "left", rng)))

    right, wrong = drawn("red"), drawn("blue")
    assert raters.utility(raters.LITERAL, right, prompt) - raters.utility(raters.LITERAL, wrong, prompt) == (
        pytest.approx(1 / 7, abs=0.01)
    )
    assert raters.utility(raters.WARM, right, prompt) > raters.utility(raters.WARM, wrong, prompt)
    assert raters.utility(raters.COOL, right, prompt) < raters.utility(raters.COOL, wrong, prompt)
    assert raters.utility(raters.WARM, drawn("red", "pink"), prompt) > raters.utility(raters.WARM, right, prompt)
    fan = raters.Rater("fan", attributes={}, liking={"red": 1.0}, crispness=0.0)
    assert raters.utility(fan, right, prompt) == 1
    assert raters.utility(fan, wrong, prompt) == 0


def test_groups_disagree_with_each_other_more_than_within():
    rng = rng_of(49)
    texts = captions.prompts("dev", 60)
    pairs = [[gold.read(scene.render(scene.sample_scene(rng, 1))) for _ in range(2)] for _ in texts]

    def votes(typical, seed):
        found = []
        for rater in raters.panel(typical, 5, 0.2, rng_of(seed)):
            first, second = (
                np.array([raters.utility(rater, pair[n], text) for pair, text in zip(pairs, texts, strict=True)])
                for n in (0, 1)
            )
            found.append(raters.p_first(rater, first, second))
        return found

    warm, warm_too, cool = votes(raters.WARM, 1), votes(raters.WARM, 2), votes(raters.COOL, 3)
    assert raters.disagreement(warm, warm) == 0
    assert raters.disagreement(warm, cool) > 0.4
    assert raters.disagreement(warm, warm_too) < 0.15
    assert raters.disagreement(warm, cool) == raters.disagreement(cool, warm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": {"beauty": 1.0}}, "'beauty'"),
        ({"liking": {"beige": 1.0}}, "'beige'"),
        ({"temperature": -1.0}, "rater literal: temperature = -1.0, expected a finite number of at least 0"),
        ({"temperature": float("nan")}, "temperature = nan, expected"),
        ({"temperature": float("inf")}, "temperature = inf, expected"),
        ({"tie": -0.1}, "tie = -0.1, expected"),
        ({"tie": float("nan")}, "tie = nan, expected"),
        ({"attributes": {"shape": -1.0, "colour": 1.0}}, r"attributes\['shape'\] = -1.0, expected"),
        ({"attributes": {"shape": float("inf")}}, r"attributes\['shape'\] = inf, expected"),
        ({"liking": {"red": float("nan")}}, r"liking\['red'\] = nan, expected a finite number$"),
        ({"crispness": float("nan")}, "crispness = nan, expected a finite number$"),
    ],
)
def test_impossible_raters_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(raters.LITERAL, **change)

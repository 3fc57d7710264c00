"""The embedded world's judges: the gold scorer and the raters."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diffalign.records import InputError
from diffalign.shapes import captions, gold, grammar, raters, reading, scene

ATTRIBUTES = ("shape", "colour", "size", "fill")


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def scenes(seed: int, count: int, objects: int | None = None) -> list[scene.Scene]:
    rng = rng_of(seed)
    return [scene.sample_scene(rng, objects) for _ in range(count)]


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def shifted(image: np.ndarray, amount) -> np.ndarray:
    return np.clip(np.rint(image + amount), 0, 255).astype(np.uint8)


def verdicts(seed: int, count: int, spoil) -> list[gold.Verdict]:
    """Verdicts on spoiled renders of fresh scenes, each against everything that is true of its scene."""
    rng = rng_of(seed + 1000)
    return [
        gold.judge_reading(gold.read(spoil(scene.render(s), rng)), grammar.demand_of(s)) for s in scenes(seed, count)
    ]


def share_right(found: list[gold.Verdict]) -> float:
    return float(np.mean([ok for verdict in found for ok in verdict.right.values()]))


# The gold scorer.


def test_gold_reads_fresh_renders():
    found = verdicts(20, 600, lambda image, rng: image)
    assert share_right(found) >= 0.99
    assert min(verdict.crispness for verdict in found) > 0.95


def test_gold_reads_blurred_and_noisy_renders():
    def spoil(image, rng):
        soft = blurred(image, 0.7) + rng.normal(0, 6, image.shape) + rng.normal(0, 5, 3)
        row, column = rng.integers(2, 60, size=2)
        soft[row : row + 2, column : column + 3] += 60
        return shifted(soft, 0)

    assert share_right(verdicts(21, 300, spoil)) >= 0.97


@pytest.mark.parametrize(
    ("spoil", "strengths"),
    [
        (lambda image, rng, s: blurred(image, s), (0.01, 0.7, 1.4, 2.8)),
        (lambda image, rng, s: shifted(image, rng.normal(0, s, image.shape)), (0, 8, 24, 72)),
        (lambda image, rng, s: shifted(image, s * rng.choice([-1, 1], 3)), (0, 12, 36, 96)),
    ],
    ids=["blur", "noise", "colour"],
)
def test_gold_falls_with_every_degradation(spoil, strengths):
    means = [
        np.mean([verdict.score for verdict in verdicts(22, 100, lambda image, rng, s=s: spoil(image, rng, s))])
        for s in strengths
    ]
    assert means[0] > 0.99
    assert all(a - b > 0.01 for a, b in zip(means, means[1:], strict=False)), means


def test_one_wrong_attribute_is_one_wrong_attribute():
    """The picture of a corrupted scene, judged by the true scene's demands, is wrong in what was changed only."""
    rng = rng_of(23)
    for one in scenes(24, 60, objects=1):
        other = captions.corrupt(one, rng, errors=1)
        a, b = grammar.demand_of(one), grammar.demand_of(other)
        changed = {n for n in ATTRIBUTES if getattr(a.objects[0], n) != getattr(b.objects[0], n)}
        changed |= {n for n in ("background", "place") if getattr(a, n) != getattr(b, n)}
        verdict = gold.judge_reading(gold.read(scene.render(other)), a)
        assert {name for name, ok in verdict.right.items() if not ok} == changed
        assert verdict.score == pytest.approx(6 / 7 * (0.8 + 0.2 * verdict.crispness))


def test_two_objects_are_matched_in_either_order():
    rng = rng_of(25)
    kinds = [("circle", "red", "small", "filled"), ("star", "blue", "large", "filled")]
    image = scene.render(scene.arrange(kinds, "white", "left of", rng))
    assert gold.judge(image, "a small red circle left of a large blue star").all_right
    assert gold.judge(image, "a large blue star right of a small red circle").all_right
    assert gold.judge(image, "a large blue star and a small red circle").all_right
    swapped = gold.judge(image, "a large blue star left of a small red circle").right
    assert [name for name, ok in swapped.items() if not ok] == ["relation"]
    alone = gold.judge(image, "a large blue star").right
    assert alone == {"count": False, "shape": True, "colour": True, "size": True}


def test_only_what_the_prompt_demands_is_judged():
    image = scene.render(scenes(26, 1, objects=1)[0])
    assert set(gold.judge(image, "a shape").right) == {"count"}
    assert set(gold.judge(image, "a star").right) == {"count", "shape"}
    two = gold.judge(image, "a red star above a cross on a pink background").right
    assert set(two) == {"count", "first shape", "first colour", "second shape", "relation", "background"}
    assert not two["count"]
    assert not two["relation"]


def test_an_empty_picture_meets_nothing_but_its_background():
    empty = np.full((64, 64, 3), 255, np.uint8)
    right = gold.judge(empty, "a large red star at the left on a white background").right
    assert [name for name, ok in right.items() if ok] == ["background"]


def test_score_is_the_mean_times_the_crispness_factor():
    some = scenes(27, 8)
    images = [scene.render(one) for one in some]
    texts = [captions.caption(one, "compositional", rng_of(28)) for one in some]
    found = gold.score(images, texts)
    assert found.shape == (8,)
    assert (found > 0.99).all()
    assert (found <= 1).all()
    assert found[3] == gold.judge(images[3], texts[3]).score
    with pytest.raises(InputError, match="8 pictures and 7 prompts"):
        gold.score(images, texts[:7])


def test_other_sizes_are_read_and_other_arrays_refused():
    one = scenes(29, 1, objects=2)[0]
    assert gold.judge_reading(gold.read(scene.render(one, 128)), grammar.demand_of(one)).all_right
    for image in (np.zeros((64, 64)), np.zeros((64, 32, 3), np.uint8), np.zeros((64, 64, 3), np.float32)):
        with pytest.raises(InputError, match="expected"):
            gold.read(image)


def test_components_are_those_of_a_flood_fill():
    rng = rng_of(30)
    for density in (0.2, 0.4, 0.6):
        mask = rng.random((24, 24)) < density
        parts = reading.components(mask)
        found = {frozenset(zip(rows.tolist(), columns.tolist(), strict=True)) for rows, columns in parts}
        left = {(int(r), int(c)) for r, c in np.argwhere(mask)}
        expected = set()
        while left:
            piece, edge = set(), [left.pop()]
            while edge:
                row, column = edge.pop()
                piece.add((row, column))
                near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
                left -= near
                edge += near
            expected.add(frozenset(piece))
        assert found == expected


# Raters.


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
        ({"temperature": -1.0}, "negative"),
        ({"tie": -0.1}, "negative"),
    ],
)
def test_impossible_raters_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(raters.LITERAL, **change)

"""The embedded world's gold scorer: accuracy, degradation, and what exactly it judges."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diffalign.records import InputError
from diffalign.shapes import captions, gold, grammar, reading, scene

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

"""The embedded world: renderer, grammar, prompt splits."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffalign.records import InputError
from diffalign.shapes import captions, grammar, reading, scene

ATTRIBUTES = ("shape", "colour", "size", "fill")


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def scenes(seed: int, count: int, objects: int | None = None) -> list[scene.Scene]:
    rng = rng_of(seed)
    return [scene.sample_scene(rng, objects) for _ in range(count)]


# The renderer.


def test_render_is_a_function_of_the_scene_and_scales():
    for one in scenes(0, 20):
        image = scene.render(one)
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        assert np.array_equal(image, scene.render(one))
        double = scene.render(one, 128).reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        # edges are anti-aliased over one pixel of either size, so the pictures agree but for a fraction of it
        assert np.abs(double - image).mean() < 1.5
        assert np.abs(double - image).max() < 128


def test_objects_never_touch_and_stay_off_the_border():
    for one in scenes(1, 300):
        image = scene.render(one).astype(int)
        background = np.array(scene.BACKGROUNDS[one.background])
        inked = np.abs(image - background).sum(axis=2) > 0
        assert not inked[[0, -1]].any()
        assert not inked[:, [0, -1]].any()
        assert len(reading.components(inked)) == len(one.objects)


def test_two_objects_differ_and_respect_their_relation():
    for one in scenes(2, 300, objects=2):
        a, b = one.objects
        assert (a.shape, a.colour) != (b.shape, b.colour)
        way = np.array([a.x - b.x, a.y - b.y])
        along = way @ np.array(scene.RELATIONS[one.relation])
        across = np.abs(way) @ (1 - np.abs(scene.RELATIONS[one.relation]))
        assert along > 1.5 * across


def test_sizes_are_far_apart():
    for count in (1, 2):
        largest_small, smallest_large = scene.RADII[count, "small"][1], scene.RADII[count, "large"][0]
        assert smallest_large / largest_small >= 1.29
        assert largest_small < reading.SIZE_BORDER[count] < smallest_large


def test_shapes_and_fills_are_told_apart_at_one_geometry():
    """At the smallest size every two of the twelve drawings differ clearly."""
    kinds = [(shape, fill) for shape in scene.SHAPES for fill in scene.FILLS]
    offsets = np.arange(-15, 16, dtype=np.float32)
    drawn = [scene.coverage(s, f, offsets[None], offsets[:, None], 8.8, scene.STROKE * 64).ravel() for s, f in kinds]
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert ((a - b) ** 2).sum() > 0.1 * min(a @ a, b @ b)


@pytest.mark.parametrize("shape", scene.SHAPES)
def test_signed_distance_is_a_distance(shape):
    """Its gradient has length 1 almost everywhere, and the extents are those promised."""
    step = 0.05
    axis = np.arange(-16, 16, step)
    distance = scene.signed_distance(shape, axis[None], axis[:, None], 10.0)
    slope = np.hypot(*np.gradient(distance, step))
    assert np.median(np.abs(slope - 1)) < 1e-3
    assert np.mean(np.abs(slope - 1) < 0.02) > 0.95
    inside = distance < 0
    lengths = [np.ptp(axis[inside.any(side)]) for side in (0, 1)]
    for length, extent in zip(lengths, scene.EXTENTS[shape], strict=True):
        assert length / 2 == pytest.approx(10 * extent, abs=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": ()}, "0 objects"),
        ({"background": "beige"}, "beige"),
        ({"place": "nowhere"}, "place"),
        ({"relation": "above"}, "no relation"),
    ],
)
def test_inconsistent_scenes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(scenes(3, 1, objects=1)[0], **change)


def test_inconsistent_pairs_are_refused():
    pair = scenes(4, 1, objects=2)[0]
    wrong = next(name for name in scene.RELATIONS if name != pair.relation)
    with pytest.raises(ValueError, match="is not"):
        replace(pair, relation=wrong)
    first, second = pair.objects
    onto = replace(second, x=first.x, y=first.y, radius=0.1)
    with pytest.raises(ValueError, match="touch"):
        replace(pair, objects=(first, onto))
    with pytest.raises(ValueError, match="differ"):
        replace(pair, objects=(first, first))
    with pytest.raises(ValueError, match="leaves the picture"):
        replace(first, x=0.01)


# Captions.


def consistent(demand: grammar.Demand, truth: grammar.Demand) -> bool:
    pairs = [(demand, truth, name) for name in ("background", "place", "relation")]
    pairs += [(a, b, name) for a, b in zip(demand.objects, truth.objects, strict=True) for name in ATTRIBUTES]
    return all(getattr(said, name) in (None, getattr(true, name)) for said, true, name in pairs)


@pytest.mark.parametrize("length", captions.LENGTHS)
def test_captions_parse_to_what_is_true_of_the_scene(length):
    rng = rng_of(5)
    heard = set()
    for one in scenes(6, 1500):
        text = captions.caption(one, length, rng)
        assert consistent(captions.parse(text), grammar.demand_of(one)), text
        assert len(captions.tokens(text)) <= 30, text
        heard |= set(captions.tokens(text))
    assert heard <= set(captions.WORDS)


def test_the_vocabulary_is_small_and_every_word_is_used():
    rng = rng_of(7)
    heard = {
        word
        for one in scenes(8, 1500)
        for length in captions.LENGTHS
        for word in captions.tokens(captions.caption(one, length, rng))
    }
    assert heard == set(captions.WORDS)
    assert list(captions.WORDS) == sorted(captions.WORDS)
    assert len(captions.WORDS) < 80


def test_a_sentence_is_understood_exactly():
    text = "There is a large outlined star. It is red. It is at the top. The background is black."
    demand = captions.parse(text)
    assert demand == grammar.Demand((grammar.ObjectDemand("star", "red", "large", "outlined"),), "black", "top", None)
    two = captions.parse("a red circle to the left of a small star on a pink background")
    first, second = grammar.ObjectDemand("circle", "red"), grammar.ObjectDemand("star", size="small")
    assert two == grammar.Demand((first, second), "pink", None, "left of")
    assert two.key() == captions.parse("a small star right of a red circle on a pink background").key()
    assert two.key() != captions.parse("a small star left of a red circle on a pink background").key()
    assert captions.parse("a star and a cross").key() == captions.parse("a cross and a star").key()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected e.g."),
        ("a zebra", "unknown word 'zebra'"),
        ("a red", "expected e.g."),
        ("a red circle left of", "expected e.g."),
        ("There is a red circle. It is blue.", "two statements about colour"),
        ("a star and a star at the left", "which one"),
        ("There is a star and a cross. It is red.", "which one"),
        ("There is a star. The first is above the second.", "two objects"),
    ],
)
def test_what_is_not_a_caption_is_refused(text, message):
    with pytest.raises(InputError, match=message) as caught:
        captions.parse(text)
    assert "\n" not in str(caught.value)


def test_an_unknown_length_is_refused():
    with pytest.raises(ValueError, match="'long'"):
        captions.caption(scenes(9, 1)[0], "long", rng_of(0))


@pytest.mark.parametrize("errors", [0, 1, 2, 3])
def test_corrupt_changes_exactly_so_many_attributes(errors):
    rng = rng_of(10)
    for one in scenes(11, 200):
        a, b = grammar.demand_of(one), grammar.demand_of(captions.corrupt(one, rng, errors))
        changes = sum(getattr(a, name) != getattr(b, name) for name in ("background", "place", "relation"))
        changes += sum(
            getattr(x, name) != getattr(y, name)
            for x, y in zip(a.objects, b.objects, strict=True)
            for name in ATTRIBUTES
        )
        assert changes == errors


def test_prompt_splits_are_fixed_and_disjoint_in_text_and_meaning():
    splits = {name: captions.prompts(name) for name in captions.DEFAULT_COUNTS}
    assert {name: len(texts) for name, texts in splits.items()} == {"train": 2048, "dev": 128, "test": 256}
    texts = [text for split in splits.values() for text in split]
    meanings = [captions.parse(text).key() for text in texts]
    assert len(set(texts)) == len(texts) == len(set(meanings))
    for name, split in splits.items():
        assert {captions.split_of(captions.parse(text)) for text in split} == {name}
        assert captions.prompts(name, 50) == split[:50]
    # a change of these words changes every number measured on the prompts
    assert splits["test"][0] == "a picture of a small filled purple cross at the bottom on a black background"


def test_most_test_prompts_are_compositional_captions_of_one_object():
    demands = [captions.parse(text) for text in captions.prompts("test")]
    single = [demand for demand in demands if len(demand.objects) == 1]
    assert 0.8 <= len(single) / len(demands) <= 0.9
    said = [sum(getattr(d.objects[0], name) is not None for name in ATTRIBUTES) for d in single]
    assert np.mean(said) > 3


def test_unknown_splits_and_counts_are_refused():
    with pytest.raises(ValueError, match="'validation'"):
        captions.prompts("validation")
    with pytest.raises(ValueError, match="expected 1 to"):
        captions.prompts("test", 0)


def test_the_world_needs_numpy_and_pillow_only():
    for path in Path(scene.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= {
                "__future__", "collections", "dataclasses", "diffalign", "hashlib", "itertools", "math", "numpy", "re",
            }  # fmt: skip

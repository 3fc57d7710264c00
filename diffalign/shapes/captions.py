"""Captions of scenes in three lengths, deliberate errors, and the fixed prompt splits."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from diffalign.shapes.grammar import (
    PLACE_PHRASES,
    RELATION_PHRASES,
    WORDS,
    Demand,
    ObjectDemand,
    demand_of,
    parse,
    tokens,
)
from diffalign.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    FILLS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    arrange,
    sample_scene,
)

__all__ = [
    "DEFAULT_COUNTS", "LENGTHS", "WORDS", "Demand", "ObjectDemand",
    "caption", "corrupt", "demand_of", "parse", "prompts", "split_of", "tokens",
]  # fmt: skip

LENGTHS = ("short", "compositional", "sentences")
DEFAULT_COUNTS = {"train": 2048, "dev": 128, "test": 256}
# (objects, length) of twenty prompts in turn: 70 % are compositional captions of one object.
MIX = (((1, "compositional"),) * 7 + ((1, "short"), (1, "sentences"), (2, "compositional"))) + (
    ((1, "compositional"),) * 7 + ((1, "sentences"), (2, "short"), (2, "sentences"))
)
OPENINGS = ("", "", "a picture of ", "an image of ")


def caption(scene: Scene, length: str, rng: np.random.Generator) -> str:
    """A true caption of the scene, at most 30 tokens; `length` short, compositional or sentences, else ValueError."""
    if length not in LENGTHS:
        raise ValueError(f"length is {length!r}, expected one of {', '.join(LENGTHS)}")
    demand = demand_of(scene)
    if length == "short":
        return _phrase(_keep_few(demand, rng), rng, openings=False)
    demand = _keep_most(demand, rng)
    return _phrase(demand, rng, openings=True) if length == "compositional" else _sentences(demand, rng)


def _keep_few(demand: Demand, rng: np.random.Generator) -> Demand:
    """One object: its shape and one or two things more. Two: shape and colour, and perhaps the relation."""
    if len(demand.objects) == 2:
        objects = tuple(ObjectDemand(o.shape, o.colour) for o in demand.objects)
        return Demand(objects, relation=demand.relation if rng.random() < 0.7 else None)
    more = set(rng.choice(["colour", "size", "fill", "place", "background"], size=rng.integers(1, 3), replace=False))
    one = demand.objects[0]
    shape = None if rng.random() < 0.1 else one.shape
    kept = ObjectDemand(shape, *(getattr(one, name) if name in more else None for name in ("colour", "size", "fill")))
    background = demand.background if "background" in more else None
    return Demand((kept,), background, demand.place if "place" in more else None)


def _keep_most(demand: Demand, rng: np.random.Generator) -> Demand:
    """Every attribute but shape, colour and relation is left out now and then (fills of two objects more often)."""
    rare = 0.1 if len(demand.objects) == 1 else 0.4
    objects = tuple(
        replace(o, size=o.size if rng.random() > 0.1 else None, fill=o.fill if rng.random() > rare else None)
        for o in demand.objects
    )
    background = demand.background if rng.random() > 0.1 else None
    place = demand.place if rng.random() > 0.1 else None
    return Demand(objects, background, place, demand.relation)


def _noun(item: ObjectDemand) -> str:
    words = [word for word in (item.size, item.fill, item.colour, item.shape or "shape") if word]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _choose(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _phrase(demand: Demand, rng: np.random.Generator, openings: bool) -> str:
    """A caption without a verb: [a picture of] a red circle [at the left] [on a white background]"""
    opening = _choose(OPENINGS, rng) if openings else ""
    parts = [opening + _noun(demand.objects[0])]
    if len(demand.objects) == 2:
        joint = _choose(RELATION_PHRASES[demand.relation], rng) if demand.relation else "and"
        parts += [joint, _noun(demand.objects[1])]
    if demand.place:
        parts.append(_choose(PLACE_PHRASES[demand.place], rng))
    if demand.background:
        parts.append(f"{_choose(('on', 'on', 'against', 'with'), rng)} a {demand.background} background")
    return " ".join(parts)


def _sentences(demand: Demand, rng: np.random.Generator) -> str:
    """A caption of full sentences: There is a large star. It is red. It is at the top. The background is black."""
    if len(demand.objects) == 2:
        phrase = _choose(RELATION_PHRASES[demand.relation], rng)
        nouns = [_noun(item) for item in demand.objects]
        if rng.random() < 0.5:
            text = f"There is {nouns[0]} {phrase} {nouns[1]}."
        else:
            text = f"There is {nouns[0]} and {nouns[1]}. The first is {phrase} the second."
    else:
        one, moved = demand.objects[0], _choose(("colour", "size", "fill"), rng)
        text = f"There is {_noun(replace(one, **{moved: None}))}."
        if getattr(one, moved):
            text += f" It is {getattr(one, moved)}."
        if demand.place:
            text += f" It is {_choose(PLACE_PHRASES[demand.place], rng)}."
    return text + (f" The background is {demand.background}." if demand.background else "")


def corrupt(scene: Scene, rng: np.random.Generator, errors: int = 2) -> Scene:
    """A scene that differs in exactly `errors` attributes, for captions with deliberate errors. Raises ValueError."""
    axes = {"shape": SHAPES, "colour": tuple(COLOURS), "size": SIZES, "fill": FILLS}
    slots = [(n, name) for n in range(len(scene.objects)) for name in axes] + [(-1, "background"), (-1, "where")]
    if not 0 <= errors <= len(slots):
        raise ValueError(f"errors is {errors}, expected 0 to {len(slots)}")
    axes |= {"background": tuple(BACKGROUNDS), "where": tuple(PLACES if scene.place else RELATIONS)}
    while True:
        kinds = [{name: getattr(o, name) for name in ("shape", "colour", "size", "fill")} for o in scene.objects]
        rest = {"background": scene.background, "where": scene.place or scene.relation}
        for slot in rng.choice(len(slots), size=errors, replace=False):
            n, name = slots[slot]
            held = rest if n < 0 else kinds[n]
            held[name] = _choose(tuple(value for value in axes[name] if value != held[name]), rng)
        if len(kinds) == 1 or (kinds[0]["shape"], kinds[0]["colour"]) != (kinds[1]["shape"], kinds[1]["colour"]):
            return arrange([tuple(kind.values()) for kind in kinds], rest["background"], rest["where"], rng)


def split_of(demand: Demand) -> str:
    """The split a demand belongs to: train 70 %, dev 15 %, test 15 %, by a hash of its meaning."""
    bucket = int.from_bytes(hashlib.blake2b(demand.key().encode(), digest_size=8).digest()) % 20
    return "test" if bucket < 3 else "dev" if bucket < 6 else "train"


def prompts(split: str, count: int | None = None) -> list[str]:
    """The split's first `count` prompts, no two with one meaning; always the same, and a prefix of any longer list.

    Defaults: train 2048, dev 128, test 256. Raises ValueError for an unknown split or a count that is not positive.
    """
    if split not in DEFAULT_COUNTS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(DEFAULT_COUNTS)}")
    count = DEFAULT_COUNTS[split] if count is None else count
    if not 1 <= count <= 4096:
        raise ValueError(f"count is {count}, expected 1 to 4096")
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.blake2b(split.encode()).digest()[:16])))
    seen: set[str] = set()
    texts: list[str] = []
    while len(texts) < count:
        objects, length = MIX[len(texts) % len(MIX)]
        text = caption(sample_scene(rng, objects), length, rng)
        demand = parse(text)
        if demand.key() not in seen and split_of(demand) == split:
            seen.add(demand.key())
            texts.append(text)
    return texts

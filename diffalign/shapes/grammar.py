"""The grammar of captions: its words, what a caption demands, and the parser."""

from __future__ import annotations

import re
from dataclasses import dataclass

from diffalign.records import InputError
from diffalign.shapes.scene import BACKGROUNDS, COLOURS, FILLS, SHAPES, SIZES, Scene

PLACE_PHRASES = {
    "left": ("at the left", "on the left"),
    "right": ("at the right", "on the right"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "center": ("in the center",),
}
RELATION_PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}
_OTHER = "a an . and there is it the of picture image first second on with against background shape"
_PLACES = {phrase: place for place, options in PLACE_PHRASES.items() for phrase in options}
_RELATIONS = {phrase: relation for relation, options in RELATION_PHRASES.items() for phrase in options}
_ATTRIBUTES = {*SHAPES, *COLOURS, *BACKGROUNDS, *SIZES, *FILLS}
WORDS = tuple(sorted(_ATTRIBUTES | set(" ".join([_OTHER, *_PLACES, *_RELATIONS]).split())))


@dataclass(frozen=True)
class ObjectDemand:
    """What a caption demands of one object; None where it says nothing."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    fill: str | None = None


@dataclass(frozen=True)
class Demand:
    """What a caption demands: one or two objects, and background, place (one), relation of first to second (two)."""

    objects: tuple[ObjectDemand, ...]
    background: str | None = None
    place: str | None = None
    relation: str | None = None

    def key(self) -> str:
        """The demand as text, equal for demands with one meaning ("A left of B", "B right of A")."""
        objects, relation = [repr(item) for item in self.objects], self.relation
        if relation in ("right of", "below"):
            objects, relation = objects[::-1], {"right of": "left of", "below": "above"}[relation]
        elif relation is None:
            objects = sorted(objects)
        return "|".join([*objects, f"{self.background}", f"{self.place}", f"{relation}"])


def demand_of(scene: Scene) -> Demand:
    """Everything that can be demanded of a picture of this scene."""
    objects = tuple(ObjectDemand(o.shape, o.colour, o.size, o.fill) for o in scene.objects)
    return Demand(objects, scene.background, scene.place, scene.relation)


def tokens(text: str) -> list[str]:
    """The text's words and punctuation marks, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _any(values, name: str) -> str:
    return f"(?P<{name}>{'|'.join(sorted(values, key=len, reverse=True))})"


def _noun_pattern(n: int) -> str:
    size, fill = _any(SIZES, f"size{n}"), _any(FILLS, f"fill{n}")
    return rf"an? (?:{size} )?(?:{fill} )?(?:{_any(COLOURS, f'colour{n}')} )?{_any((*SHAPES, 'shape'), f'shape{n}')}"


_PLACE = _any(_PLACES, "place")
_OBJECTS = rf"{_noun_pattern(0)}(?: (?:{_any(_RELATIONS, 'relation')}|and) {_noun_pattern(1)})?"
_CAPTION = re.compile(
    rf"(?:(?:a picture|an image) of )?{_OBJECTS}(?: {_PLACE})?"
    rf"(?: (?:on|against|with) an? {_any(BACKGROUNDS, 'background')} background)?(?: \.)?"
)
_OPENING = re.compile(rf"there is {_OBJECTS}(?: {_PLACE})?")
_SENTENCES = (
    re.compile(rf"it is (?:{_any(COLOURS, 'colour0')}|{_any(SIZES, 'size0')}|{_any(FILLS, 'fill0')}|{_PLACE})"),
    re.compile(rf"the first is {_any(_RELATIONS, 'relation')} the second"),
    re.compile(rf"the background is {_any(BACKGROUNDS, 'background')}"),
)


def parse(text: str) -> Demand:
    """Exactly what the caption demands. Raises InputError naming the caption and what in it is not understood."""
    said = tokens(text)
    unknown = [word for word in said if word not in WORDS]
    if unknown:
        raise InputError(f"caption {text!r}: unknown word {unknown[0]!r}")
    if said[:2] != ["there", "is"]:
        match = _CAPTION.fullmatch(" ".join(said))
        return _demand([match], text)
    first, *others = [sentence.strip() for sentence in " ".join(said).removesuffix(".").split(".")]
    matches = [_OPENING.fullmatch(first)]
    for sentence in others:
        matches.append(next((m for m in (p.fullmatch(sentence) for p in _SENTENCES) if m), None))
    return _demand(matches, text)


def _demand(matches: list[re.Match | None], text: str) -> Demand:
    """The matches' groups put together; InputError where one is missing, or two say something about one attribute."""
    found: dict[str, str] = {}
    for match in matches:
        if match is None:
            raise InputError(f"caption {text!r}: expected e.g. 'a large red circle at the left on a white background'")
        for name, phrase in match.groupdict().items():
            if phrase is None:
                continue
            if name in found:
                raise InputError(f"caption {text!r}: two statements about {name.rstrip('01')}")
            found[name] = phrase
    count = 2 if "shape1" in found else 1
    if "relation" in found and count == 1:
        raise InputError(f"caption {text!r}: a relation needs two objects")
    if count == 2 and (found.keys() & {"place"} or len(matches) > 1 and any("it is" in m[0] for m in matches)):
        raise InputError(f"caption {text!r}: with two objects it is not said which one is meant")
    objects = tuple(
        ObjectDemand(
            **{name: found.get(f"{name}{n}") for name in ("colour", "size", "fill")},
            shape=None if found[f"shape{n}"] == "shape" else found[f"shape{n}"],
        )
        for n in range(count)
    )
    place, relation = _PLACES.get(found.get("place")), _RELATIONS.get(found.get("relation"))
    return Demand(objects, found.get("background"), place, relation)

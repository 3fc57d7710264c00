"""Rapidata's votes on two images, in both schemas; P(first is better) is its share of the votes.

Older: prompt, image1, image2, votes_image1, votes_image2. Newer: weighted_results_image1_preference (and _coherence,
_alignment) beside those of image2: weights of votes, two columns a dimension. A row without votes is unlabelled.
Source: the cards of the sets.
"""

from diffalign.readers.base import UNLABELLED, Entry, Reader, Row, Slot, Verdict, each, shares

_LICENCE = "CDLA-Permissive-2.0 (some sets Apache-2.0: see the card)"
_DIMENSIONS = {"preference": "overall", "alignment": "alignment", "coherence": "coherence"}
_WEIGHTS = tuple(f"weighted_results_image{i}_{d}" for d in _DIMENSIONS for i in (1, 2))
_IMAGES = ("image1", "image2")


def _entry(row: Row, verdicts: list[Verdict | None]) -> Entry:
    slots = tuple(Slot(row.number, f"image{i}", model=row.optional(f"model{i}")) for i in (1, 2))
    return Entry(row.where, row.text("prompt"), slots, tuple(v for v in verdicts if v) or (UNLABELLED,))


def _older(row: Row) -> Entry:
    return _entry(row, [shares(row, "votes_image1", "votes_image2", counted=True)])


def _newer(row: Row) -> Entry:
    names = {d: [f"weighted_results_image{i}_{d}" for i in (1, 2)] for d in _DIMENSIONS}
    return _entry(row, [shares(row, *names[d], _DIMENSIONS[d]) for d in _DIMENSIONS])


_NEEDED = ("|".join(_WEIGHTS[::2]), "|".join(_WEIGHTS[1::2]))
_MODELS = ("model1", "model2")
_VOTES = ("votes_image1", "votes_image2")
READERS = (
    Reader("rapidata_votes", ("prompt", *_IMAGES, *_VOTES), _MODELS, _IMAGES, each(_older), _LICENCE),
    Reader("rapidata", ("prompt", *_IMAGES, *_NEEDED), _MODELS, _IMAGES, each(_newer), _LICENCE),
)

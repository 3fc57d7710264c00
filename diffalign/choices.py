"""Judgements as arrays to fit a scorer to, cut by prompt and by picture into what trains, what tunes and what tests."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffalign import conversions, folders
from diffalign.conversions import TIED
from diffalign.records import InputError, Judgement, digest

TRAIN, TUNE, TEST = range(3)


@dataclass(frozen=True)
class Choices:
    """Pairs, (pairs,) each, sorted by prompt; a picture is named by the hash of its file, however many images have it.

    Attributes:
        first, second: Places in `pictures`.
        prompt: Places in `texts`.
        dimension: Places in `dimensions`.
        p: P(first is better); 1/2 where `tie`.
        part: TRAIN, TUNE or TEST. No prompt and no picture is in two of them.
        pictures: Hash of a file -> an image that has it.
        left_out: How many pairs, by reason.
    """

    first: np.ndarray
    second: np.ndarray
    prompt: np.ndarray
    dimension: np.ndarray
    p: np.ndarray
    tie: np.ndarray
    weight: np.ndarray
    part: np.ndarray
    pictures: Mapping[str, str]
    texts: tuple[str, ...]
    dimensions: tuple[str, ...]
    left_out: Mapping[str, int]

    def without(self, broken: Mapping[str, str]) -> "Choices":
        """Those of which no picture is among the `broken` ones."""
        bad = np.array([name in broken for name in self.pictures])
        return _kept(self, ~(bad[self.first] | bad[self.second]), "a picture cannot be read")

    def of(self, part: int) -> np.ndarray:
        """Places of the pairs of a part."""
        return np.flatnonzero(self.part == part)


def load(folder: Path, dimensions: Sequence[str], tune: float, test: float, seed: int) -> Choices:
    """The pairs of a folder of judgements; rankings give all their pairs, each with its share of the weight.

    `dimensions` are those to take, all where empty. Raises InputError where there are none.
    """
    folders.open_folder(folder, *folders.JUDGED)
    texts, images = folders.texts(folder), folders.image_rows(folder)
    counts: Counter[str] = Counter()
    rows = [row for row in _pairs(folder, images, counts) if not dimensions or _dimension(row) in dimensions]
    known = tuple(dimensions) or tuple(sorted({_dimension(row) for row in rows}))
    lacking = set(known) - {_dimension(row) for row in rows}
    if not rows or lacking:
        there = sorted({_dimension(row) for row in _pairs(folder, images, Counter())})
        what = (
            f"of dimension {min(lacking)}, expected one of {', '.join(there)}"
            if lacking and there
            else "that say which image is better"
        )
        raise InputError(f"{folder}: holds no pairs {what}")
    rows.sort(key=lambda row: (images[row.images[0]]["prompt_id"], *row.images, row.id))
    pictures: dict[str, str] = {}
    prompts: dict[str, int] = {}
    for row in rows:
        prompts.setdefault(images[row.images[0]]["prompt_id"], len(prompts))
        for name in row.images:
            pictures.setdefault(images[name]["sha256"], name)
    place = {sha: n for n, sha in enumerate(pictures)}
    first, second = (np.array([place[images[row.images[k]]["sha256"]] for row in rows]) for k in (0, 1))
    said = tuple(texts[name] for name in prompts)
    prompt = np.array([prompts[images[row.images[0]]["prompt_id"]] for row in rows])
    found = Choices(
        first, second, prompt, np.array([known.index(_dimension(row)) for row in rows]),
        np.array([row.p for row in rows], np.float64), np.array([row.status in TIED for row in rows]),
        np.array([row.weight for row in rows], np.float64), _parts(said, tune, test, seed)[prompt],
        pictures, said, known, counts,
    )  # fmt: skip
    return _pure(_kept(found, first != second, "both pictures are the same file"))


def _pairs(folder: Path, images: Mapping[str, Any], counts: Counter[str]) -> Iterator[Judgement]:
    for row in folders.records(folder, "judgements"):
        lost = next((name for name in row.images if name not in images), None)
        if lost is not None:
            raise InputError(f"{folder}: judgement {row.id} names image {lost}, which is in no parent folder")
        if len({images[name]["prompt_id"] for name in row.images}) > 1:
            raise InputError(f"{folder}: judgement {row.id} compares images of several prompts, expected one")
        if row.kind not in ("pair", "ranking"):
            counts[f"of kind {row.kind}"] += 1
        elif row.kind == "pair" and (row.p is None or row.status == "no_preference"):
            counts["without a verdict"] += 1
        else:
            found = conversions.to_pairs(row, images[row.images[0]]["prompt_id"], "all")
            share = row.weight / len(found)
            yield from (dataclasses.replace(one, weight=share) for one in found)


def _dimension(row: Judgement) -> str:
    return row.dimension or "overall"


def _parts(texts: Sequence[str], tune: float, test: float, seed: int) -> np.ndarray:
    """The part of each text; texts that differ in case and spaces only are in one part."""
    keys = [" ".join(text.lower().split()) for text in texts]
    order = sorted(set(keys), key=lambda key: digest("held out", seed, key))
    tested, tuned = max(1, round(test * len(order))), max(1, round(tune * len(order)))
    part = {key: TEST if n < tested else TUNE if n < tested + tuned else TRAIN for n, key in enumerate(order)}
    return np.array([part[key] for key in keys])


def _pure(found: Choices) -> Choices:
    """Without pairs that show a picture of a part held out further: it would not be held out."""
    for part in (TEST, TUNE):
        inside = found.part == part
        shown = np.zeros(len(found.pictures), bool)
        shown[found.first[inside]] = shown[found.second[inside]] = True
        leaks = (found.part < part) & (shown[found.first] | shown[found.second])
        found = _kept(found, ~leaks, "shows a picture of a held-out prompt")
    return found


def _kept(found: Choices, keep: np.ndarray, reason: str) -> Choices:
    lost = int((~keep).sum())
    if not lost:
        return found
    columns = ("first", "second", "prompt", "dimension", "p", "tie", "weight", "part")
    rows = [getattr(found, name)[keep] for name in columns]
    left_out = {**found.left_out, reason: found.left_out.get(reason, 0) + lost}
    return Choices(*rows, found.pictures, found.texts, found.dimensions, left_out)


def require(folder: Path, found: Choices) -> None:
    """Raise InputError where a dimension has nothing to train on, to tune, or to test."""
    for number, name in enumerate(found.dimensions):
        for part, what in ((TRAIN, "trained on"), (TUNE, "held out to tune"), (TEST, "held out to test")):
            if not (decided(found) & (found.part == part) & (found.dimension == number)).any():
                raise InputError(
                    f"{folder}: no decided pair of dimension {name} is {what}; expected more prompts, or other shares "
                    f"(--tune, --test)"
                )


def decided(found: Choices) -> np.ndarray:
    """Which pairs name a better image."""
    return found.p != 0.5

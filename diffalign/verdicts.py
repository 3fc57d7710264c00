"""Pictures of a batch -> its scores by all judges, as one part of a folder; one that cannot be judged has a reason."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from diffalign import folders, scorers
from diffalign.inputs import Item
from diffalign.records import Score
from diffalign.scorers import Scorer

# (the score of a picture and of each part of the scorer, None), or (as many None, why)
Verdict = tuple[tuple[float | None, ...], str | None]
# of each image of a batch its scores, by their scorers' names
Known = dict[str, dict[str, Score]]


def is_whole(out: Path, number: int, cut: Sequence[Item], judges: Sequence[Scorer]) -> bool:
    """Whether a part is on disk, of the images of this batch, each with its scores by all these scorers and parts."""
    rows = folders.cells(out, "scores", number, ["image_id", "prompt_id", "scorer"])
    of, needed = _grouped((image, prompt, name, name) for image, prompt, name in rows), _names(judges)
    return _are_first(of, cut) and len(of) == len(cut) and all(needed <= said.keys() for _, said in of)


def begun(out: Path, number: int, cut: Sequence[Item], judges: Sequence[Scorer]) -> tuple[Known, list[Item]]:
    """The scores of a batch that are there, by whomever, and the items that lack one by these judges."""
    rows = folders.leading(out, "scores", number, {})
    of, needed = _grouped((row.image_id, row.prompt_id, row.scorer, row) for row in rows), _names(judges)
    known: Known = {item.image: {} for item in cut}
    if _are_first(of, cut):
        known |= {image: said for (image, _), said in of}
    return known, [item for item in cut if not needed <= known[item.image].keys()]


def _names(judges: Sequence[Scorer]) -> set[str]:
    return {name for judge in judges for name in judge.names}


def _grouped(rows: Iterable[tuple[str, str, str, Any]]) -> list[tuple[tuple[str, str], dict[str, Any]]]:
    """Rows (image, prompt, scorer, what is said) image by image."""
    return [(key, {row[2]: row[3] for row in group}) for key, group in groupby(rows, lambda row: row[:2])]


def _are_first(of: Sequence[tuple[tuple[str, str], object]], cut: Sequence[Item]) -> bool:
    """Whether these are the first images of a batch, in its order."""
    return [key for key, _ in of] == [(item.image, item.prompt) for item in cut[: len(of)]]


def write(
    out: Path, number: int, known: Known, left: Sequence[Item], pictures: Sequence[PIL.Image.Image | str],
    judges: Sequence[Scorer],
) -> None:  # fmt: skip
    """Judge the pictures of the items that are left of a batch, each by those judges of whom it lacks a score, and
    write it; pictures of one file are one object.
    """
    found: Known = {image: dict(said) for image, said in known.items()}
    for judge in judges:
        lacking = [k for k, item in enumerate(left) if not known[item.image].keys() >= set(judge.names)]
        for score in _scores(judge, [left[k] for k in lacking], [pictures[k] for k in lacking]):
            found[score.image_id][score.scorer] = score
    folders.write_part(out, "scores", number, [score for said in found.values() for score in said.values()])


def said(error: BaseException) -> str:
    """An error in one line of at most 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _scores(judge: Scorer, items: Sequence[Item], pictures: Sequence[PIL.Image.Image | str]) -> Iterator[Score]:
    """The scores of the items by one judge and its parts; a picture that is a text is why there is none."""
    readable = [k for k, picture in enumerate(pictures) if not isinstance(picture, str)]
    given = values(judge, [pictures[k] for k in readable], [items[k].text for k in readable])
    found = dict(zip(readable, given, strict=True))
    for k, item in enumerate(items):
        numbers, reason = found.get(k, ((None,) * len(judge.names), str(pictures[k])))
        reason = None if reason is None else f"image {item.file or item.image}: {reason}"
        for name, value in zip(judge.names, numbers, strict=True):
            yield Score(item.image, item.prompt, name, judge.revision, judge.preprocessing, value, reason)


def values(judge: Scorer, pictures: Sequence[PIL.Image.Image], texts: Sequence[str]) -> list[Verdict]:
    """The verdict on each picture; where a batch fails, its pictures are judged one by one."""
    if not pictures:
        return []
    try:
        given = judge.function(pictures, texts)
    except scorers.Unavailable:
        raise
    except scorers.UNREADABLE as error:
        if len(pictures) == 1:
            return [((None,) * len(judge.names), said(error))]
        return [v for p, t in zip(pictures, texts, strict=True) for v in values(judge, [p], [t])]
    numbers, why = judge.checked(given, len(pictures))[:, None], (None,) * len(pictures)
    if isinstance(given, scorers.Answers):
        why = given.reasons
        numbers = numbers if given.parts is None else np.hstack([numbers, given.parts])
    return [
        (tuple(row), None) if np.isfinite(row).all() else ((None,) * len(row), reason or f"the score is {row[0]}")
        for row, reason in zip(numbers.tolist(), why, strict=True)
    ]

"""Pictures of a batch -> its scores by all judges, as one part of a folder; one that cannot be judged has a reason."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from diffalign import folders, scorers
from diffalign.inputs import Item
from diffalign.records import Score
from diffalign.scorers import Scorer

# (the score of a picture and of each part of the scorer, None), or (as many None, why)
Verdict = tuple[tuple[float | None, ...], str | None]


def keys(cut: Sequence[Item], judges: Sequence[Scorer]) -> dict[str, list[str]]:
    """What the rows of a part are of: every image by every scorer and each of its parts."""
    pairs = [(item, name) for item in cut for judge in judges for name in judge.names]
    return {
        "image_id": [item.image for item, _ in pairs],
        "prompt_id": [item.prompt for item, _ in pairs],
        "scorer": [name for _, name in pairs],
    }


def begun(out: Path, number: int, cut: Sequence[Item], judges: Sequence[Scorer]) -> tuple[list[Score], list[Item]]:
    """The scores of a batch that are there, and the items that are left."""
    kept = folders.leading(out, "scores", number, keys(cut, judges))
    kept = kept[: len(kept) - len(kept) % sum(len(judge.names) for judge in judges)]
    done = {row.image_id for row in kept}
    return kept, [item for item in cut if item.image not in done]


def write(
    out: Path, number: int, kept: Sequence[Score], left: Sequence[Item], pictures: Sequence[PIL.Image.Image | str],
    judges: Sequence[Scorer],
) -> None:  # fmt: skip
    """Judge the pictures of the items that are left of a batch, and write it; those of one file are one object."""
    folders.write_part(out, "scores", number, [*kept, *_rows(left, pictures, judges)])


def said(error: BaseException) -> str:
    """An error in one line of at most 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _rows(
    items: Sequence[Item], pictures: Sequence[PIL.Image.Image | str], judges: Sequence[Scorer]
) -> Iterator[Score]:
    """The scores of the items by all judges, image by image; a picture that is a text is why there is none."""
    readable = [k for k, picture in enumerate(pictures) if not isinstance(picture, str)]
    found: list[dict[int, Verdict]] = []
    for judge in judges:
        given = values(judge, [pictures[k] for k in readable], [items[k].text for k in readable])
        found.append(dict(zip(readable, given, strict=True)))
    for k, item in enumerate(items):
        for judge, known in zip(judges, found, strict=True):
            given, reason = known.get(k, ((None,) * len(judge.names), str(pictures[k])))
            reason = None if reason is None else f"image {item.file or item.image}: {reason}"
            for name, value in zip(judge.names, given, strict=True):
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

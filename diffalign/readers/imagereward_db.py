"""ImageRewardDB: one row an image, one a group, or one a pair; rank 1 is best, ratings are higher when better.

Rows of single images (image or image_path, prompt_id, rank, image_amount_in_total, three ratings) follow each other by
prompt_id; such a run becomes one ranking in each of three dimensions. Images in the released JSON files are named with
a folder that is not there after unpacking: their last name is looked for too.
Source: Xu et al. 2023, ImageReward (the loader of the data set).
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from diffalign.readers.base import Entry, Reader, Row, RowError, Slot, Verdict, each, finite, pair, present, ranking

_LICENCE = "Apache-2.0; prompts CC0-1.0"
_DIMENSIONS = (
    ("rank", -1, "overall"),
    ("image_text_alignment_rating", 1, "alignment"),
    ("fidelity_rating", 1, "fidelity"),
)
_RATINGS = tuple(field for field, _, _ in _DIMENSIONS[1:])
_IMAGE = "image|image_path"


def _verdicts(rows: Sequence[Row], cells: dict[str, Sequence[object]]) -> tuple[Verdict, ...]:
    """One ranking a dimension that has a value for every image."""
    found = []
    for field, sign, dimension in _DIMENSIONS:
        values = cells.get(field)
        if values is not None and all(v is not None for v in values):
            scores = [sign * finite(rows[min(i, len(rows) - 1)], field, v) for i, v in enumerate(values)]
            found.append(ranking(rows[0], field, scores, dimension))
    return tuple(found) or (Verdict("ranking", "unlabelled"),)


def _flat(rows: Iterable[Row]) -> Iterator[Entry | RowError]:
    for _, run in groupby(rows, key=lambda row: (str(row.get("prompt_id")), str(row.get("prompt")))):
        members = list(run)
        try:
            fields = [field for field, _, _ in _DIMENSIONS if field in members[0].values]
            cells = {field: [r.get(field) for r in members] for field in fields}
            slots = tuple(Slot(r.number, present(r, _IMAGE), moved=True) for r in members)
            yield Entry(members[0].where, members[0].text("prompt"), slots, _verdicts(members, cells))
        except RowError as error:
            yield error


def _group(row: Row) -> Entry:
    if row.get("rank") is None:
        return Entry(row.where, row.text("prompt"), (), _verdicts([row], {}))
    ranks = row.items("rank")
    cells = {"rank": ranks} | {f: row.items(f, len(ranks)) for f in _RATINGS if row.get(f) is not None}
    slots = tuple(Slot(row.number, "image", (i,)) for i in range(len(ranks)))
    return Entry(row.where, row.text("prompt"), slots, _verdicts([row], cells))


def _pair(row: Row) -> Entry:
    slots = (Slot(row.number, "img_better"), Slot(row.number, "img_worse"))
    return Entry(row.where, row.text("prompt"), slots, (pair(1.0),))


_NAMES = ("prompt_id", "prompt", "rank")
READERS = (
    Reader(
        "imagereward_db", (*_NAMES, _IMAGE, "image_amount_in_total"), _RATINGS, ("image", "image_path"), _flat, _LICENCE
    ),
    Reader("imagereward_db_group", (*_NAMES, "image", "classification"), _RATINGS, ("image",), each(_group), _LICENCE),
    Reader(
        "imagereward_db_pair",
        ("prompt_id", "prompt", "img_better", "img_worse"),
        (),
        ("img_better", "img_worse"),
        each(_pair),
        _LICENCE,
    ),
)

"""HPDv2's train.json and test.json; HPDv3's pairs. Images are files, named relative to the folder of the JSON file.

train: prompt, file_path [2], human_preference [1, 0] (1: better). test: prompt, image_path [k], rank [k] (1 is best,
the mean over the raters, so ranks may be equal). HPDv3: prompt, path1 (the better one), path2, model1, model2.
Source: Wu et al. 2023, HPS v2 (its README); Ma et al. 2025, HPSv3.
"""

from diffalign.readers.base import UNLABELLED, UNRANKED, Entry, Reader, Row, Slot, each, finite, pair, ranking

_LICENCE = "Apache-2.0"


def _train(row: Row) -> Entry:
    slots = tuple(Slot(row.number, "file_path", (i,)) for i in (0, 1))
    if row.get("human_preference") is None:
        return Entry(row.where, row.text("prompt"), slots, (UNLABELLED,))
    a, b = (finite(row, "human_preference", v) for v in row.items("human_preference", 2))
    if (a, b) not in ((1, 0), (0, 1), (0.5, 0.5)):
        raise row.error("human_preference", "labels disagree", f"is [{a:g}, {b:g}], expected [1, 0] or [0, 1]")
    return Entry(row.where, row.text("prompt"), slots, (pair(a),))


def _test(row: Row) -> Entry:
    if row.get("rank") is None:
        return Entry(row.where, row.text("prompt"), (), (UNRANKED,))
    ranks = [finite(row, "rank", r) for r in row.items("rank")]
    slots = tuple(Slot(row.number, "image_path", (i,)) for i in range(len(ranks)))
    return Entry(row.where, row.text("prompt"), slots, (ranking(row, "rank", [-r for r in ranks]),))


def _third(row: Row) -> Entry:
    slots = tuple(Slot(row.number, f"path{i}", model=row.optional(f"model{i}")) for i in (1, 2))
    return Entry(row.where, row.text("prompt"), slots, (pair(1.0),))


_TEST = ("prompt", "image_path", "rank", "raw_annotations")
READERS = (
    Reader("hpdv2", ("prompt", "file_path", "human_preference"), (), ("file_path",), each(_train), _LICENCE),
    Reader("hpdv2_test", _TEST, (), ("image_path",), each(_test), _LICENCE),
    Reader("hpdv3", ("prompt", "path1", "path2"), ("model1", "model2"), ("path1", "path2"), each(_third), "MIT"),
)

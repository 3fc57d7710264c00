"""Rows that no set should have, for every reader: rows as a set has them, some of whose cells are of any kind.

What a row means is worked out a second time here, from its label cells alone; a reader must say the same or refuse it.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import strategies as st

from diffalign.importing import Policy
from diffalign.readers import READERS, shelf
from diffalign.readers.base import Entry, Reader, RowError, Verdict
from diffalign.readers.files import in_memory
from diffalign.readers.pictures import Outside

ALL = READERS
POLICY = Policy("all", "all", "keep", False)
Cells = dict[str, Any]

_PICTURE = (b"x", "a.png", "../x.png", "/etc/passwd", None, {"bytes": b"x", "path": None})
_NUMBER = (0, 1, 2, 3, 0.25, "2", 1.5)
_ODD = st.one_of(
    st.sampled_from([None, "", " ", "1", "0.5", "tie", "image_2", "\ud800", True, 10**400, "nan", [], {}, [None]]),
    st.floats(),
    st.integers(-3, 5),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.one_of(st.none(), st.floats(), st.integers(-1, 3), st.text(max_size=2)), max_size=4),
    st.dictionaries(
        st.sampled_from(["bytes", "path", "image_1", "image_2", "prompt"]), st.text(max_size=2), max_size=3
    ),
)
# What stands in a column that no label depends on, or in one whose label stands in it alone.
_COLUMNS: dict[str, tuple[Any, ...]] = {
    "has_label": (True, True, True, False, "false", None),
    "human_preference": ([1, 0], [0, 1], [1, 1], [0.0, 1.0]),
    "response": ("image_1", "image_2", "both_good", "both_bad", None),
    "preferred": ("image_0", "image_1", "tie", "first", "B", "1", 0, 0.0, None),
    "p_first": (0, 1, 0.5, "0.25", 0.75, None),
    "desirable": (0, 1, 0.5, "0.25", None),
    "weight": (1, "2", 0.0, None),
    "prompt_id": ("p", "q"),
    **{f"votes_image{i}": (0, 1, 2, 3) for i in (1, 2)},
    **{f"weighted_results_image{i}_{d}": _NUMBER for i in (1, 2) for d in ("preference", "coherence", "alignment")},
    **dict.fromkeys(("prompt", "caption", "original_prompt", "txt"), ("a fox", "“so”")),
}
_LISTS = ("hpdv2_test", "imagereward_db_group", "ranked")


@st.composite
def rows(draw: st.DrawFn, reader: Reader) -> list[Cells]:
    """One row, or some of a set whose rows belong together, with up to two odd or missing cells each."""
    chance, made = Random(draw(st.integers(0, 2**32))), []
    for _ in range(chance.randint(1, 4) if reader.name == "imagereward_db" else 1):
        row = _likely(chance, reader)
        row |= {n: made[0][n] for n in ("prompt", "prompt_id") if made and n in row and chance.random() < 0.8}
        for name in chance.sample(sorted(row), chance.choice((0, 1, 1, 2))):
            row[name] = draw(_ODD)
        made.append(row)
    return made


def _likely(chance: Random, reader: Reader) -> Cells:
    """A row as the set has them."""
    columns = dict.fromkeys(chance.choice(need.split("|")) for need in reader.needs)
    columns |= dict.fromkeys(n for n in (*reader.labels, *reader.pictures) if n in columns or chance.random() < 0.5)
    count, p = chance.randint(2, 3), chance.choice((0, 1, 0.5, 0.25, None))
    names = chance.choices(("image_1", "image_2", "both_good", "both_bad"), k=chance.randint(0, 2))
    together: Cells = {
        "label_0": p,
        "label_1": None if p is None else 1 - p,
        "preference.responses": names,
        "preference.responses.users": [f"u{n}" for n in range(len(names))],
    }
    if reader.name == "open_image_preferences":
        together["images"] = {"prompt": "a fox", "image_1": b"x", "image_2": "a.png"}
    for name in columns:
        rated = name in ("rank", "ranks", "scores") or name.endswith("rating")
        choices = _NUMBER if rated else _COLUMNS.get(name, _PICTURE)
        listed = reader.name in _LISTS and name not in ("prompt", "prompt_id", "classification")
        plain = [chance.choice(choices) for _ in range(count)] if listed else chance.choice(choices)
        columns[name] = together.get(name, plain)
    return columns


def check(reader: Reader, made: Sequence[Cells], place: Path, seen: Counter[str]) -> None:
    """Raises AssertionError where a row is mislabelled; any other error is a bug too. `seen` counts what was said."""
    file = in_memory(place / "fuzz", made, "row")
    labels, pictures = reader.columns(file.columns)
    for found in reader.entries(file.rows(labels)):
        if isinstance(found, RowError):
            assert found.reason
            assert "row " in str(found)
            seen["refused"] += 1
            continue
        assert isinstance(found, Entry)
        own = [made[slot.row] for slot in found.slots] or made
        for verdict in found.verdicts:
            seen[verdict.status] += 1
            _check_verdict(reader.name, own, verdict)
        judgements, why = POLICY.judgements(found, [f"i{n}" for n in range(len(found.slots))], "fuzz")
        assert judgements or why
        with contextlib.suppress(Outside):
            taken, errors = shelf.look(found, file.cells(pictures), (place,))
            assert len(taken) + len(errors) == len(found.slots)


def _check_verdict(name: str, own: Sequence[Cells], said: Verdict) -> None:
    """A verdict must be what a plain look at the label cells says."""
    if said.status == "unlabelled":
        assert _silent(name, own)
    elif said.kind == "ranking":
        plain = _scores(name, own, said.dimension)
        pairs = [(i, j) for i in range(len(plain)) for j in range(i)]
        assert all(_sign(said.scores[i] - said.scores[j]) == _sign(plain[i] - plain[j]) for i, j in pairs)
        assert (said.status == "tie") == (len(set(plain)) == 1)
    elif said.status in ("both_good", "both_bad"):
        assert said.p == 0.5
        assert said.status in _answers(own[0])
    else:
        side = _sign(said.p - 0.5)
        assert 0 <= said.p <= 1
        assert (said.status == "tie") == (side == 0) or said.kind == "unpaired"
        assert side in _sides(name, own[0], said.dimension)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _answers(cells: Cells) -> list[Any]:
    return [cells["response"]] if "response" in cells else cells["preference.responses"]


def _silent(name: str, own: Sequence[Cells]) -> bool:
    """Whether the label cells say nothing."""
    cells = own[0]
    if name == "pickapic":
        none = all(_empty(cells.get(f"label_{i}")) for i in (0, 1))
        return none or cells["has_label"] in (False, "False", "false", "0", 0)
    if name.startswith("rapidata"):
        firsts = [c for c in cells if c == "votes_image1" or c.startswith("weighted_results_image1")]
        votes = [(cells[c], cells.get(c.replace("image1", "image2"))) for c in firsts]
        return all(_empty(a) or _empty(b) or float(a) + float(b) <= 0 for a, b in votes)
    if name.startswith("imagereward_db"):
        columns = ("rank", "image_text_alignment_rating", "fidelity_rating")
        cells_of = [[row.get(c) for row in own] for c in columns if c in cells]
        if name == "imagereward_db_group" and _empty(cells["rank"]):
            return True
        if name == "imagereward_db_group":
            cells_of = [values[0] if isinstance(values[0], list) else values for values in cells_of]
        return all(any(map(_empty, values)) or not values for values in cells_of)
    if name.startswith("open_image_preferences"):
        answers = cells.get("response", cells.get("preference.responses"))
        return _empty(answers) or answers == []
    if name == "ranked":
        return _empty(cells["scores"] if "scores" in cells else cells["ranks"])
    column = {"unpaired": "desirable", "hpdv2": "human_preference", "hpdv2_test": "rank"}
    return _empty(cells[column.get(name, name)])


def _scores(name: str, own: Sequence[Cells], dimension: str) -> list[float]:
    if name == "hpdv2_test":
        return [-float(r) for r in own[0]["rank"]]
    if name == "ranked":
        cells = own[0]
        return [float(s) for s in cells["scores"]] if "scores" in cells else [-float(r) for r in cells["ranks"]]
    column = {"overall": "rank", "alignment": "image_text_alignment_rating", "fidelity": "fidelity_rating"}[dimension]
    values = own[0][column] if name == "imagereward_db_group" else [row[column] for row in own]
    return [(-1 if column == "rank" else 1) * float(v) for v in values]


def _sides(name: str, cells: Cells, dimension: str) -> set[int]:
    """1 where the first image is better, -1 where the second is, 0 where neither is: what the row may say."""
    plain: dict[str, Callable[[], float]] = {
        "pickapic": lambda: float(cells["label_0"]) - 0.5,
        "hpdv2": lambda: float(cells["human_preference"][0]) - float(cells["human_preference"][1]),
        "rapidata_votes": lambda: float(cells["votes_image1"]) - float(cells["votes_image2"]),
        "p_first": lambda: float(cells["p_first"]) - 0.5,
        "unpaired": lambda: float(cells["desirable"]) - 0.5,
    }
    if name == "pickapic":
        assert str(cells.get("has_label", True)).strip().lower() in ("true", "1", "none", "1.0", "")
    if name in plain:
        return {_sign(plain[name]())}
    if name == "rapidata":
        column = {"overall": "preference"}.get(dimension, dimension)
        first, second = (float(cells[f"weighted_results_image{i}_{column}"]) for i in (1, 2))
        return {_sign(first - second)}
    if name == "preferred":
        said = str(cells["preferred"]).strip().lower()
        second = said in ("image_1", "1", "1.0", "second", "right", "b")
        return {-1 if second else 0 if said in ("tie", "0.5", "equal", "draw") else 1}
    if name.startswith("open_image_preferences") and not name.endswith("binarised"):
        return {{"image_1": 1, "image_2": -1}.get(a, 0) for a in _answers(cells)}
    return {1}

"""Rows that no set should have, for every reader: random cells in the columns it knows, and what they may mean."""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from diffalign.importing import Policy
from diffalign.readers import READERS, shelf
from diffalign.readers.base import Entry, Reader, RowError, Verdict
from diffalign.readers.files import in_memory
from diffalign.readers.pictures import Outside

POLICY = Policy("all", "all", "keep", False)
LABELS = st.one_of(
    st.sampled_from(
        [0, 1, 0.0, 0.5, 1.0, "0", "1", "0.5", "tie", "image_0", "image_1", "image_2", "both_good", "", None]
    ),
    st.floats(),
    st.integers(-3, 10**400),
    st.booleans(),
    st.text(max_size=5),
    st.binary(max_size=3),
)
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(["a fox", "“so”", "\ud800", " "]), st.none(), LABELS)
IMAGES = st.one_of(
    st.none(), st.binary(max_size=8), st.text(max_size=12), st.integers(), st.sampled_from(["../x.png", "/etc/passwd"]),
    st.dictionaries(st.sampled_from(["bytes", "path", "image_1", "image_2", "prompt"]), TEXTS, max_size=3),
)  # fmt: skip
CELLS = st.one_of(LABELS, TEXTS, IMAGES, st.lists(LABELS, max_size=4), st.lists(IMAGES, max_size=4))


def rows(reader: Reader) -> st.SearchStrategy[dict[str, Any]]:
    """A row with cells of any kind, more often than not of the kind that the column should have."""
    needed = [name for need in reader.needs for name in need.split("|")]
    columns = dict.fromkeys((*needed, *reader.labels, *reader.pictures))
    return st.fixed_dictionaries(
        {n: _cell(n) for n in needed}, optional={n: _cell(n) for n in columns if n not in needed}
    )


def _cell(name: str) -> st.SearchStrategy[Any]:
    if name in ("prompt", "caption", "original_prompt", "txt"):
        return st.one_of(st.just("a fox"), TEXTS)
    if name in ("human_preference", "rank", "ranks", "scores", "file_path", "image_path"):
        return st.one_of(
            st.lists(st.sampled_from([0, 1, 2, 3]), min_size=2, max_size=3), st.lists(LABELS, max_size=4), CELLS
        )
    return st.one_of(LABELS, CELLS)


def check(reader: Reader, cells: Mapping[str, Any], place: Path) -> None:
    """Raises AssertionError where a row is mislabelled; any other error is a bug too."""
    file = in_memory(place / "fuzz", [cells], "row")
    labels, pictures = reader.columns(file.columns)
    for found in reader.entries(file.rows(labels)):
        if isinstance(found, RowError):
            assert found.reason
            assert "row 0" in str(found)
            continue
        assert isinstance(found, Entry)
        for verdict in found.verdicts:
            _check_verdict(reader.name, cells, verdict)
        judgements, why = POLICY.judgements(found, [f"i{n}" for n in range(len(found.slots))], "fuzz")
        assert judgements or why
        with contextlib.suppress(Outside):
            seen, errors = shelf.look(found, file.cells(pictures), (place,))
            assert len(seen) + len(errors) == len(found.slots)


def _check_verdict(name: str, cells: Mapping[str, Any], said: Verdict) -> None:
    """A decided verdict must be what a plain look at the label cells says; a tie must be one."""
    if said.status in ("unlabelled", "both_good", "both_bad"):
        return
    if said.kind == "ranking":
        plain = _scores(name, cells, said.dimension)
        pairs = [(i, j) for i in range(len(plain)) for j in range(i)]
        assert all(_sign(said.scores[i] - said.scores[j]) == _sign(plain[i] - plain[j]) for i, j in pairs)
        return
    side = _sign(said.p - 0.5)
    assert 0 <= said.p <= 1
    assert (said.status == "tie") == (side == 0) or said.kind == "unpaired"
    assert side == _side(name, cells, said.dimension)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _scores(name: str, cells: Mapping[str, Any], dimension: str) -> list[float]:
    if name == "hpdv2_test":
        return [-float(r) for r in cells["rank"]]
    if name == "ranked":
        return [float(s) for s in cells["scores"]] if "scores" in cells else [-float(r) for r in cells["ranks"]]
    column = {"overall": "rank", "alignment": "image_text_alignment_rating", "fidelity": "fidelity_rating"}[dimension]
    return [(-1 if column == "rank" else 1) * float(v) for v in cells[column]]


def _side(name: str, cells: Mapping[str, Any], dimension: str) -> int:
    """1 where the first image is better, -1 where the second is, 0 where neither is."""
    if name == "pickapic":
        assert str(cells.get("has_label", True)).strip().lower() in ("true", "1", "none", "1.0", "")
        return _sign(float(cells["label_0"]) - 0.5)
    if name == "hpdv2":
        return _sign(float(cells["human_preference"][0]) - float(cells["human_preference"][1]))
    if name == "rapidata_votes":
        return _sign(float(cells["votes_image1"]) - float(cells["votes_image2"]))
    if name == "rapidata":
        column = {"overall": "preference"}.get(dimension, dimension)
        a, b = (float(cells[f"weighted_results_image{i}_{column}"]) for i in (1, 2))
        # Weights so far apart that the share of one rounds to 0 or 1 still point the right way.
        return _sign(a - b) if math.isclose(a / (a + b), 0.5) or a != b else 0
    if name == "preferred":
        return {"image_0": 1, "0": 1, "0.0": 1, "first": 1, "tie": 0, "0.5": 0}.get(str(cells["preferred"]).strip(), -1)
    if name == "p_first":
        return _sign(float(cells["p_first"]) - 0.5)
    if name == "unpaired":
        return _sign(float(cells["desirable"]) - 0.5)
    if name.startswith("open_image_preferences") and not name.endswith("binarised"):
        answer = cells["response"] if "response" in cells else cells["preference.responses"][0]
        return {"image_1": 1, "image_2": -1}[answer]
    return 1


ALL = READERS

"""Any source becomes records that mean what the source said, and everything left out is counted."""

from collections.abc import Callable
from pathlib import Path

import fixtures_sets as sets
import pytest

from diffalign import dataset, folders
from diffalign.importing import import_


def said(out: Path) -> list[tuple[str, bytes, bytes]]:
    """(prompt, better picture, worse picture) of every pair, ties left out, by what the folder holds."""
    rows, texts = folders.image_rows(out), folders.texts(out)
    data = dict(folders.image_bytes(out, rows))
    pairs = [r for r in folders.records(out, "judgements") if r.p != 0.5]
    return [
        (texts[rows[r.images[0]]["prompt_id"]], data[r.images[r.p < 0.5]], data[r.images[r.p > 0.5]]) for r in pairs
    ]


@pytest.mark.parametrize("make", sets.SETS, ids=lambda make: make.__name__)
def test_every_set_is_imported_and_nothing_is_mislabelled(make: Callable[[Path], sets.Made], tmp_path: Path) -> None:
    made = make(tmp_path / "source")
    out = tmp_path / "out"
    line = import_(made.source, out=out, lists="all")
    assert sorted(said(out)) == sorted(made.pairs)
    manifest = folders.load(out)
    assert manifest.arguments["reader"] == made.reader
    if made.dropped:
        assert manifest.counts["dropped"] == made.dropped
    counts = manifest.counts
    assert counts["rows"] == counts["rows_kept"] + sum(counts["dropped"].values())
    assert counts["judgements"] == len(folders.records(out, "judgements"))
    assert f"{counts['rows_kept']} of {counts['rows']} rows kept as {made.reader}" in line
    for row in folders.image_rows(out).values():
        assert len(row["sha256"]) == 64
    assert dataset.Dataset(out).groups
    assert import_(made.source, out=out, lists="all") == line

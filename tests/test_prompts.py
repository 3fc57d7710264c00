"""Prompt lists as people have them, read strictly; and the batches that are made of them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffalign import worklist
from diffalign.prompts import read_prompts
from diffalign.records import InputError, Prompt, prompt_id


def refused(path: Path, data: bytes | None, column: str = "text") -> str:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_prompts(path, column)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path))


def test_text_files_that_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    assert refused(path, None) == ": no such prompt file"
    assert refused(path, b"") == ": holds no prompt"
    assert refused(path, b"\n  \n") == ": holds no prompt"
    assert refused(path, "a\nb\n\u00fcx".encode("latin-1")) == ", line 3: is not UTF-8 (byte 4)"
    assert "has no columns" in refused(path, b"a", "prompt")


def test_json_lines_that_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    twice = b'{"text": "a", "id": "1"}\n{"text": "b", "id": "1"}'
    assert refused(path, twice) == ", line 2, field id: '1' already stands for 'a'"
    for line in (b"a red circle", b'"text"', b"[]"):
        expected = ', line 2: expected {"text": "\u2026"}, optionally with "id"'
        assert refused(path, b'{"text": "a"}\n' + line) == expected
    assert refused(path, b'{"prompt": "a", "n": 1}') == (
        ", line 1: has no field 'text', but 'prompt', 'n'; choose a --column"
    )
    assert refused(path, b'{"text": 3}') == ", line 1, field text: 3, expected a text"
    assert refused(path, b'{"text": "a", "n": 7}', "n") == ", line 1, field n: 7, expected a text"
    assert refused(path, b'{"text": " "}') == ", line 1, field text: is empty"
    assert refused(path, b'{"text": "a", "id": 3}') == ", line 1, field id: 3, expected a text"
    assert refused(path, b'{"text": "a", "height": 64}') == ", line 1: expected both height and width, or neither"
    for size in ("0", "true", '"x"', "1.5"):
        found = refused(path, f'{{"text": "a", "height": {size}, "width": 64}}'.encode())
        assert found.startswith(", line 1, field height: ")
        assert found.endswith("expected a number of pixels")
    twice = b'{"text": "a", "height": 64, "width": 64}\n{"text": "a"}'
    assert refused(path, twice).endswith("is listed before in another size; expected one size a prompt")


def test_tables_that_are_wrong(tmp_path: Path) -> None:
    assert refused(tmp_path / "p.csv", b"prompt,n\na,1\n") == (
        ", line 2: has no field 'text', but 'prompt', 'n'; choose a --column"
    )
    assert refused(tmp_path / "p.csv", b"text,n\na\n") == ", line 2: expected 2 fields"
    assert refused(tmp_path / "p.csv", b"text,n\na,1,2\n") == ", line 2: expected 2 fields"
    assert refused(tmp_path / "p.csv", b"text\n") == ": holds no prompt"
    assert refused(tmp_path / "p.parquet", b"PAR1").startswith(": is not a whole Parquet file")
    pq.write_table(pa.table({"prompt": ["a"], "n": [1]}), tmp_path / "q.parquet")
    assert refused(tmp_path / "q.parquet", None) == ": has no field 'text', but 'prompt', 'n'; choose a --column"
    assert refused(tmp_path / "q.parquet", None, "n") == ", line 1, field n: 1, expected a text"


def test_lists_that_are_right(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa red circle\n\n  der Kreis  \na red circle\n".encode())
    found = read_prompts(path)
    red, kreis = Prompt(prompt_id("a red circle"), "a red circle", 2), Prompt(prompt_id("der Kreis"), "der Kreis", 1)
    assert found.prompts == (red, kreis)
    assert found.odd == " (1 of them listed more than once, 1 empty lines left out)"
    (tmp_path / "p.jsonl").write_text('{"text": "a", "id": "x"}\n{"text": "b"}\n{"text": "a", "id": "x"}\n')
    assert read_prompts(tmp_path / "p.jsonl").prompts == (Prompt("x", "a", 2), Prompt(prompt_id("b"), "b", 1))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_table_reads_alike(tmp_path: Path, kind: str) -> None:
    rows = [
        {"caption": "a, quoted", "id": "x", "height": 64, "width": 32},
        {"caption": "b", "id": None, "height": None, "width": None},
    ]
    path = tmp_path / f"p.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = {"csv": ",", "tsv": "\t"}[kind]
        cells = [list(rows[0]), *([f'"{v}"' if v else "" for v in row.values()] for row in rows)]
        path.write_text("".join(mark.join(row) + "\n" for row in cells))
    found = read_prompts(path, "caption")
    assert found.prompts == (Prompt("x", "a, quoted"), Prompt(prompt_id("b"), "b"))
    assert found.sizes == {"x": (64, 32)}
    assert found.odd == ""


# --- the work list


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_batches_hold_every_picture_once_and_one_size_each(kinds: list[int], n: int, more: int, batch: int) -> None:
    prompts = [Prompt(str(i), str(i)) for i in range(len(kinds))]
    sizes = {str(i): (64, 64 * kind) for i, kind in enumerate(kinds) if kind}
    cuts = worklist.cuts(prompts, sizes, (0, 0), n, batch)
    drawn = [(p.id, index) for cut in cuts for p, index in cut.work]
    assert sorted(drawn) == sorted((p.id, index) for p in prompts for index in range(n))
    for cut in cuts:
        assert 1 <= len(cut) == len(cut.work) <= batch
        assert {sizes.get(p.id, (0, 0)) for p, _ in cut.work} == {cut.size}
    buckets = {cut.size for cut in cuts}
    assert sum(len(cut) < batch for cut in cuts) <= len(buckets), "only the last of a size is short"
    longer = worklist.cuts(prompts, sizes, (0, 0), n + more, batch)
    for short, long in zip(cuts, longer, strict=False):
        assert long.work[: len(short)] == short.work, "a longer list only goes on"

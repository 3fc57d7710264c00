"""Records and record folders: what is refused, what survives a crash, and that `datasets` opens what we write."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st

from diffalign import checkpoint, folders, journal, places
from diffalign import records as r
from diffalign.records import Image, InputError, Judgement, Prompt, Score

MANIFEST = folders.Manifest("sample", {"seed": 0, "per_prompt": 2}, 3, extends=("per_prompt",))


def change(manifest: folders.Manifest = MANIFEST, **arguments: object) -> folders.Manifest:
    return dataclasses.replace(manifest, arguments=manifest.arguments | arguments)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(r.prompt_id(t), t) for t in texts]


# --- records


@given(st.lists(st.text(), max_size=5), st.lists(st.text(), max_size=5))
def test_digest_tells_lists_of_texts_apart(a: list[str], b: list[str]) -> None:
    assert (r.digest(*a) == r.digest(*b)) == (a == b)


def test_digest_is_of_values_not_of_numpy_types() -> None:
    assert r.digest("x", 3, 0.5, None) == r.digest("x", np.int64(3), np.float64(0.5), None)
    assert r.digest("x", 0.5) != r.digest("x", 0.25)
    assert len(r.digest("x")) == 32


@given(st.permutations(["c", "a", "b"]))
def test_group_id_does_not_depend_on_order(images: list[str]) -> None:
    assert r.group_id("p", images) == r.group_id("p", ("a", "b", "c"))
    assert r.group_id("q", images) != r.group_id("p", images)


def test_pair_records_the_group_of_its_images() -> None:
    one, other = r.pair("p", "a", "b", 1.0, source="s"), r.pair("p", "b", "a", 1.0, source="s")
    assert one.group == other.group == r.group_id("p", ("a", "b"))
    assert one.id != other.id
    assert r.pair("p", "a", "b", 0.7, source="s", rater="x").id != one.id


GOOD = {
    Prompt: Prompt("p", "text", 2),
    Image: Image("i", "p", {"bytes": b"png", "path": None}, "0" * 64, 4, 5, seed=1, index=0),
    Score: Score("i", "p", "gold", "rev", "none", 0.5),
    Judgement: Judgement("j", "g", "ranking", ("a", "b"), scores=(0.5, 1.0), weight=2.0),
}


@pytest.mark.parametrize("kind", list(GOOD))
def test_records_go_to_parquet_and_back(kind: type[r.Record], tmp_path: Path) -> None:
    folders.write_part(tmp_path, kind.table, 0, [GOOD[kind]] * 3)
    assert folders.records(tmp_path, kind.table) == [GOOD[kind]] * 3
    assert pq.read_schema(folders.part(tmp_path, kind.table, 0)).names == list(GOOD[kind].row())


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (Image, {"width": 0}, "size 0x5"),
        (Image, {"image": {"bytes": None, "path": None}}, "neither bytes nor path"),
        (Score, {"value": float("nan")}, "not a finite number"),
        (Score, {"value": float("inf")}, "not a finite number"),
        (Judgement, {"kind": "pairs"}, "'pairs', expected one of pair"),
        (Judgement, {"status": "maybe"}, "'maybe', expected one of decided"),
        (Judgement, {"images": ("a", "a")}, "same image"),
        (Judgement, {"images": ("a",)}, "1 images"),
        (Judgement, {"scores": (0.5,)}, "one score per image"),
        (Judgement, {"scores": (0.5, float("nan"))}, "not all finite"),
        (Judgement, {"scores": None}, "one score per image"),
        (Judgement, {"weight": -1.0}, "weight -1.0"),
        (Judgement, {"weight": float("nan")}, "weight nan"),
        (Judgement, {"score_gap": float("inf")}, "score_gap inf"),
        (Judgement, {"kind": "pair", "p": None}, "p is missing"),
        (Judgement, {"kind": "pair", "p": 0.7, "status": "tie"}, "p = 0.7, but it is a tie, expected 0.5"),
        (Judgement, {"kind": "pair", "p": 0.5, "status": "unlabelled"}, "p = 0.5, but it is unlabelled"),
        (Judgement, {"votes": (1,)}, r"votes \(1,\), expected a count of at least 0 for each image"),
        (Judgement, {"votes": (1, -2)}, "expected a count of at least 0"),
        (Judgement, {"kind": "pair", "p": 1.5}, "p = 1.5"),
        (Judgement, {"kind": "pair", "p": float("nan")}, "p = nan"),
        (Judgement, {"kind": "unpaired", "images": ("a",)}, "p is missing"),
    ],
)
def test_impossible_records_are_refused(kind: type[r.Record], changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        dataclasses.replace(GOOD[kind], **changes)


def test_older_parts_have_no_votes(tmp_path: Path) -> None:
    row = r.pair("p", "a", "b", 1.0, source="s")
    folders.write_part(tmp_path, "judgements", 0, [row])
    path = folders.part(tmp_path, "judgements", 0)
    pq.write_table(pq.read_table(path).drop_columns("votes"), path)
    assert folders.records(tmp_path, "judgements") == [row]
    assert folders.read(tmp_path, "judgements", ["votes", "id"]).column_names == ["votes", "id"]
    pq.write_table(pq.read_table(path).drop_columns("weight"), path)
    with pytest.raises(InputError, match="row 0: field 'weight' is missing"):
        folders.records(tmp_path, "judgements")


def test_rows_of_other_columns_are_refused() -> None:
    with pytest.raises(InputError, match="unknown field \\['colour'\\]"):
        Prompt.of({"id": "p", "text": "t", "colour": "red"})
    with pytest.raises(InputError, match="field \\['text'\\] is missing"):
        Prompt.of({"id": "p"})
    with pytest.raises(InputError, match="field \\['text'\\] is empty"):
        Prompt.of({"id": "p", "text": None})
    assert Prompt.of({"id": "p", "text": "t"}).count == 1


# --- beginning, going on, refusing


def test_begin_twice_changes_nothing(tmp_path: Path) -> None:
    folders.begin(tmp_path / "x", MANIFEST)
    folders.write_part(tmp_path / "x", "prompts", 0, prompts("a"))
    before = contents(tmp_path / "x")
    folders.begin(tmp_path / "x", MANIFEST)
    assert contents(tmp_path / "x") == before
    assert folders.load(tmp_path / "x") == MANIFEST


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (change(seed=1), "made with seed = 0, not 1"),
        (change(per_prompt=1), "made with per_prompt = 2, not 1"),
        (change(steps=5), "made with steps = None, not 5"),
        (folders.Manifest("score", {}, 1), "output of `sample`, expected that of `score`"),
        (dataclasses.replace(MANIFEST, parents=({"path": "x", "fingerprint": "y"},)), "made from 0 folders, not 1"),
    ],
)
def test_another_run_is_refused_by_name(other: folders.Manifest, said: str, tmp_path: Path) -> None:
    folders.begin(tmp_path, MANIFEST)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=said):
        folders.begin(tmp_path, other)
    assert contents(tmp_path) == before


def test_extension_keeps_the_fingerprint(tmp_path: Path) -> None:
    folders.begin(tmp_path, MANIFEST)
    more = dataclasses.replace(change(per_prompt=4), batches=6)
    folders.begin(tmp_path, more)
    assert folders.load(tmp_path).batches == 6
    assert more.fingerprint == MANIFEST.fingerprint != change(seed=1).fingerprint


def test_tuples_in_arguments_are_lists_after_reading(tmp_path: Path) -> None:
    manifest = folders.Manifest("sample", {"sampler": (5, 2.0)}, 1)
    folders.begin(tmp_path, manifest)
    folders.begin(tmp_path, manifest)
    assert folders.load(tmp_path).fingerprint == manifest.fingerprint


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        folders.begin(tmp_path, MANIFEST)
    with pytest.raises(InputError, match="is a file"):
        folders.begin(tmp_path / "notes.txt", MANIFEST)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_killed_while_writing_the_first_file(tmp_path: Path) -> None:
    (tmp_path / f".diffalign.json.tmp-{os.getpid()}").write_text("{half")
    folders.begin(tmp_path, MANIFEST)
    assert sorted(contents(tmp_path)) == ["README.md", "diffalign.json"]


def test_begin_clears_what_a_kill_left(tmp_path: Path) -> None:
    folders.begin(tmp_path, MANIFEST)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ".part-00000.parquet.tmp-17").write_bytes(b"half")
    folders.begin(tmp_path, MANIFEST)
    assert not contents(tmp_path / "images")


def test_a_full_disk_names_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the system says, which is no name; of a whole file, of a line more, and of a checkpoint."""
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        journal.append(Path("/dev/full"), {"step": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'x'}'"):
        folders.write_atomically(tmp_path / "x", b"new")
    with (
        pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'c'}'"),
        checkpoint.written(tmp_path / "c"),
    ):
        os.fsync(0)
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.write_atomically(tmp_path / "x", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        folders.write_atomically(tmp_path / "x", b"new")
    assert contents(tmp_path) == {"x": b"old"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{half", "not a diffalign manifest"),
        ("[]", "not a diffalign manifest"),
        ("{}", "not a diffalign manifest"),
        ('{"format": 99}', "format 99, this version reads 1"),
        ('{"format": 1}', "not a diffalign manifest"),
        (b"\xff\xfe", "not a diffalign manifest"),
    ],
)
def test_broken_manifests(text: str | bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "diffalign.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=said):
        folders.load(tmp_path)
    with pytest.raises(InputError, match=said):
        folders.begin(tmp_path, MANIFEST)


def test_manifest_of_an_unknown_stage(tmp_path: Path) -> None:
    folders.begin(tmp_path, MANIFEST)
    found = json.loads((tmp_path / "diffalign.json").read_text()) | {"stage": "dream"}
    (tmp_path / "diffalign.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="'dream', expected one of import"):
        folders.load(tmp_path)


def test_open_folder_wants_the_stage_and_all_parts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        folders.open_folder(tmp_path / "x", "sample")
    with pytest.raises(InputError, match="not a record folder"):
        folders.open_folder(tmp_path, "sample")
    worlds.images(tmp_path / "images")
    assert folders.open_folder(tmp_path / "images", "sample", "import").stage == "sample"
    with pytest.raises(InputError, match="output of `sample`, expected that of `score` or `pair`"):
        folders.open_folder(tmp_path / "images", "score", "pair")
    folders.part(tmp_path / "images", "images", 0).unlink()
    with pytest.raises(InputError, match="1 of 1 parts are missing; run its `sample` again"):
        folders.open_folder(tmp_path / "images", "sample")


# --- parts


def test_is_whole_sees_what_is_missing_other_or_broken(tmp_path: Path) -> None:
    rows = prompts("a", "b")
    expected = {"id": [p.id for p in rows], "text": ["a", "b"]}
    assert not folders.is_whole(tmp_path, "prompts", 0, expected)
    folders.write_part(tmp_path, "prompts", 0, rows)
    assert folders.is_whole(tmp_path, "prompts", 0, expected)
    assert not folders.is_whole(tmp_path, "prompts", 0, expected | {"text": ["b", "a"]})
    assert not folders.is_whole(tmp_path, "prompts", 0, {"text": ["a"]})
    assert not folders.is_whole(tmp_path, "prompts", 1, expected)
    path = folders.part(tmp_path, "prompts", 0)
    whole = path.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], whole[:-3], b"PAR1" + whole[4:-8] + b"\0\0\0\0PAR1"):
        path.write_bytes(broken)
        assert not folders.is_whole(tmp_path, "prompts", 0, expected)
        with pytest.raises(InputError, match="part-00000.parquet: is not a whole Parquet file"):
            folders.read(tmp_path, "prompts")


def test_leading_gives_the_start_of_a_batch_only(tmp_path: Path) -> None:
    rows = prompts("a", "b")
    folders.write_part(tmp_path, "prompts", 0, rows)
    assert folders.leading(tmp_path, "prompts", 0, {"text": ["a", "b", "c"]}) == rows
    assert folders.leading(tmp_path, "prompts", 0, {"text": ["b", "a", "c"]}) == []
    assert folders.leading(tmp_path, "prompts", 0, {"text": ["a"]}) == []
    assert folders.leading(tmp_path, "prompts", 1, {"text": ["a"]}) == []


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (100_000, 99_999, 2, 10_001):
        folders.write_part(tmp_path, "prompts", number, prompts(str(number)))
    assert folders.read(tmp_path, "prompts", ["text"])["text"].to_pylist() == ["2", "10001", "99999", "100000"]


def test_a_folder_name_is_no_column(tmp_path: Path) -> None:
    folders.write_part(tmp_path / "beta=2000", "prompts", 0, prompts("a"))
    assert folders.read(tmp_path / "beta=2000", "prompts").column_names == ["id", "text", "count"]


def test_empty_tables(tmp_path: Path) -> None:
    assert folders.read(tmp_path, "scores").schema.names == r.schema("scores").names
    assert folders.read(tmp_path, "scores", ["value", "scorer"]).column_names == ["value", "scorer"]
    folders.write_part(tmp_path, "scores", 0, [])
    assert folders.records(tmp_path, "scores") == []


def test_other_columns_types_and_values_are_named(tmp_path: Path) -> None:
    path = folders.part(tmp_path, "prompts", 0)
    path.parent.mkdir()
    pq.write_table(pa.table({"id": ["p"], "caption": ["t"]}), path)
    with pytest.raises(InputError, match="row 0: field 'caption' is unknown, expected id, text, count"):
        folders.read(tmp_path, "prompts", ["id"])
    pq.write_table(pa.table({"id": ["p"], "text": ["t"], "count": ["many"]}), path)
    with pytest.raises(InputError, match="field 'count' is string, expected int64"):
        folders.read(tmp_path, "prompts")
    pq.write_table(
        pa.table({"count": pa.array([1], pa.int32()), "id": ["p"], "text": pa.array(["t"], "large_string")}), path
    )
    assert folders.records(tmp_path, "prompts") == [Prompt("p", "t", 1)]
    pq.write_table(pa.table({"id": ["p", None], "text": ["t", "u"], "count": [1, 1]}), path)
    with pytest.raises(InputError, match=r"part-00000.parquet, row 1: prompts: field \['id'\] is empty"):
        folders.records(tmp_path, "prompts")


# --- ancestors


def test_children_find_texts_and_images(tmp_path: Path) -> None:
    made = worlds.images(tmp_path / "images")
    pairs = worlds.judged(tmp_path, [])
    assert [p.name for p in folders.lineage(pairs)] == ["pairs", "scores", "images"]
    assert sorted(folders.texts(pairs).values()) == sorted(worlds.TEXTS)
    rows = [row for drawn in made.values() for row in drawn]
    assert set(folders.image_rows(pairs)) == {row.id for row in rows}
    assert "image" not in folders.image_rows(pairs)[rows[0].id]
    wanted = [rows[5].id, rows[2].id]
    assert list(folders.image_bytes(pairs, wanted)) == [(row.id, row.image["bytes"]) for row in (rows[2], rows[5])]
    with pytest.raises(InputError, match="image nowhere is in no parent folder"):
        list(folders.image_bytes(pairs, ["nowhere"]))
    assert list(folders.image_bytes(pairs, [])) == []


def test_lineage_says_what_moved_or_changed(tmp_path: Path) -> None:
    worlds.images(tmp_path / "images")
    pairs = worlds.judged(tmp_path, [])
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    assert len(list(folders.lineage(tmp_path.with_name("copy") / "pairs"))) == 3
    (tmp_path / "images").rename(tmp_path / "pictures")
    with pytest.raises(InputError, match="its parent .*images is not there"):
        folders.texts(pairs)
    worlds.images(tmp_path / "images", per_prompt=2)
    with pytest.raises(InputError, match="is not the folder it was made from"):
        folders.texts(pairs)


def test_lineage_through_a_link(tmp_path: Path) -> None:
    worlds.images(tmp_path / "images")
    pairs = worlds.judged(tmp_path, [])
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    link = tmp_path / "elsewhere" / "deep" / "link"
    link.symlink_to(pairs)
    assert folders.texts(link) == folders.texts(pairs)


def test_images_by_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(worlds.png(0))
    row = Image("i", "p", {"bytes": None, "path": "../a.png"}, "0" * 64, 32, 32)
    folders.begin(tmp_path / "x", folders.Manifest("import", {}, 1))
    folders.write_part(tmp_path / "x", "images", 0, [row])
    assert list(folders.image_bytes(tmp_path / "x", ["i"])) == [("i", worlds.png(0))]
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="a.png: image i of .* is not there"):
        list(folders.image_bytes(tmp_path / "x", ["i"]))


def test_datasets_opens_every_table(tmp_path: Path) -> None:
    import datasets

    worlds.images(tmp_path / "images")
    worlds.pairs(tmp_path)
    folders.write_part(tmp_path / "scores", "scores", 0, [GOOD[Score]])
    for folder, table in (("images", "prompts"), ("images", "images"), ("scores", "scores"), ("pairs", "judgements")):
        place = str(tmp_path / folder)
        found = datasets.load_dataset(place, table, split="train", cache_dir=str(tmp_path / "cache"))
        assert found.num_rows == folders.read(tmp_path / folder, table).num_rows
        assert found.column_names == r.schema(table).names
        if table == "images":
            assert found[0]["image"].size == (32, 32)


# --- shipped things


def test_recipes_and_assets_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "package"
    (tmp_path / "site" / "train").mkdir(parents=True)
    (tmp_path / "site" / "train" / "mine.py").write_text("checkout")
    monkeypatch.setattr(places, "_PACKAGE", package)
    assert places.recipe("mine").read_text() == places.recipe("mine.py").read_text() == "checkout"
    (package / "train").mkdir(parents=True)
    (package / "train" / "mine.py").write_text("installed")
    assert places.recipe("mine").read_text() == "installed"
    (tmp_path / "own.py").write_text("own")
    assert places.recipe(str(tmp_path / "own.py")).read_text() == "own"
    for name in ("yours", str(tmp_path / "mine.py"), "../train/mine", ""):
        with pytest.raises(InputError, match="no such recipe file, nor a shipped recipe \\(shipped: mine\\)"):
            places.recipe(name)
    with pytest.raises(InputError, match="the asset 'shapes/clip' is not there"):
        places.asset("shapes/clip")
    (package / "assets" / "shapes").mkdir(parents=True)
    assert places.asset("shapes") == package / "assets" / "shapes"

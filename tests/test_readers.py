"""Readers know sets by their columns, refuse what they cannot mean, and open nothing outside the data folder."""

import io
import json
import math
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import fixtures_sets as sets
import fuzzing
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings

from diffalign import decoding, readers
from diffalign.importing import import_
from diffalign.readers import pictures
from diffalign.readers.base import Entry, Reader, RowError
from diffalign.records import InputError


def entries(path: Path) -> list[Entry | RowError]:
    reader, files, _ = readers.find(path, None, {})
    return [entry for file in files for entry in readers.read(reader, file)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("reader", fuzzing.ALL, ids=lambda r: r.name)
def test_fuzzed_rows_end_in_no_traceback_and_are_not_mislabelled(reader: Reader) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=200, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(made=fuzzing.rows(reader))
    def every_row(made: list[dict[str, Any]]) -> None:
        fuzzing.check(reader, made, Path("nowhere"), seen)

    every_row()
    assert min(seen["decided"], seen["refused"]) >= 20, seen


def test_a_set_is_known_by_its_columns_whatever_its_name(tmp_path: Path) -> None:
    path = sets.parquet(tmp_path / "hpdv2_train.parquet", sets.pickapic_rows())
    assert readers.find(path, None, {})[0].name == "pickapic"
    names = [r.name for r in readers.READERS]
    assert len(set(names)) == len(names)


def test_missing_columns_are_named_with_the_nearest(tmp_path: Path) -> None:
    names = {"caption": "caption", "jpg0": "jpg_0", "jpg_1": "jpg_1", "label_0": "label_0"}
    rows = [{new: row[old] for new, old in names.items()} for row in sets.pickapic_rows()]
    path = sets.parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(InputError, match=r"nearest is pickapic: column jpg_0 \(did you mean 'jpg0'\?\) is missing"):
        readers.find(path, None, {})
    assert readers.find(path, None, {"jpg_0": "jpg0"})[0].name == "pickapic"
    (tmp_path / "b.csv").write_text("text,winner,jpg_2\n", encoding="utf-8")
    with pytest.raises(InputError, match="nearest is chosen_rejected: column prompt, chosen, rejected is missing"):
        readers.find(tmp_path / "b.csv", None, {})
    with pytest.raises(InputError, match="has no column 'jpgg'"):
        readers.find(path, None, {"jpg_0": "jpgg"})
    with pytest.raises(InputError, match="column jpg_0 .* is missing, which pickapic needs"):
        readers.find(path, "pickapic", {})
    with pytest.raises(InputError, match="reader 'pickpic': expected 'pickapic'"):
        readers.find(path, "pickpic", {})


def test_another_sets_file_is_refused(tmp_path: Path) -> None:
    made = sets.hpdv2(tmp_path)
    with pytest.raises(InputError, match="jpg_1"):
        import_(made.source, out=tmp_path / "out", reader="pickapic")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"label_0": 1.0, "label_1": 1.0}, "labels disagree"),
        ({"label_0": 0.0, "label_1": 0.0}, "labels disagree"),
        ({"label_0": None, "label_1": 1.0}, "labels disagree"),
        ({"label_0": math.nan, "label_1": 0.0}, "not finite"),
        ({"label_0": math.inf, "label_1": 0.0}, "not finite"),
        ({"label_0": 2.0, "label_1": -1.0}, "label out of range"),
        ({"caption": ""}, "no prompt"),
        ({"caption": None}, "no prompt"),
    ],
)
def test_labels_that_mean_nothing_are_refused_by_name(tmp_path: Path, cells: dict[str, Any], reason: str) -> None:
    path = sets.parquet(tmp_path / "a.parquet", [sets.pickapic_rows()[0] | cells, sets.pickapic_rows()[1]])
    first, second = entries(path)
    assert isinstance(first, RowError)
    assert first.reason == reason
    assert "a.parquet, row 0, field" in str(first)
    assert isinstance(second, Entry)


def test_unlabelled_rows_are_not_read_as_losses(tmp_path: Path) -> None:
    rows = [sets.pickapic_rows()[0] | {"has_label": False, "label_0": 0.0, "label_1": 1.0}]
    (entry,) = entries(sets.parquet(tmp_path / "a.parquet", rows))
    assert [v.status for v in entry.verdicts] == ["unlabelled"]


def test_lists_run_from_rank_one_and_keep_ties(tmp_path: Path) -> None:
    first, _, third, _ = entries(sets.hpdv2_test(tmp_path).source)
    assert first.verdicts[0].scores == (-1.0, -3.0, -3.0)
    assert third.verdicts[0].status == "tie"


def test_several_dimensions_and_raters(tmp_path: Path) -> None:
    entry = entries(sets.rapidata(tmp_path / "r").source)[0]
    assert {v.dimension: round(v.p, 6) for v in entry.verdicts} == {"overall": 0.75, "coherence": 0.1, "alignment": 0.5}
    images = {"image_1": "a.png", "image_2": "b.png", "prompt": "p"}
    answers = {"preference.responses": ["both_bad", "image_2"], "preference.responses.users": ["u", "v"]}
    row = {"images": images, "model_1": "dev", "model_2": "sd"} | answers
    (entry,) = entries(sets.parquet(tmp_path / "a.parquet", [row]))
    assert [(v.status, v.p, v.rater) for v in entry.verdicts] == [("both_bad", 0.5, "u"), ("decided", 0.0, "v")]
    toxic = row | {"preference.responses": ["toxic_content", "image_2"]}
    (error,) = entries(sets.parquet(tmp_path / "b.parquet", [toxic]))
    assert error.reason == "toxic"


def test_a_parquet_file_cut_in_half_is_named(tmp_path: Path) -> None:
    path = sets.pickapic(tmp_path).source
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"train-00000-of-00001.parquet: is not a whole Parquet file"):
        import_(tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_parquet_file_with_damaged_pages_leaves_nothing(tmp_path: Path) -> None:
    path = sets.pickapic(tmp_path / "set").source
    data = bytearray(path.read_bytes())
    at = data.find(sets.A[:60])
    data[at - 40 : at + 4000] = bytes(4040)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"train-00000-of-00001.parquet"):
        import_(path, out=tmp_path / "out", bad="refuse")
    assert not (tmp_path / "out").exists()


def tar(path: Path, members: dict[str, bytes], **known: Any) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in known.items():
                setattr(member, key, value)
            file.addfile(member, io.BytesIO(data))
    return path


GOOD = {"a.jpg_0.jpg": sets.A, "a.jpg_1.jpg": sets.B, "a.label_0.txt": b"1", "a.caption.txt": b"fox"}


@pytest.mark.parametrize("name", ["/etc/x.jpg_0.jpg", "../x.jpg_0.jpg", "a/../../x.jpg_0.jpg", "a\\..\\x.jpg_0.jpg"])
def test_tars_with_members_outside_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="lies outside the tar"):
        import_(tar(tmp_path / "a.tar", GOOD | {name: sets.A}), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tars_with_links_cut_short_or_doubled_are_refused(tmp_path: Path) -> None:
    link = tar(tmp_path / "a.tar", {"x.jpg_0.jpg": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd")
    with pytest.raises(InputError, match="is no plain file"):
        readers.opened(link)
    whole = tar(tmp_path / "b.tar", GOOD).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: whole.index(sets.B) + 50])
    with pytest.raises(InputError, match=r"b.tar: is not a whole tar"):
        readers.opened(tmp_path / "b.tar")
    with pytest.raises(InputError, match="stands twice"):
        readers.opened(tar(tmp_path / "c.tar", GOOD | {"a.jpg_0.png": sets.A}))
    (tmp_path / "d.tar").write_bytes(b"no tar at all")
    with pytest.raises(InputError, match=r"d.tar: is not a whole tar"):
        readers.opened(tmp_path / "d.tar")


@pytest.mark.parametrize("name", ["../secret.png", "/secret.png", "a/../../secret.png"])
def test_paths_outside_the_data_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(sets.A)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b.png").write_bytes(sets.B)
    path = write(tmp_path / "set" / "a.jsonl", [{"prompt": "x", "chosen": name, "rejected": "b.png"}])
    with pytest.raises(InputError, match=r"a.jsonl, line 1, field chosen: .* lies outside the data folder"):
        import_(path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sizes_are_those_of_pictures_held_upright() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    PIL.Image.new("RGB", (24, 16)).save(sink, format="JPEG", exif=exif)
    found = pictures.measure(sink.getvalue())
    assert (found.width, found.height) == decoding.rgb(sink.getvalue()).size == (16, 24)


def bomb(side: int) -> bytes:
    sink = io.BytesIO()
    PIL.Image.new("1", (side, side)).save(sink, format="PNG")
    return sink.getvalue()


def test_bombs_and_other_formats_are_not_decoded() -> None:
    assert "pixels" in pictures.measure(bomb(9000))
    assert "more than 67108864 pixels" in pictures.measure(bomb(20000))
    assert pictures.measure(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n") == "is no picture"
    assert pictures.measure(b"") == "is no picture"
    whole = pictures.measure(sets.CMYK)
    assert (whole.mode, whole.width, whole.height) == ("CMYK", 24, 24)
    assert "truncated" in pictures.measure(sets.CUT)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.csv", "prompt,chosen,rejected\nx,a.png,b.png,c.png\n", r"a.csv, line 2: more cells than columns"),
        ("a.csv", "prompt,chosen,chosen\nx,a.png,b.png\n", "column 'chosen' stands twice"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": \n', r"a.jsonl, line 2: is not JSON"),
        ("a.jsonl", '{"prompt": "x"}\n[1]\n', r"a.jsonl, line 2: is list, expected an object"),
        ("a.json", '[{"prompt": "x"}, 3]', r"a.json, row 1: is int, expected an object"),
        ("a.json", '{"prompt": "x"}', "expected a list of objects"),
        ("a.txt", "x", "expected Parquet, Arrow, CSV"),
    ],
)
def test_tables_that_are_none_are_refused_with_the_line(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=match):
        entries(tmp_path / name)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"prompt,chosen,rejected\nf\xe4hre,a,b\n")
    with pytest.raises(InputError, match=r"a.csv, line 2: is not UTF-8"):
        entries(tmp_path / "a.csv")


def test_folders_of_several_sets_or_of_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder; a set on the hub is named owner/name"):
        readers.find(tmp_path / "yuvalkirstain/pickapic_v2", None, {})
    with pytest.raises(InputError, match="holds no rows"):
        readers.find(tmp_path, None, {})
    sets.pickapic(tmp_path / "a")
    sets.rapidata(tmp_path / "b")
    with pytest.raises(InputError, match="sets of several kinds"):
        readers.find(tmp_path, None, {})
    assert [p.name for p in readers.find(tmp_path, "pickapic", {})[2]] == ["train.parquet"]


def test_files_of_another_kind_beside_a_set_are_counted(tmp_path: Path) -> None:
    path = sets.pickapic(tmp_path / "set").source
    (path.parent / "dataset_infos.json").write_text("{}", encoding="utf-8")
    line = import_(path.parent, out=tmp_path / "out")
    assert "1 files of another kind were not read" in line


def test_names_of_pictures_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    for name in ("x_w.png", "x-win.png", "x_l.png"):
        (tmp_path / name).write_bytes(sets.A)
    with pytest.raises(InputError, match="says the same of x"):
        readers.find(tmp_path, None, {})
    (tmp_path / "x-win.png").unlink()
    (tmp_path / "y_0.png").write_bytes(sets.A)
    with pytest.raises(InputError, match="holds pairs .* and rankings .* at once"):
        readers.find(tmp_path, None, {})


def test_trl_conversations_are_refused_by_name(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "x"}], "chosen": sets.A, "rejected": sets.B}
    (error,) = entries(sets.parquet(tmp_path / "a.parquet", [row]))
    assert error.reason == "wrong type"

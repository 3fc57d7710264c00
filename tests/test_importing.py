"""Any source becomes records that mean what the source said, and everything left out is counted."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fixtures_sets as sets
import pytest
from datasets import load_dataset

from diffalign import dataset, folders
from diffalign.importing import import_
from diffalign.records import InputError


def said(out: Path) -> list[tuple[str, bytes, bytes]]:
    """(prompt, better picture, worse picture) of every pair, ties left out, by what the folder holds."""
    rows, texts = folders.image_rows(out), folders.texts(out)
    data = dict(folders.image_bytes(out, rows))
    pairs = [r for r in folders.records(out, "judgements") if r.p != 0.5]
    return [
        (texts[rows[r.images[0]]["prompt_id"]], data[r.images[r.p < 0.5]], data[r.images[r.p > 0.5]]) for r in pairs
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


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
    for name, data in folders.image_bytes(out, folders.image_rows(out)):
        assert folders.image_rows(out)[name]["sha256"] == hashlib.sha256(data).hexdigest()
    assert dataset.Dataset(out).groups
    assert import_(made.source, out=out, lists="all") == line


def test_an_interrupted_import_ends_in_the_same_bytes(tmp_path: Path) -> None:
    made = sets.pickapic(tmp_path / "source")
    line = import_(made.source, out=tmp_path / "whole", batch=2)
    import_(made.source, out=tmp_path / "again", batch=2)
    for name in ("images/part-00001.parquet", "judgements/part-00001.parquet", "refused.csv"):
        (tmp_path / "again" / name).unlink()
    shutil.rmtree(tmp_path / "again" / "prompts")
    with pytest.raises(InputError, match="1 of 3 parts are missing; run its `import` again"):
        folders.open_folder(tmp_path / "again", "import")
    assert import_(made.source, out=tmp_path / "again", batch=2) == line.replace("whole", "again")
    names = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert len(names) >= 12
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_size_of_parts_changes_no_record(tmp_path: Path) -> None:
    made = sets.pickapic(tmp_path / "source")
    for n in (1, 2, 256):
        import_(made.source, out=tmp_path / f"{n}", batch=n)
    for table in ("prompts", "images", "judgements"):
        one, two, all_ = (folders.read(tmp_path / f"{n}", table).to_pylist() for n in (1, 2, 256))
        assert one == two == all_


def test_ties_by_policy(tmp_path: Path) -> None:
    made = sets.pickapic(tmp_path / "source")
    found = {}
    for ties in ("drop", "keep", "downweight"):
        import_(made.source, out=tmp_path / ties, ties=ties)
        rows = [r for r in folders.records(tmp_path / ties, "judgements") if r.status == "tie"]
        found[ties] = [(r.p, r.weight) for r in rows]
    assert found == {"drop": [], "keep": [(0.5, 1.0)], "downweight": [(0.5, 0.5)]}


def test_both_good_and_both_bad_are_likes_and_dislikes(tmp_path: Path) -> None:
    answers = ["both_good", "both_bad", "image_1"]
    pictures = [sets.picture(n) for n in range(20, 26)]
    rows = [
        {"prompt": f"p{n}", "image_1": pictures[2 * n], "image_2": pictures[2 * n + 1], "response": answer}
        for n, answer in enumerate(answers)
    ]
    import_(sets.parquet(tmp_path / "a.parquet", rows), out=tmp_path / "out", unpaired=True)
    found = folders.records(tmp_path / "out", "judgements")
    assert {r.kind for r in found} == {"unpaired"}
    data = dict(folders.image_bytes(tmp_path / "out", folders.image_rows(tmp_path / "out")))
    assert {data[r.images[0]]: r.p for r in found} == dict(zip(pictures, [1, 1, 0, 0, 1, 0], strict=True))


def test_an_image_liked_in_two_pairs_is_judged_once_in_training(tmp_path: Path) -> None:
    import_(sets.pickapic(tmp_path / "set").source, out=tmp_path / "out", unpaired=True)
    data = dataset.Dataset(tmp_path / "out")
    twice = [g for g in data.groups if g.judgements[0].weight == 2.0]
    assert len(twice) == 1
    judged = dataset.judge([dataset.Visit(g, 0) for g in data.groups], "unpaired")
    assert len(judged.weight) == len(judged.desirable) == len(data.groups)


def test_likes_and_dislikes_of_folders(tmp_path: Path) -> None:
    for side, data in (("liked", sets.A), ("disliked", sets.B)):
        (tmp_path / "set" / side).mkdir(parents=True)
        (tmp_path / "set" / side / "x.png").write_bytes(data)
        (tmp_path / "set" / side / "x.txt").write_text("fox", encoding="utf-8")
    import_(tmp_path / "set", out=tmp_path / "out")
    rows = folders.records(tmp_path / "out", "judgements")
    data = dict(folders.image_bytes(tmp_path / "out", folders.image_rows(tmp_path / "out")))
    assert {data[r.images[0]]: r.p for r in rows} == {sets.A: 1.0, sets.B: 0.0}


def test_prompts_of_folders_may_be_listed(tmp_path: Path) -> None:
    for side, data in (("chosen", sets.A), ("rejected", sets.B)):
        for name in ("fox_1", "fox_2"):
            (tmp_path / "sides" / side).mkdir(parents=True, exist_ok=True)
            (tmp_path / "sides" / side / f"{name}.png").write_bytes(data + name.encode())
    lines = f"file_name,prompt\nfox_1.png,{sets.CURLY.replace(',', '')}\nchosen/fox_2.png,two\n"
    (tmp_path / "sides" / "metadata.csv").write_text(lines, encoding="utf-8")
    line = import_(tmp_path / "sides", out=tmp_path / "a")
    assert set(folders.texts(tmp_path / "a").values()) == {sets.CURLY.replace(",", ""), "two"}
    assert "not read" not in line
    (tmp_path / "ends").mkdir()
    for name, data in (("x_w", sets.A), ("x_l", sets.B)):
        (tmp_path / "ends" / f"{name}.png").write_bytes(data)
    with pytest.raises(
        InputError, match=r"1 no prompt .*; prompts are in NAME.txt beside the pictures, or in metadata"
    ):
        import_(tmp_path / "ends", out=tmp_path / "b")
    rows = [{"file_name": "x_w.png", "prompt": "one"}, {"file_name": "x_l.png", "prompt": "one"}]
    write(tmp_path / "ends" / "metadata.jsonl", rows)
    import_(tmp_path / "ends", out=tmp_path / "b")
    assert set(folders.texts(tmp_path / "b").values()) == {"one"}
    write(tmp_path / "ends" / "metadata.jsonl", [rows[0], rows[1] | {"prompt": "two"}])
    with pytest.raises(InputError, match=r"metadata.jsonl, line 2, field prompt: labels disagree"):
        import_(tmp_path / "ends", out=tmp_path / "c")


@pytest.mark.parametrize(
    ("dimension", "p"), [("overall", 0.75), ("coherence", 0.1), ("mean", 0.45), ("pareto", 0.5), ("all", None)]
)
def test_dimensions_by_policy(tmp_path: Path, dimension: str, p: float | None) -> None:
    made = sets.rapidata(tmp_path / "source")
    import_(made.source, out=tmp_path / "out", dimension=dimension, ties="keep")
    rows = folders.records(tmp_path / "out", "judgements")
    first = [r for r in rows if r.group == rows[0].group]
    if p is None:
        assert sorted(r.dimension for r in first) == ["alignment", "coherence", "overall"]
    else:
        assert [r.p for r in first] == [pytest.approx(p)]


def test_a_dimension_nobody_speaks_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dimension = beauty: the data speak of alignment, coherence, overall"):
        import_(sets.rapidata(tmp_path / "s").source, out=tmp_path / "out", dimension="beauty")


def test_lists_stay_lists_or_become_pairs(tmp_path: Path) -> None:
    made = sets.ranked_folder(tmp_path / "source")
    counts = {"keep": 2, "all": 6, "adjacent": 4, "best_vs_rest": 4, "best_vs_worst": 2}
    for lists, n in counts.items():
        import_(made.source, out=tmp_path / lists, lists=lists)
        rows = folders.records(tmp_path / lists, "judgements")
        assert len(rows) == n
        assert {r.kind for r in rows} == ({"ranking"} if lists == "keep" else {"pair"})
    kept = folders.records(tmp_path / "keep", "judgements")
    assert [row.scores for row in kept] == [(-1.0, -2.0, -3.0), (-2.0, -3.0, -4.0)]


def test_the_same_picture_on_both_sides_is_left_out(tmp_path: Path) -> None:
    rows = [
        {"prompt": "x", "chosen": sets.A, "rejected": sets.A},
        {"prompt": "x", "chosen": sets.A, "rejected": sets.B},
    ]
    import_(sets.parquet(tmp_path / "a.parquet", rows), out=tmp_path / "out")
    assert folders.load(tmp_path / "out").counts["dropped"] == {"same image on both sides": 1}


def test_one_picture_under_two_prompts_is_two_images(tmp_path: Path) -> None:
    rows = [{"prompt": p, "chosen": sets.A, "rejected": sets.B} for p in ("x", "y", "x")]
    import_(sets.parquet(tmp_path / "a.parquet", rows), out=tmp_path / "out")
    images = folders.image_rows(tmp_path / "out")
    assert len(images) == 4
    assert len({i["sha256"] for i in images.values()}) == 2
    judgements = folders.records(tmp_path / "out", "judgements")
    assert len({r.id for r in judgements}) == 3
    assert len({r.group for r in judgements}) == 2
    assert len(dataset.Dataset(tmp_path / "out").groups) == 2
    prompts = folders.records(tmp_path / "out", "prompts")
    assert {p.text: p.count for p in prompts} == {"x": 2, "y": 1}


def test_own_captions_and_generators_are_kept(tmp_path: Path) -> None:
    import_(sets.double_caption(tmp_path / "s").source, out=tmp_path / "out")
    rows = list(folders.image_rows(tmp_path / "out").values())
    assert {"first 0", "second 0"} <= {r["caption"] for r in rows}
    assert {r["model"] for r in rows} == {"sdxl", "dreamlike"}


def test_labels_are_read_before_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups whose rows are all tied or unlabelled are never read: their pictures may even be damaged."""
    rows = sets.pickapic_rows()
    tied = [r | {"label_0": 0.5, "label_1": 0.5, "jpg_0": b"TIED" * 999, "has_label": True} for r in rows[:3]]
    path = sets.parquet(tmp_path / "a.parquet", [*tied, *rows[:2], rows[6]], group=3)
    data = path.read_bytes()
    at = data.index(b"TIED")
    path.write_bytes(data[: at - 8] + bytes(16) + data[at + 8 :])
    import_(path, out=tmp_path / "out")
    assert folders.load(tmp_path / "out").counts["dropped"] == {"tie": 3}


def test_bad_rows_are_refused_where_that_is_the_policy(tmp_path: Path) -> None:
    made = sets.pickapic(tmp_path / "source")
    with pytest.raises(InputError, match=r"row 4, field jpg_0: unreadable image"):
        import_(made.source, out=tmp_path / "out", bad="refuse")
    assert not (tmp_path / "out").exists()


def test_refused_rows_are_named_in_a_file(tmp_path: Path) -> None:
    import_(sets.pickapic(tmp_path / "source").source, out=tmp_path / "out")
    lines = (tmp_path / "out" / "refused.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "where,field,reason,detail"
    assert len(lines) == 2
    assert "row 4" in lines[1]
    assert "unreadable image" in lines[1]


def test_nothing_usable_is_an_error_that_says_why(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "image_0": "a.png", "image_1": "b.png", "p_first": 0.5}] * 3
    with pytest.raises(InputError, match="no row of 3 can be used: 3 tie"):
        import_(write(tmp_path / "a.jsonl", rows), out=tmp_path / "out")
    same = [{"prompt": "x", "chosen": "a.png", "rejected": "a.png"}]
    (tmp_path / "a.png").write_bytes(sets.A)
    with pytest.raises(InputError, match=r"no row of 1 can be used: 1 same image on both sides \(first: .*, line 1"):
        import_(write(tmp_path / "b.jsonl", same), out=tmp_path / "out")
    (tmp_path / "c.csv").write_text("prompt,chosen,rejected\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"c.csv: no row of 0 can be used: there is none"):
        import_(tmp_path / "c.csv", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_columns_are_mapped(tmp_path: Path) -> None:
    names = sets.files(tmp_path / "pictures")
    rows = [{"text": "fox", "good": names[0][0], "bad": names[0][1], "prompt": "not this"}]
    path = write(tmp_path / "table" / "a.jsonl", rows)
    mapping = ("prompt=text", "chosen=good", "rejected=bad")
    import_(path, out=tmp_path / "out", columns=mapping, images=tmp_path / "pictures")
    assert said(tmp_path / "out") == [("fox", sets.A, sets.B)]
    with pytest.raises(InputError, match="columns 'text': expected NEW=OLD"):
        import_(path, out=tmp_path / "other", columns=("text",))
    with pytest.raises(InputError, match="no such folder"):
        import_(path, out=tmp_path / "other", columns=mapping, images=tmp_path / "none")


def test_another_choice_or_source_needs_another_folder(tmp_path: Path) -> None:
    made = sets.pickapic(tmp_path / "source")
    import_(made.source, out=tmp_path / "out")
    with pytest.raises(InputError, match="was made with ties = 'drop', not 'keep'"):
        import_(made.source, out=tmp_path / "out", ties="keep")
    sets.parquet(made.source, sets.pickapic_rows()[:3])
    with pytest.raises(InputError, match="was made with source = "):
        import_(made.source, out=tmp_path / "out")


def test_an_out_folder_inside_the_source_is_not_read_again(tmp_path: Path) -> None:
    made = sets.pickapic(tmp_path / "source")
    line = import_(made.source.parent, out=made.source.parent / "out")
    assert import_(made.source.parent, out=made.source.parent / "out") == line
    with pytest.raises(InputError, match="is a record folder already"):
        import_(made.source.parent / "out", out=tmp_path / "out")


def test_datasets_opens_what_was_imported(tmp_path: Path) -> None:
    import_(sets.pickapic(tmp_path / "source").source, out=tmp_path / "out")
    images = load_dataset(str(tmp_path / "out"), "images", split="train", cache_dir=str(tmp_path / "cache"))
    assert images[0]["image"].size == (24, 24)
    judgements = load_dataset(str(tmp_path / "out"), "judgements", split="train", cache_dir=str(tmp_path / "cache"))
    assert judgements[0]["p"] == 1.0


def test_votes_are_kept(tmp_path: Path) -> None:
    made = sets.rapidata_votes(tmp_path / "set")
    import_(made.source, out=tmp_path / "out", ties="keep")
    assert {r.votes for r in folders.records(tmp_path / "out", "judgements")} == {(9, 0), (0, 4), (5, 5)}


def test_a_label_that_was_mended_needs_another_folder(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "image_0": "a.png", "image_1": "b.png", "preferred": "image_0"},
        *({"prompt": "x" * 40000, "image_0": "a.png", "image_1": "b.png", "preferred": "tie"} for _ in range(2)),
    ]
    for number, name in enumerate(("a.png", "b.png")):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_bytes(sets.picture(number))
    path = write(tmp_path / "set" / "rows.jsonl", rows)
    import_(path, out=tmp_path / "out")
    write(path, [rows[0] | {"preferred": "image_1"}, *rows[1:]])
    with pytest.raises(InputError, match="was made with source = "):
        import_(path, out=tmp_path / "out")
    write(path, rows)
    with pytest.raises(InputError, match="was made with images = None"):
        import_(path, out=tmp_path / "out", images=tmp_path / "set")


def test_labels_are_part_of_what_a_parquet_file_is(tmp_path: Path) -> None:
    rows = sets.pickapic_rows()
    many = {
        "caption": "x",
        "jpg_0": sets.noise(1),
        "jpg_1": sets.noise(2),
        "label_0": 0.5,
        "label_1": 0.5,
        "has_label": False,
    }
    path = tmp_path / "set.parquet"
    found = []
    for label in (1.0, 0.0):
        first = rows[0] | {"label_0": label, "label_1": 1 - label}
        second = rows[0] | {"label_0": 1 - label, "label_1": label}
        sets.parquet(path, [first, second, *(many for _ in range(3))])
        import_(path, out=tmp_path / str(label))
        found.append(folders.load(tmp_path / str(label)).arguments["source"])
    assert found[0] != found[1]


def test_a_picture_of_the_same_name_in_another_folder_is_not_taken(tmp_path: Path) -> None:
    for number, name in enumerate(("one/0.png", "two/0.png", "one/1.png", "1.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(sets.picture(number))
    rows = [{"prompt": "p", "chosen": f"one/{n}.png", "rejected": f"two/{n}.png"} for n in (0, 1)]
    import_(write(tmp_path / "rows.jsonl", rows), out=tmp_path / "out")
    counts = folders.load(tmp_path / "out").counts
    assert counts["rows_kept"] == 1
    assert counts["dropped"] == {"missing image": 1}

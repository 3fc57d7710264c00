"""What `inspect` counts is what is there."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import fixtures_sets as sets
import PIL.Image
import pytest

from diffalign import buckets, cli
from diffalign.importing import import_
from diffalign.inspecting import Finding, inspect
from diffalign.records import InputError


def counts(data: Path, place: Path, **known: Any) -> dict[str, Any]:
    inspect(data, json=place / "report.json", **known)
    return json.loads((place / "report.json").read_text(encoding="utf-8"))


def row(prompt: str, first: bytes, second: bytes, label: float | None, **known: Any) -> dict[str, Any]:
    labels = {"label_0": label, "label_1": None if label is None else 1 - label, "has_label": label is not None}
    return {"caption": prompt, "jpg_0": first, "jpg_1": second, "model_0": "m", "model_1": "m"} | labels | known


def test_the_counts_of_a_set_with_everything_wrong(tmp_path: Path) -> None:
    rows = [
        row("a", sets.A, sets.B, 1.0, model_1="n"),
        row("a", sets.B, sets.A, 1.0),  # the other way round
        row("b", sets.C, sets.C, 1.0),
        row("b", sets.C, sets.D, 0.5),
        row("c", sets.A, sets.D, None),
        row("d", sets.CUT, sets.A, 0.0),
        row("d", sets.CUT, b"", 1.0),
        row("e", sets.WIDE, sets.RGBA, 0.0, model_0="n", user_id=3, nsfw=False),
        row("f", sets.A, sets.picture(90), 1.0, label_1=1.0),
    ]
    found = counts(sets.parquet(tmp_path / "train.parquet", rows), tmp_path)
    wanted = {
        "rows": 9, "decided": 6, "ties": 1, "unlabelled": 1, "refused": 1, "unreadable": 2, "same_image": 1,
        "unique_images": 8, "unique_prompts": 6, "contradictions": 1, "unequal_sizes": 1, "repeated_rows": 1,
        "personal_columns": ["user_id"], "nsfw_columns": ["nsfw"], "splits": ["train"],
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert found["near_duplicates"] == 0
    assert found["modes"] == {"RGB": 6, "RGBA": 1}
    assert found["model_baseline"]["pairs"] == 2
    assert found["model_baseline"]["accuracy"] == 0.5 or found["model_baseline"]["accuracy"] == 1.0
    assert ["row 5, field jpg_0" in line for line in found["unreadable_images"]] == [True, False]
    assert found["label_noise"]["judged_more_than_once"] == 1
    assert found["label_noise"]["disagreement"] == 1.0


@pytest.mark.parametrize("make", sets.SETS, ids=lambda make: make.__name__)
def test_every_set_can_be_inspected(make: Any, tmp_path: Path) -> None:
    made = make(tmp_path / "set")
    found = counts(made.source, tmp_path, page=tmp_path / "page.html")
    assert found["rows"] == found["decided"] + found["ties"] + found["unlabelled"] + found["refused"]
    assert found["reader"] == made.reader
    labels = () if made.forced else ("ties", "unlabelled")
    assert not [n for n in (*labels, "unreadable", "unequal_sizes", "repeated_images") if not found[n]], (
        "a hazard lacks"
    )
    assert {"CMYK", "RGBA"} <= set(found["modes"])
    assert sets.CURLY in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_set_that_was_imported_shows_the_same_without_what_was_left_out(tmp_path: Path) -> None:
    made = sets.pickapic(tmp_path / "set")
    import_(made.source, out=tmp_path / "out", ties="keep")
    before, after = counts(made.source, tmp_path), counts(tmp_path / "out", tmp_path, strict=True)
    assert (before["decided"], before["ties"], before["unlabelled"], before["unreadable"]) == (5, 1, 1, 1)
    assert (after["decided"], after["ties"], after["unlabelled"], after["unreadable"]) == (4, 1, 0, 0)
    assert after["model_baseline"] == before["model_baseline"]


def test_prompts_that_leak_between_splits(tmp_path: Path) -> None:
    sets.parquet(tmp_path / "data" / "train-0.parquet", [row("A  Fox", sets.A, sets.B, 1.0)])
    sets.parquet(tmp_path / "data" / "validation-0.parquet", [row("a fox", sets.A, sets.D, 1.0)])
    found = counts(tmp_path / "data", tmp_path)
    assert (found["splits"], found["leaked_prompts"], found["leaked_images"]) == (["train", "validation"], 1, 1)
    with pytest.raises(Finding, match="1 leaked prompts"):
        inspect(tmp_path / "data", strict=True)
    rows = [row("a", sets.A, sets.B, 1.0, split=name) for name in ("Train", "val", None)]
    found = counts(sets.parquet(tmp_path / "all.parquet", rows), tmp_path)
    assert (found["splits"], found["leaked_prompts"]) == (["train", "validation"], 1)


def test_the_names_of_generators_predict_labels(tmp_path: Path) -> None:
    pictures = [sets.picture(n) for n in range(30, 46)]
    names = ["flux", "flux", "flux", "sd", "flux", "flux", "flux", "flux"]
    rows = [
        row(f"p{n}", pictures[2 * n], pictures[2 * n + 1], float(n % 2), model_0="flux" if (n % 2 == 1) == (w == "flux")
            else "sd", model_1="sd" if (n % 2 == 1) == (w == "flux") else "flux")
        for n, w in enumerate(names)
    ]  # fmt: skip
    baseline = counts(sets.parquet(tmp_path / "a.parquet", rows), tmp_path)["model_baseline"]
    assert (baseline["pairs"], baseline["accuracy"]) == (8, 7 / 8)
    assert baseline["first_wins"] == {"flux | sd": {"pairs": 8, "share": 7 / 8}}


def test_label_noise_of_repeated_judgements(tmp_path: Path) -> None:
    answers = ["image_1"] * 9 + ["image_2"]
    rows = [
        {"images": {"image_1": "a", "image_2": "b", "prompt": "p"}, "model_1": "x", "model_2": "y",
         "preference.responses": answers, "preference.responses.users": [str(n) for n in range(10)]}
    ]  # fmt: skip
    for name, data in (("a", sets.A), ("b", sets.B)):
        (tmp_path / name).write_bytes(data)
    noise = counts(sets.parquet(tmp_path / "a.parquet", rows), tmp_path)["label_noise"]
    assert noise["disagreement"] == pytest.approx(9 / 45)
    e = noise["flipped_labels"]
    assert 2 * e * (1 - e) == pytest.approx(9 / 45)


@pytest.mark.parametrize(("words", "status"), [([], 0), (["--strict"], 1), (["--page", "x.pdf"], 2)])
def test_strict_is_exit_status_one_and_mistakes_are_two(
    words: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = sets.pickapic(tmp_path / "set")
    monkeypatch.setattr(sys, "argv", ["diffalign", "inspect", str(made.source), *words])
    if status:
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == status
    else:
        cli.main()
    said = capsys.readouterr()
    lines = (said.err if status else said.out).splitlines()
    assert len(lines) == 1
    assert ("ends in .html" if status == 2 else "1 unreadable") in lines[0]


def test_files_that_look_alike_are_counted(tmp_path: Path) -> None:
    """The same picture saved once more, in another format or size, is another file but nothing new to look at."""
    with PIL.Image.open(io.BytesIO(sets.WIDE)) as picture:
        sink = io.BytesIO()
        picture.convert("RGB").save(sink, format="PNG")
    rows = [row("a", sets.WIDE, sets.A, 1.0), row("b", sink.getvalue(), sets.B, 1.0)]
    found = counts(sets.parquet(tmp_path / "a.parquet", rows), tmp_path)
    assert (found["unique_images"], found["near_duplicates"]) == (4, 2)


def test_clean_data_pass_strictly(tmp_path: Path) -> None:
    place = sets.suffix_folder(tmp_path / "clean").source
    for broken in place.glob("2*"):
        broken.unlink()
    assert "nothing that would corrupt training" in inspect(place, strict=True)


def test_the_page_is_the_same_for_the_same_seed_and_escapes_prompts(tmp_path: Path) -> None:
    rows = [row(f"<script>{n}</script>", sets.A, sets.picture(n + 50), 1.0) for n in range(12)]
    path = sets.parquet(tmp_path / "a.parquet", rows)
    pages = []
    for seed in (0, 0, 1):
        inspect(path, page=tmp_path / "page.html", sample=3, seed=seed)
        pages.append((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert pages[0] == pages[1] != pages[2]
    assert pages[0].count("<figure>") == 6
    assert "<script>" not in pages[0]
    with pytest.raises(InputError, match=r"ends in .html"):
        inspect(path, page=tmp_path / "page.pdf")


def test_buckets_hide_what_they_say() -> None:
    assert buckets.shared([(512, 512), (768, 768)], 1024) == (1024, 1024)
    assert buckets.hidden((512, 512), (1024, 1024)) == 0
    assert buckets.hidden((1000, 500), (1024, 1024)) == pytest.approx(0.5)
    for width, height in buckets.sizes(1024):
        assert width % 64 == height % 64 == 0
        assert width * height <= 1024 * 1024
        assert buckets.shared([(width, height)] * 2, 1024) == (width, height)
    tall = buckets.shared([(500, 1000), (1000, 500)], 1024)
    assert tall == (1024, 1024)

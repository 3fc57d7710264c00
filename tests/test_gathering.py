"""Pictures and comparisons -> preferences: SPIN's pairs, curated images, DRAGON's swaps, several scorers, win rates."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import worlds
from test_pairing import scored

from diffalign import decoding, folders, pairing, rules, sets
from diffalign.dataset import Dataset
from diffalign.records import InputError, Judgement, pair, prompt_id
from diffalign.scorers import features

FEATURES = """
import numpy as np
def mean_colour(pictures):
    return [np.asarray(p).mean((0, 1)) / 255 for p in pictures]
def wrong(pictures):
    return [[float("nan")]] * len(pictures)
"""


def made(place: Path, data: Path, **flags: Any) -> list[Judgement]:
    pairing.pair(data, out=place / "made", **flags)
    Dataset(place / "made")
    return folders.records(place / "made", "judgements")


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, dict[str, list[str]]]:
    """An images folder, and prompt id -> its image ids."""
    found = worlds.images(tmp_path / "drawn" / "images")
    return tmp_path / "drawn" / "images", {p: [i.id for i in rows] for p, rows in found.items()}


def real_folder(place: Path) -> Path:
    """Rendered images of four of the prompts under other ids, one each, and one prompt that nobody drew."""
    found = worlds.images(place / "scratch", per_prompt=1)
    rows = folders.records(place / "scratch", "images")
    named = [replace(r, id=f"real-{n}") for n, r in enumerate(rows)][:4]
    named.append(replace(named[0], id="real-other", prompt_id=prompt_id("a lone prompt")))
    folders.begin(place / "real", folders.Manifest("sample", {"real": len(found)}, 1))
    folders.write_part(place / "real", "prompts", 0, folders.records(place / "scratch", "prompts"))
    folders.write_part(place / "real", "images", 0, named)
    return place / "real"


# --- no judge


def test_real_images_win_against_drawn_ones(tmp_path: Path, world: tuple[Path, dict[str, list[str]]]) -> None:
    images, drawn = world
    real = real_folder(tmp_path)
    said = pairing.pair(images, out=tmp_path / "made", rule="real_vs_generated", real=real)
    rows = folders.records(tmp_path / "made", "judgements")
    assert "2 prompts without a real image, 1 prompts without a generated image" in said
    assert len(rows) == 4 * 3
    assert all(r.images[0].startswith("real-") and r.p == 1 and r.rater is None for r in rows)
    assert {r.images[1] for r in rows} <= {i for of in drawn.values() for i in of}
    data = Dataset(tmp_path / "made")
    assert len(data.groups) == 12
    assert dict(folders.image_bytes(tmp_path / "made", data.image_ids())).keys() == set(data.image_ids())
    with pytest.raises(InputError, match=r"images: image \w+ is also among the generated ones of .*images"):
        pairing.pair(images, out=tmp_path / "no", rule="real_vs_generated", real=images)


def test_of_a_judged_folder_the_winners_are_real(tmp_path: Path) -> None:
    pairs = worlds.pairs(tmp_path / "people")
    rows = folders.records(pairs, "judgements")
    winners = {r.images[r.p < 0.5] for r in rows}
    found = made(tmp_path, pairs, rule="desirable")
    assert {r.images[0] for r in found} == winners
    assert all((r.kind, r.p) == ("unpaired", 1.0) for r in found)


def test_curated_images_and_their_share_of_real_ones(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 3))
    scores = scored(tmp_path / "s", {f"p{n}": {"clip": row.tolist()} for n, row in enumerate(values)})
    kept = made(tmp_path / "a", scores, rule="curated")
    assert {r.images[0] for r in kept} == {f"p{n}-{i}" for n, i in enumerate(values.argmax(1))}
    mixed = made(tmp_path / "b", scores, rule="curated", real=real_folder(tmp_path), real_share=0.25)
    real = [r for r in mixed if r.source == "real"]
    assert len(real) / len(mixed) == 0.25
    assert [r for r in mixed if r.source != "real"] == kept
    with pytest.raises(InputError, match="holds 5 real images; a share of 0.5 beside 6 others needs 6"):
        pairing.pair(scores, out=tmp_path / "c", rule="curated", real=tmp_path / "real", real_share=0.5)
    soft = [made(tmp_path / f"t{s}", scores, rule="curated", temperature=100.0, seed=s) for s in (1, 2)]
    assert soft[0] != soft[1], "at a high temperature the choice is nearly uniform, by the seed"


@pytest.mark.parametrize("rule", ["swap_vendi", "swap_frechet"])
def test_swaps_end_with_the_better_set_chosen(
    rule: str, tmp_path: Path, world: tuple[Path, dict[str, list[str]]]
) -> None:
    images, drawn = world
    (tmp_path / "mine.py").write_text(FEATURES)
    code = f"{tmp_path}/mine.py:mean_colour"
    near = {"exemplars": real_folder(tmp_path)} if rule == "swap_frechet" else {}
    said = pairing.pair(images, out=tmp_path / "made", rule=rule, features=code, **near)
    rows = folders.records(tmp_path / "made", "judgements")
    assert "6 images without another one" in said, "the third image of each prompt"
    assert {frozenset(r.images) for r in rows} == {frozenset(of[:2]) for of in drawn.values()}
    before, after = (float(v) for v in said.split("set score ")[1].split(" (")[0].split(" -> "))
    assert after > before
    again = pairing.pair(images, out=tmp_path / "again", rule=rule, features=code, **near)
    assert folders.records(tmp_path / "again", "judgements") == rows
    assert "next: diffalign train" in again


def test_swaps_by_the_embedded_embeddings(tmp_path: Path, world: tuple[Path, dict[str, list[str]]]) -> None:
    images, _ = world
    said = pairing.pair(images, out=tmp_path / "made", rule="swap_vendi")
    score = float(said.split(" -> ")[1].split(" ")[0])
    rows = folders.records(tmp_path / "made", "judgements")
    stored = dict(folders.image_bytes(images, [r.images[0] for r in rows]))
    seen = features.load("shapes_clip")[0]([decoding.rgb(stored[r.images[0]]) for r in rows])
    assert np.linalg.norm(seen, axis=1) == pytest.approx(1, abs=1e-5)
    assert sets.vendi(seen) == pytest.approx(score, rel=1e-3)


# --- lists and several scorers


def test_rankings_and_advantages(tmp_path: Path) -> None:
    scores = scored(tmp_path, {"a": {"clip": [0.0, 3.0, 1.0, 2.0]}, "flat": {"clip": [1.0, 1.0]}})
    [found] = made(tmp_path / "r", scores, rule="ranking", top=3)
    assert (found.kind, found.images, found.scores) == ("ranking", ("a-1", "a-3", "a-2"), (1.0, 2 / 3, 1 / 3))
    [soft] = made(tmp_path / "s", scores, rule="ranking", temperature=1.0)
    assert soft.scores[0] == pytest.approx(np.mean([1 / (1 + math.exp(-gap)) for gap in (1, 2, 3)]))
    [found] = made(tmp_path / "a", scores, rule="advantages")
    assert found.kind == "advantages"
    assert sum(found.scores) == pytest.approx(0)
    assert dict(zip(found.images, found.scores, strict=True))["a-1"] == pytest.approx(1.5 / math.sqrt(1.25))


def test_agreement_and_frontier_of_a_folder(tmp_path: Path) -> None:
    groups = {
        "one": {"x": [3.0, 2.0, 1.0], "y": [10.0, 20.0, 5.0], "gold": [0.0, 0.0, 1.0]},
        "none": {"x": [1.0, 2.0], "y": [2.0, 1.0]},
        "gap": {"x": [1.0, 2.0], "y": [None, 1.0]},
    }
    scores = scored(tmp_path, groups)
    said = pairing.pair(scores, out=tmp_path / "agreed", rule="agreement")
    rows = folders.records(tmp_path / "agreed", "judgements")
    assert sorted(r.images for r in rows) == [("one-0", "one-2"), ("one-1", "one-2")]
    assert {r.rater for r in rows} == {"x + y"}, "gold has no vote"
    assert "1 missing scores, 1 groups of one, 1 groups without agreement" in said
    assert sorted(r.images for r in made(tmp_path / "f", scores, rule="frontier")) == [
        ("one-0", "one-2"),
        ("one-1", "one-2"),
    ]
    with pytest.raises(InputError, match="least = 3: there are 2 scorers"):
        pairing.pair(scores, out=tmp_path / "no", rule="agreement", least=3)
    with pytest.raises(InputError, match="scores by x; this rule needs those of several"):
        pairing.pair(scores, out=tmp_path / "no", rule="frontier", scorer=("x",))


def test_raw_sums_are_refused(tmp_path: Path) -> None:
    scores = scored(tmp_path, {"a": {"x": [1.0, 2.0], "y": [2.0, 1.0]}})
    with pytest.raises(InputError, match="x, y: scores of different scorers have no common unit"):
        pairing.pair(scores, out=tmp_path / "no", scorer=("x", "y"))
    assert not (tmp_path / "no").exists()


# --- win rates


def compared(place: Path) -> tuple[Path, str, list[str]]:
    """Comparisons of one prompt's three images, a tie and one without an answer among them; another prompt all ties."""
    drawn = list(worlds.images(place / "images").items())
    (prompt, (a, b, c)), (other, (d, e, _)) = drawn[:2]
    rows = [
        pair(prompt, a.id, b.id, 0.0, source="judge:two", rater="m"),
        pair(prompt, a.id, c.id, 0.5, source="judge:two", rater="m", status="tie"),
        pair(prompt, b.id, c.id, 0.75, source="judge:two", rater="m"),
        pair(other, d.id, e.id, 0.5, source="judge:two", rater="m", status="tie"),
        pair(other, d.id, e.id, None, source="judge:twice", rater="m", status="unlabelled"),
    ]
    folders.begin(
        place / "judged", folders.Manifest("pair", {}, 1, (folders.parent(place / "judged", place / "images"),))
    )
    folders.write_part(place / "judged", "judgements", 0, rows)
    return place / "judged", prompt, [a.id, b.id, c.id]


def test_win_rates_inside_the_group(tmp_path: Path) -> None:
    judged, _, (a, b, c) = compared(tmp_path)
    said = pairing.pair(judged, out=tmp_path / "pairs")
    [row] = folders.records(tmp_path / "pairs", "judgements")
    assert (row.images, row.score_gap, row.rater) == ((b, a), 0.875 - 0.25, "win rate")
    assert "1 comparisons without an answer" in said
    assert "1 groups without spread" in said
    [row] = made(tmp_path / "r", judged, rule="ranking")
    assert (row.images, row.scores) == ((b, c, a), (0.875, 0.375, 0.25))
    [row] = made(tmp_path / "a", judged, rule="advantages")
    assert row.scores[0] == pytest.approx(rules.advantages(np.array([0.875, 0.375, 0.25]))[0])
    with pytest.raises(InputError, match="holds the output of `pair`, expected that of `score`, or comparisons"):
        pairing.pair(tmp_path / "pairs", out=tmp_path / "no")
    with pytest.raises(InputError, match="holds comparisons; agreement and --scorer are for scores"):
        pairing.pair(judged, out=tmp_path / "no", rule="agreement")


# --- thresholds and flags


def test_a_threshold_on_p(tmp_path: Path) -> None:
    scores = scored(tmp_path, {"a": {"clip": [0.0, 1.0, 3.0]}})
    said = pairing.pair(scores, out=tmp_path / "p", rule="all_pairs", temperature=1.0, min_p=0.8)
    found = {r.score_gap: r.p for r in folders.records(tmp_path / "p", "judgements")}
    assert found == {g: pytest.approx(1 / (1 + math.exp(-g))) for g in (2.0, 3.0)}
    assert "1 pairs with P below 0.8" in said


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"min_p": 0.8}, "needs a temperature"),
        ({"min_p": 0.3, "temperature": 1.0}, "out of range"),
        ({"rule": "ranking", "top": 1}, "out of range"),
        ({"top": 3}, "top = 3: best_vs_worst does not read it \\(ranking do"),
        ({"rule": "ranking", "min_p": 0.7}, "ranking does not read it"),
        ({"rule": "real_vs_generated"}, "real = None"),
        ({"rule": "curated", "real_share": 0.2}, "a share needs the folder"),
        ({"rule": "swap_frechet"}, "needs --exemplars"),
        ({"rule": "desirable", "scorer": ("clip",)}, "desirable does not read it"),
    ],
)
def test_flags_that_mean_nothing(flags: dict[str, Any], match: str, tmp_path: Path) -> None:
    scores = scored(tmp_path, {"a": {"clip": [0.0, 1.0]}})
    with pytest.raises(InputError, match=match) as caught:
        pairing.pair(scores, out=tmp_path / "no", **flags)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("asked", "match"),
    [("dino", "expected shapes_clip, clip=FOLDER or file.py:function"), ("wrong", "gave shape"), ("clip", "expected")],
)
def test_features_that_are_none(
    asked: str, match: str, tmp_path: Path, world: tuple[Path, dict[str, list[str]]]
) -> None:
    (tmp_path / "mine.py").write_text(FEATURES)
    name = f"{tmp_path}/mine.py:{asked}" if asked == "wrong" else asked
    with pytest.raises(InputError, match=match):
        pairing.pair(world[0], out=tmp_path / "no", rule="swap_vendi", features=name)
    assert not (tmp_path / "no").exists()


def test_a_score_that_is_no_number_names_its_row(tmp_path: Path) -> None:
    scores = scored(tmp_path, {"a": {"clip": [0.0, 1.0]}})
    path = folders.part(scores, "scores", 0)
    table = pq.read_table(path)
    values = table.schema.get_field_index("value")
    pq.write_table(table.set_column(values, "value", pa.array([math.nan, 1.0])), path)
    with pytest.raises(InputError, match="row 0: score of image a-0 by clip: nan is not a finite number"):
        pairing.pair(scores, out=tmp_path / "no")

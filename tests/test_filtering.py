"""Filters keep what they say, count what they drop, and conversions obey their laws."""

import json
import math
from pathlib import Path

import fixtures_sets as sets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffalign import conversions, dataset, fifa, filtering, folders, selecting
from diffalign.filtering import filter as keep
from diffalign.importing import import_
from diffalign.records import InputError, Judgement, Score, group_id, prompt_id
from diffalign.records import pair as pair_record

PROMPT = prompt_id("a fox")
NAMES = st.lists(st.text("abcdef", min_size=1, max_size=3), min_size=2, max_size=5, unique=True)


def pair(first: str, second: str, p: float, **known: object) -> Judgement:
    return pair_record(PROMPT, first, second, p, source="test", status="tie" if p == 0.5 else "decided", **known)


def ranking(scores: dict[str, float]) -> Judgement:
    images = tuple(scores)
    group = group_id(PROMPT, images)
    return Judgement("r", group, "ranking", images, scores=tuple(scores.values()), source="test")


@given(st.integers(0, 1024), st.integers(-9, 9))
def test_swapping_twice_is_the_identity(p: int, gap: int) -> None:
    row = pair("a", "b", p / 1024, score_gap=float(gap))
    assert conversions.swap(conversions.swap(row)) == row
    assert conversions.swap(row).images == ("b", "a")
    assert conversions.swap(row).p == 1 - row.p
    assert conversions.swap(row).group == row.group


@given(NAMES, st.data())
def test_lists_give_pairs_of_different_images_in_the_right_order(names: list[str], data: st.DataObject) -> None:
    scores = {n: float(data.draw(st.integers(0, 3))) for n in names}
    for lists in ("all", "adjacent", "best_vs_rest", "best_vs_worst"):
        pairs = conversions.to_pairs(ranking(scores), PROMPT, lists)
        backwards = conversions.to_pairs(ranking(dict(reversed(scores.items()))), PROMPT, lists)
        assert [(p.images, p.p) for p in pairs] == [(p.images, p.p) for p in backwards]
        k = len(names)
        assert len(pairs) == {"all": k * (k - 1) // 2, "adjacent": k - 1, "best_vs_rest": k - 1}.get(lists, 1)
        for p in pairs:
            better, worse = p.images
            assert better != worse
            assert scores[better] - scores[worse] == p.score_gap >= 0
            assert p.p == (1.0 if p.score_gap else 0.5)
            assert p.status == ("decided" if p.score_gap else "tie")


def test_pairs_taken_apart() -> None:
    apart = conversions.to_unpaired(pair("a", "b", 0.75), PROMPT)
    assert [(r.images, r.p, r.kind) for r in apart] == [(("a",), 0.75, "unpaired"), (("b",), 0.25, "unpaired")]
    assert len({r.group for r in apart}) == 2
    good = pair_record(PROMPT, "a", "b", 0.5, source="t", status="both_good")
    assert [r.p for r in conversions.to_unpaired(good, PROMPT)] == [1.0, 1.0]


def test_several_judgements_of_one_image_or_list_become_one() -> None:
    pairs = [pair("a", "b", 1.0, weight=1.0), pair("a", "b", 0.0, weight=3.0)]
    rows = [r for row in pairs for r in conversions.to_unpaired(row, PROMPT)]
    found = conversions.merged([r for r in rows if r.images == ("a",)])
    assert (found.p, found.weight) == (0.25, 4.0)
    lists = [ranking({"a": 1.0, "b": 3.0}), ranking({"b": 1.0, "a": 5.0})]
    assert conversions.merged(lists).scores == (3.0, 2.0)
    assert conversions.merged(lists) == conversions.merged(lists[::-1])
    with pytest.raises(InputError, match="others of its group are of other images"):
        conversions.merged([ranking({"a": 1.0, "b": 3.0}), ranking({"a": 1.0, "c": 3.0})])


def test_scores_become_probabilities() -> None:
    assert conversions.probability(1.0, 1.0, 0.1) == 0.5
    assert conversions.probability(2.0, 1.0, 0.5) == pytest.approx(1 / (1 + math.exp(-2)))
    assert conversions.probability(-1e9, 1e9, 1e-3) == 0.0
    assert conversions.probability(3.0, 1.0, 2.0) + conversions.probability(1.0, 3.0, 2.0) == pytest.approx(1.0)
    with pytest.raises(InputError, match="temperature = 0"):
        conversions.probability(1.0, 0.0, 0)


def test_pareto_and_mean_of_dimensions() -> None:
    rows = [pair("a", "b", 0.75, dimension="x"), pair("a", "b", 0.5, dimension="y")]
    against = [*rows, pair("a", "b", 0.25, dimension="z")]
    assert [r.p for r in conversions.in_dimension(rows, "pareto")] == [1.0]
    assert [(r.p, r.status) for r in conversions.in_dimension(against, "pareto")] == [(0.5, "tie")]
    assert [r.p for r in conversions.in_dimension(against, "mean")] == [0.5]
    assert conversions.in_dimension(against, "mean") == conversions.in_dimension(against[::-1], "mean")
    assert [r.p for r in conversions.in_dimension(against, "z")] == [0.25]
    assert conversions.in_dimension(against, "all") == against


ROWS = [
    pair("a", "b", 0.75, dimension="x", rater="1", weight=2.0, score_gap=0.5, votes=(3, 1)),
    pair("a", "b", 0.5, dimension="x", rater="2"),
    pair("a", "b", 0.1, dimension="y", score_gap=-0.1),
    pair("b", "c", 1.0, score_gap=0.3),
    pair("c", "a", 0.0),
    pair("d", "a", 1.0, score_gap=0.2),
    pair("d", "a", 1.0, rater="2", score_gap=0.2),
]


@given(st.permutations(ROWS))
def test_nothing_depends_on_the_order_of_rows(rows: list[Judgement]) -> None:
    def said(found: list[Judgement]) -> set[Judgement]:
        return set(found)

    of = {r.group: "prompt" for r in ROWS}
    same = [r for r in rows if r.group == ROWS[0].group]
    for dimension in ("x", "overall", "all", "mean", "pareto"):
        first = [r for r in ROWS if r.group == ROWS[0].group]
        assert said(conversions.in_dimension(same, dimension)) == said(conversions.in_dimension(first, dimension))
    assert said(conversions.prompt_weights(rows, of)) == said(conversions.prompt_weights(ROWS, of))
    assert said(conversions.transitive(rows, PROMPT)[0]) == said(conversions.transitive(ROWS, PROMPT)[0])
    assert conversions.agreement(rows) == conversions.agreement(ROWS)
    for keep_ in (
        selecting.unrepeated,
        lambda r: selecting.agreed(r, 0.6),
        lambda r: selecting.capped(r, of, 3),
        lambda r: selecting.completed(r, of),
    ):
        assert said(keep_(rows)) == said(keep_(ROWS))


def test_votes_go_with_their_images() -> None:
    row = ROWS[0]
    assert conversions.swap(row).votes == (1, 3)
    assert conversions.swap(conversions.swap(row)) == row
    assert all(r.votes is None for r in conversions.to_unpaired(row, PROMPT))
    assert conversions.in_dimension(ROWS[:3], "mean")[0].votes is None


def test_prompts_count_alike() -> None:
    rows = [pair("a", "b", 1.0), pair("a", "c", 1.0), pair("d", "e", 1.0)]
    prompts = {rows[0].group: "x", rows[1].group: "x", rows[2].group: "y"}
    assert [r.weight for r in conversions.prompt_weights(rows, prompts)] == [0.5, 0.5, 1.0]


def test_pairs_that_follow_and_circles() -> None:
    rows = [pair("a", "b", 1.0), pair("c", "b", 0.0), pair("d", "a", 0.5)]
    found, circular = conversions.transitive(rows, PROMPT)
    assert circular == 0
    assert [(r.images, r.p) for r in found[3:]] == [(("a", "c"), 1.0)]
    shuffled, _ = conversions.transitive(rows[::-1], PROMPT)
    assert {r.id for r in shuffled} == {r.id for r in found}
    circle = [pair("a", "b", 1.0), pair("b", "c", 1.0), pair("c", "a", 1.0), pair("x", "y", 1.0)]
    found, circular = conversions.transitive(circle, PROMPT)
    assert (circular, [r.images for r in found]) == (3, [("x", "y")])
    between = [*circle[:3], pair("x", "y", 1.0), pair("x", "y", 0.0), pair("a", "x", 1.0)]
    found, circular = conversions.transitive(between, PROMPT)
    assert (circular, [r.images for r in found]) == (5, [("a", "x")])


def test_agreement_and_repetition() -> None:
    votes = [pair("a", "b", 1.0, rater=str(n)) for n in range(3)] + [pair("b", "a", 1.0, rater="against")]
    assert conversions.agreement(votes) == 0.75
    assert len(selecting.agreed(votes, 0.75)) == 4
    assert not selecting.agreed(votes, 0.8)
    assert selecting.agreed([pair("a", "b", 0.7)], 0.7)
    assert not selecting.agreed([pair("a", "b", 0.25)], 0.8)
    assert not conversions.consistent(votes, 2)
    assert conversions.consistent(votes[:3], 3)
    assert len(selecting.unrepeated(votes)) == 2
    assert len(selecting.unrepeated([pair("a", "b", 1.0), pair("b", "a", 0.0)])) == 1


def test_fifa_chooses_wide_margins_and_far_prompts() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    plain = np.sqrt(((vectors[:, None] - vectors[None]) ** 2).sum(-1))
    np.fill_diagonal(plain, np.inf)
    np.testing.assert_allclose(fifa.neighbour_distance(vectors, 3), np.sort(plain, axis=1)[:, 2], rtol=1e-4)
    values = rng.normal(size=60)
    assert fifa.per_item(values, vectors, 10, 0.0).tolist() == np.argsort(-values)[:10].tolist()
    assert fifa.greedy(values, vectors, 10, 0.0).tolist() == np.argsort(-values)[:10].tolist()
    crowded = np.concatenate([np.zeros((5, 8)), np.eye(8)[:2]]).astype(np.float32)
    assert set(fifa.greedy(np.zeros(7), crowded, 3, 1.0).tolist()) == {0, 5, 6}
    assert set(fifa.per_item(np.zeros(7), crowded, 2, 1.0, k=1).tolist()) == {5, 6}
    log = np.log(plain)

    def worth(chosen: list[int]) -> float:
        alone = len(chosen) < 2
        return values[chosen].sum() + (0 if alone else 0.7 * log[np.ix_(chosen, chosen)].min(axis=1).sum())

    exact: list[int] = []
    for _ in range(25):
        exact.append(max(set(range(60)) - set(exact), key=lambda i: worth([*exact, i])))
    assert fifa.greedy(values, vectors, 25, 0.7).tolist() == exact
    alike = fifa.embed(["a red fox", "A red  fox", "the history of banking"])
    assert np.array_equal(alike[0], alike[1])
    assert alike[0] @ alike[2] < 0.5


def imported(place: Path) -> Path:
    """Pairs of three prompts: five of one, of which one pair is judged twice, and a list."""
    pictures = [sets.picture(n) for n in range(60, 72)]
    rows = [("x", 0, 1, 1.0), ("x", 1, 2, 1.0), ("x", 0, 1, 1.0), ("x", 3, 4, 0.75), ("x", 2, 3, 0.0), ("y", 5, 6, 1.0)]
    cells = [{"prompt": p, "image_0": pictures[a], "image_1": pictures[b], "p_first": q} for p, a, b, q in rows]
    import_(sets.parquet(place / "a.parquet", cells), out=place / "in")
    return place / "in"


def scored(place: Path, data: Path, names: tuple[str, str] = ("one", "two")) -> Path:
    """Scores of all images by two scorers who agree but for the first image; gaps between neighbours differ."""
    ids = list(folders.image_rows(data))
    one = {name: float(n * n) for n, name in enumerate(reversed(ids))}
    values = dict(zip(names, (one, one | {ids[0]: -5.0}), strict=True))
    rows = [Score(i, PROMPT, name, "1", "none", v) for name, found in values.items() for i, v in found.items()]
    manifest = folders.Manifest("score", {"test": 1}, 1, (folders.parent(place / "scores", data),))
    folders.begin(place / "scores", manifest)
    folders.write_part(place / "scores", "scores", 0, rows)
    return place / "scores"


def test_a_part_of_a_judge_is_no_judge_beside_the_whole(tmp_path: Path) -> None:
    data = imported(tmp_path)
    scores = scored(tmp_path, data, ("judge", "judge/fidelity"))
    keep(data, out=tmp_path / "a", scores=scores, scorer="judge/fidelity", judges=1)
    values = {r.image_id: r.value for r in folders.records(scores, "scores") if r.scorer == "judge"}
    wanted = {
        r.id for r in folders.records(data, "judgements")
        if (values[r.images[0]] - values[r.images[1]]) * (r.p - 0.5) > 0
    }  # fmt: skip
    assert {r.id for r in folders.records(tmp_path / "a", "judgements")} == wanted
    with pytest.raises(InputError, match="judges = 2: the folder of --scores holds those of 1 scorers"):
        keep(data, out=tmp_path / "b", scores=scores, scorer="judge/fidelity", judges=2)


def left(out: Path) -> dict[str, int]:
    counts = folders.load(out).counts
    assert counts["kept"] + counts["added"] + sum(counts["dropped"].values()) == counts["judgements"] + counts["made"]
    assert len(folders.records(out, "judgements")) == counts["kept"] + counts["added"]
    assert dataset.Dataset(out).groups
    return counts["dropped"]


def test_filters_count_what_they_drop(tmp_path: Path) -> None:
    data = imported(tmp_path)
    line = keep(data, out=tmp_path / "a", repeated="drop")
    assert left(tmp_path / "a") == {"repeated": 1}
    assert "5 of 6 judgements kept; left out: 1 repeated" in line
    assert keep(data, out=tmp_path / "a", repeated="drop") == line
    keep(data, out=tmp_path / "b", per_prompt=2)
    assert left(tmp_path / "b") == {"over the prompt's share": 3}
    keep(data, out=tmp_path / "c", min_agreement=0.8)
    assert left(tmp_path / "c") == {"raters disagree": 1}
    keep(data, out=tmp_path / "d", transitive=True, repeated="drop")
    assert folders.load(tmp_path / "d").counts["added"] == 1
    keep(data, out=tmp_path / "e", weights="per_prompt")
    assert sorted(r.weight for r in folders.records(tmp_path / "e", "judgements")) == [0.2] * 5 + [1.0]
    keep(tmp_path / "a", out=tmp_path / "f", per_prompt=1)
    assert left(tmp_path / "f") == {"over the prompt's share": 3}


def listed(place: Path) -> Path:
    """A list of four of one prompt, twice judged, and one of three."""
    pictures = [sets.picture(n) for n in range(80, 87)]
    rows = [("x", [0, 1, 2, 3], [4.0, 3.0, 3.0, 1.0], "u"), ("x", [0, 1, 2, 3], [1.0, 3.0, 3.0, 0.0], "v"),
            ("y", [4, 5, 6], [0.0, 2.0, 5.0], "u")]  # fmt: skip
    cells = [{"prompt": p, "images": [pictures[i] for i in found], "scores": scores, "rater": rater}
             for p, found, scores, rater in rows]  # fmt: skip
    import_(sets.parquet(place / "lists.parquet", cells), out=place / "lists")
    return place / "lists"


def test_lists_and_pairs_are_turned_into_others(tmp_path: Path) -> None:
    data = listed(tmp_path)
    keep(data, out=tmp_path / "pairs", lists="all", ties="drop", per_prompt=4)
    assert left(tmp_path / "pairs") == {"turned into pairs": 3, "tie": 2, "over the prompt's share": 6}
    assert folders.load(tmp_path / "pairs").counts["made"] == 15
    keep(tmp_path / "pairs", out=tmp_path / "soft", temperature=2.0)
    rows = folders.records(tmp_path / "soft", "judgements")
    assert all(r.p == pytest.approx(1 / (1 + math.exp(-r.score_gap / 2))) for r in rows)
    keep(tmp_path / "soft", out=tmp_path / "apart", unpaired=True)
    assert left(tmp_path / "apart") == {"taken apart": len(rows)}
    found = {r.images: r.p for r in folders.records(tmp_path / "apart", "judgements") if r.group}
    assert {r.images for r in rows for r in conversions.to_unpaired(r, PROMPT)} == set(found)
    keep(data, out=tmp_path / "sure", lists="all", raters=2)
    twice = folders.records(tmp_path / "sure", "judgements")
    assert len(twice) == 6
    assert {len({r.rater for r in twice if r.group == g.group}) for g in twice} == {2}


def test_dimensions_of_a_record_folder(tmp_path: Path) -> None:
    import_(sets.rapidata(tmp_path / "set").source, out=tmp_path / "in", dimension="all", ties="keep")
    first = min(r.group for r in folders.records(tmp_path / "in", "judgements"))
    for dimension in ("alignment", "mean", "pareto"):
        keep(tmp_path / "in", out=tmp_path / dimension, dimension=dimension)
        assert set(left(tmp_path / dimension)) == {f"not in dimension {dimension}"}
        said = [r for r in folders.records(tmp_path / "in", "judgements") if r.group == first]
        expected = conversions.in_dimension(said, dimension)
        assert [r for r in folders.records(tmp_path / dimension, "judgements") if r.group == first] == expected


def test_gaps_and_judges_come_from_scores(tmp_path: Path) -> None:
    data = imported(tmp_path)
    scores = scored(tmp_path, data)
    keep(data, out=tmp_path / "a", scores=scores, scorer="one", min_gap=6.0)
    assert left(tmp_path / "a").keys() == {"gap below 6"}
    assert all(abs(r.score_gap) >= 6 for r in folders.records(tmp_path / "a", "judgements"))
    keep(data, out=tmp_path / "b", scores=scores, judges=2)
    values = {n: {} for n in ("one", "two")}
    for row in folders.records(scores, "scores"):
        values[row.scorer][row.image_id] = row.value
    wanted = {
        r.id for r in folders.records(data, "judgements")
        if all((v[r.images[0]] - v[r.images[1]]) * (r.p - 0.5) > 0 for v in values.values())
    }  # fmt: skip
    assert {r.id for r in folders.records(tmp_path / "b", "judgements")} == wanted
    with pytest.raises(InputError, match="choose one with --scorer"):
        keep(data, out=tmp_path / "c", scores=scores, min_gap=1.0)
    with pytest.raises(InputError, match="judges = 3: the folder of --scores holds those of 2 scorers"):
        keep(data, out=tmp_path / "c", scores=scores, judges=3)
    with pytest.raises(InputError, match="field score_gap: is missing; name a folder with --scores"):
        keep(data, out=tmp_path / "c", min_gap=1.0)
    with pytest.raises(InputError, match="is for measuring only"):
        keep(data, out=tmp_path / "c", scores=scores, scorer="gold", min_gap=1.0)
    assert not (tmp_path / "c").exists()


def test_gaps_of_two_scorers_are_never_mixed() -> None:
    rows = [pair("a", "b", 1.0, score_gap=40.0), pair("a", "c", 1.0, score_gap=30.0)]
    found = filtering._with_gaps(rows, {"one": {"a": 0.5, "b": 0.25}}, "one")
    assert [row.score_gap for row in found] == [0.25, None]


@pytest.mark.parametrize("selection", ["per_item", "greedy"])
def test_fifa_keeps_the_number_asked_for(tmp_path: Path, selection: str) -> None:
    data = imported(tmp_path)
    scores = scored(tmp_path, data)
    quality = tmp_path / "quality.csv"
    quality.write_text("prompt,value\nx,1\ny,9\n", encoding="utf-8")
    keep(data, out=tmp_path / "a", scores=scores, scorer="one", best=2, selection=selection, quality=quality, alpha=9.0)
    assert left(tmp_path / "a") == {"not among the best": 4}
    texts, rows = folders.texts(tmp_path / "a"), folders.image_rows(tmp_path / "a")
    kept = folders.records(tmp_path / "a", "judgements")
    assert "y" in {texts[rows[r.images[0]]["prompt_id"]] for r in kept}
    quality.write_text("prompt,value\nx,1\ny,nan\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"quality.csv, line 3, field value: is 'nan'"):
        keep(data, out=tmp_path / "b", scores=scores, scorer="one", best=2, quality=quality)


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    data = imported(tmp_path)
    with pytest.raises(InputError, match="best = 0"):
        keep(data, out=tmp_path / "a", best=0)
    with pytest.raises(InputError, match=r"min_agreement = 2"):
        keep(data, out=tmp_path / "a", min_agreement=2)
    with pytest.raises(InputError, match="nothing is left"):
        keep(data, out=tmp_path / "a", scores=scored(tmp_path, data), scorer="one", min_gap=99.0)
    with pytest.raises(InputError, match="field score_gap: is missing"):
        keep(data, out=tmp_path / "a", temperature=1.0)
    assert not (tmp_path / "a").exists()
    keep(data, out=tmp_path / "a", repeated="drop")
    with pytest.raises(InputError, match="was made with repeated = 'drop'"):
        keep(data, out=tmp_path / "a")
    assert json.loads((tmp_path / "a" / "diffalign.json").read_text())["counts"]["kept"] == 5

"""Records -> batches: every group as often as every other, and whatever is done to it done to all its images."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import worlds
from hypothesis import given
from hypothesis import strategies as st

from diffalign import decoding, folders
from diffalign.dataset import Dataset, Group, Visit, judge
from diffalign.objectives.base import Advantages, Pairs, Ranking, Unpaired
from diffalign.records import Image, InputError, Judgement, digest, group_id, pair
from diffalign.views import View, pixels, unit


@pytest.fixture(scope="module")
def data(pairs: Path) -> Dataset:
    return Dataset(pairs)


def groups(count: int) -> Dataset:
    """A dataset of so many empty groups."""
    found = Dataset.__new__(Dataset)
    found.groups = [Group(f"g{n}", "p", (), ()) for n in range(count)]
    return found


# --- order


@given(count=st.integers(1, 12), batch=st.integers(1, 9), steps=st.integers(1, 12), seed=st.integers(0, 3))
def test_an_endless_chain_of_permutations(count: int, batch: int, steps: int, seed: int) -> None:
    found = groups(count)
    chain = [v for step in range(steps) for v in found.visits(seed, step, batch)]
    assert len(chain) == batch * steps, "nothing dropped or padded"
    for epoch in range(len(chain) // count):
        part = chain[epoch * count : (epoch + 1) * count]
        assert {v.group.id for v in part} == {g.id for g in found.groups}
        assert {v.draw for v in part} == {epoch}, "a draw is how often the order has come by"
    assert len({(v.group.id, v.draw) for v in chain}) == len(chain)


@given(small=st.integers(1, 6), times=st.integers(1, 4))
def test_the_order_does_not_depend_on_the_batch(small: int, times: int) -> None:
    found = groups(7)
    large = found.visits(0, 1, small * times)
    assert large == [v for step in range(times, 2 * times) for v in found.visits(0, step, small)]


def test_orders_differ_by_seed_and_epoch() -> None:
    found = groups(30)
    orders = [[v.group.id for v in found.visits(seed, step, 30)] for seed in (0, 1) for step in (0, 1)]
    assert len(set(map(tuple, orders))) == 4


# --- groups


def test_groups_of_pairs(data: Dataset, pairs: Path) -> None:
    rows = folders.records(pairs, "judgements")
    assert data.kind == "pair"
    assert [g.id for g in data.groups] == sorted(r.group for r in rows)
    for group in data.groups:
        assert group.images == tuple(sorted(group.judgements[0].images)), "no label in the order of a group's images"
        assert {data.images[i]["prompt_id"] for i in group.images} == {group.prompt}
    assert list(data.shown_texts()) == [data.texts[i] for i in sorted({g.prompt for g in data.groups})]
    assert sorted(data.image_ids()) == sorted({i for r in rows for i in r.images})


def test_several_raters_of_one_pair_are_one_group(tmp_path: Path) -> None:
    prompt, (a, b, _) = next(iter(worlds.images(tmp_path / "images").items()))
    rows = [pair(prompt, *ids, p, source="test", rater=str(n)) for n, (ids, p) in enumerate(
        [((a.id, b.id), 1.0), ((b.id, a.id), 1.0), ((a.id, b.id), 0.5)]
    )]  # fmt: skip
    found = Dataset(worlds.judged(tmp_path, rows))
    assert len(found.groups) == 1
    judged = judge(found.visits(0, 0, 1), "pair")
    assert len(judged) == 3
    assert {tuple(p) for p in zip(judged.chosen.tolist(), judged.rejected.tolist(), strict=True)} == {(0, 1), (1, 0)}


def test_undecided_judgements_are_left_out_and_ties_are_kept(tmp_path: Path) -> None:
    drawn = list(worlds.images(tmp_path / "images").items())
    statuses = ("decided", "tie", "both_good", "both_bad", "no_preference", "unlabelled")
    rows = [
        pair(prompt, a.id, b.id, None if status == "unlabelled" else 0.5, source="test", status=status)
        for (prompt, (a, b, _)), status in zip(drawn, statuses, strict=True)
    ]
    found = Dataset(worlds.judged(tmp_path, rows))
    assert Counter(g.judgements[0].status for g in found.groups) == {"decided": 1, "tie": 1}


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        Dataset(folder)
    assert str(caught.value).startswith(str(folder))
    return str(caught.value).removeprefix(str(folder))


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    drawn = worlds.images(tmp_path / "a" / "images")
    (first, (a, b, c)), (_, (other, *_)) = list(drawn.items())[:2]
    assert refused(worlds.judged(tmp_path / "a", [])) == ": holds no decided judgement, so there is nothing to train on"

    def case(name: str, *rows: Judgement) -> str:
        worlds.images(tmp_path / name / "images")
        return refused(worlds.judged(tmp_path / name, rows))

    mixed = pair(first, a.id, other.id, 1.0, source="test")
    assert case("b", mixed) == f": judgement {mixed.id} compares images of 2 prompts; expected one"
    nowhere = pair(first, a.id, "nowhere", 1.0, source="test")
    assert case("c", nowhere) == f": judgement {nowhere.id} names image nowhere, which is in no parent folder"
    ranking = Judgement("r", "g", "ranking", (a.id, b.id, c.id), scores=(1.0, 2.0, 3.0))
    kinds = case("d", ranking, pair(first, a.id, b.id, 1.0, source="test"))
    assert kinds == ": judgements of kinds pair, ranking in one folder; expected one kind"
    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "holds the output of `score`, expected that of `pair` or " in refused(tmp_path / "a" / "scores")


# --- judgements


@given(p=st.floats(0, 1), gap=st.floats(-3, 3), turned=st.booleans())
def test_a_pair_says_who_is_chosen(p: float, gap: float, turned: bool) -> None:
    """The likelier winner is the chosen one, the gap is its own less the other's, whichever way the row was written."""
    images = ("x", "a") if turned else ("a", "x")
    row = Judgement("j", "g", "pair", images, p=p, score_gap=gap, weight=2.0)
    visit = Visit(Group("g", "p", ("a", "x"), (row,)), 0)
    found = judge([visit, visit], "pair")
    assert isinstance(found, Pairs)
    place = {"a": 0, "x": 1}
    better, worse = images if p >= 0.5 else images[::-1]
    assert found.chosen.tolist() == [place[better], place[better] + 2]
    assert found.rejected.tolist() == [place[worse], place[worse] + 2]
    assert found.p.tolist() == [max(p, 1 - p)] * 2
    assert found.score_gap.tolist() == [gap if p >= 0.5 else -gap] * 2
    assert found.weight.tolist() == [2.0, 2.0]


def test_an_unknown_gap_is_not_a_number() -> None:
    row = Judgement("j", "g", "pair", ("a", "x"), p=1.0)
    found = judge([Visit(Group("g", "p", ("a", "x"), (row,)), 0)], "pair")
    assert found.score_gap.isnan().all()
    assert not found.knows_gaps


def test_rankings_and_advantages_and_single_images() -> None:
    def visits(kind: str, **known: object) -> list[Visit]:
        rows = [Judgement(f"j{n}", f"g{n}", kind, ("b", "a", "c"), **known) for n in range(2)]
        return [Visit(Group(r.group, "p", ("a", "b", "c"), (r,)), 0) for r in rows]

    ranking = judge(visits("ranking", scores=(2.0, 1.0, 3.0)), "ranking")
    assert isinstance(ranking, Ranking)
    assert ranking.scores.tolist() == [1.0, 2.0, 3.0] * 2, "in the order of the group's images, not of the row's"
    assert ranking.group.tolist() == [0, 0, 0, 1, 1, 1]
    advantages = judge(visits("advantages", scores=(0.5, -1.0, 0.0)), "advantages")
    assert isinstance(advantages, Advantages)
    assert advantages.values.tolist() == [-1.0, 0.5, 0.0] * 2
    rows = [Judgement(f"j{n}", f"g{n}", "unpaired", (f"i{n}",), p=n / 2, weight=n + 1.0) for n in range(3)]
    unpaired = judge([Visit(Group(r.group, "p", r.images, (r,)), 0) for r in rows], "unpaired")
    assert isinstance(unpaired, Unpaired)
    assert unpaired.desirable.tolist() == [0.0, 0.5, 1.0]
    assert unpaired.weight.tolist() == [1.0, 2.0, 3.0]


def test_several_rankings_of_one_group_are_one_judgement(tmp_path: Path) -> None:
    prompt, drawn = next(iter(worlds.images(tmp_path / "images").items()))
    ids = tuple(image.id for image in drawn)
    known = {"group": group_id(prompt, ids), "kind": "ranking", "images": ids}
    rows = [Judgement(f"j{n}", scores=scores, **known) for n, scores in enumerate([(1.0, 2.0, 3.0), (1.0, 3.0, 2.0)])]
    found = Dataset(worlds.judged(tmp_path, rows))
    assert [len(g.judgements) for g in found.groups] == [1]


def test_rankings_from_disk(tmp_path: Path) -> None:
    found = Dataset(worlds.ranked(tmp_path))
    assert found.kind == "ranking"
    judged = judge(found.visits(0, 0, 4), "ranking")
    assert sorted(judged.scores[:3].tolist()) == [0.1, 0.5, 0.9]


# --- pictures


def folder_of(place: Path, picture: PIL.Image.Image, name: str = "PNG", **options: object) -> Path:
    sink = io.BytesIO()
    picture.save(sink, format=name, **options)
    data = sink.getvalue()
    row = Image("i", "p", {"bytes": data, "path": None}, digest(data), *picture.size)
    folders.begin(place, folders.Manifest("sample", {"world": name}, 1))
    folders.write_part(place, "prompts", 0, [])
    folders.write_part(place, "images", 0, [row])
    return place


def read(place: Path, resolution: int) -> torch.Tensor:
    ((_, data),) = folders.image_bytes(place, ["i"])
    return unit(pixels(decoding.rgb(data), View(resolution, resolution)))


def test_pixels_are_centred_and_in_range(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = (255, 0, 51)
    found = read(folder_of(tmp_path / "a", PIL.Image.fromarray(wide)), 8)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.tensor([1.0, -1.0, 51 / 127.5 - 1])[:, None, None].expand(3, 8, 8))
    half = read(folder_of(tmp_path / "b", PIL.Image.fromarray(wide).resize((48, 16))), 8)
    assert half.shape == (3, 8, 8)
    assert (half[:, :, 2:6] - found[:, :, 2:6]).abs().max() < 0.01, "the shorter side is fitted, then cropped"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16", "CMYK"])
def test_pixels_of_any_mode_are_three_channels(tmp_path: Path, mode: str) -> None:
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    if mode == "I;16":
        picture = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = PIL.Image.fromarray(grey).convert("RGB").convert(mode)
    found = read(folder_of(tmp_path / "a", picture, "TIFF" if mode == "CMYK" else "PNG"), 8)
    assert found.shape == (3, 8, 8)
    expected = torch.from_numpy(grey.astype(np.float32)) / 127.5 - 1
    if mode not in ("P", "1"):
        assert (found - expected).abs().max() < 0.02


def test_nothing_shows_through_where_a_picture_is_transparent(tmp_path: Path) -> None:
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[..., 0] = 255
    clear[:4, :, 3] = 255
    found = read(folder_of(tmp_path / "a", PIL.Image.fromarray(clear)), 8)
    assert torch.equal(found[:, 0, 0], torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(found[:, 7, 0], torch.ones(3)), "transparent is white, not what happens to lie beneath"


def test_pictures_lie_as_their_camera_was_held(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 8, 1).repeat(4, 0)).convert("RGB")
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    found = read(folder_of(tmp_path / "a", picture, exif=exif), 8)
    assert (found[0, 0, 0], found[0, 7, 0]) == (1.0, -1.0)

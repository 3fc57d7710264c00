"""How a run reads its judgements: labels the other way round, captions of one's own, easiest groups first."""

import dataclasses
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
import worlds

from diffalign import backbones, folders
from diffalign.dataset import Dataset, judge, swapped
from diffalign.objectives import DPO, KTO, SFT
from diffalign.records import InputError, Judgement, pair
from diffalign.run import AdamW, Curriculum, LoRA, Run
from diffalign.trainer import Trainer


def test_swapped_labels(pairs: Path) -> None:
    given, other = Dataset(pairs), Dataset(pairs, labels="swapped")
    assert [g.id for g in given.groups] == [g.id for g in other.groups]
    a, b = (judge(d.visits(0, 0, 12), "pair") for d in (given, other))
    assert torch.equal(a.chosen, b.rejected)
    assert torch.equal(a.rejected, b.chosen)
    torch.testing.assert_close(a.p, b.p)
    torch.testing.assert_close(a.score_gap, -b.score_gap)


def test_swapping_twice_changes_nothing() -> None:
    for row in (
        pair("p", "a", "b", 0.25, source="test", score_gap=0.5),
        pair("p", "a", "b", 0.5, source="test", status="tie"),
        Judgement("j", "g", "ranking", ("a", "b", "c"), scores=(0.25, 1.0, 0.5)),
        Judgement("j", "g", "advantages", ("a", "b"), scores=(-1.5, 0.5)),
        Judgement("j", "g", "unpaired", ("a",), p=0.75),
        Judgement("j", "g", "pair", ("a", "b"), status="unlabelled"),
    ):
        once = swapped(row)
        assert swapped(once) == row
        assert once.score_gap == row.score_gap
    assert swapped(Judgement("j", "g", "ranking", ("a", "b", "c"), scores=(0.25, 1.0, 0.5))).scores == (1.0, 0.25, 0.75)
    assert swapped(Judgement("j", "g", "unpaired", ("a",), p=0.75)).p == 0.25


def test_score_gap_is_that_of_the_chosen_image(tmp_path: Path) -> None:
    rows = []
    for prompt, (a, b, c) in worlds.images(tmp_path / "images").items():
        rows += [pair(prompt, a.id, b.id, 1.0, source="t", score_gap=-0.5)]
        rows += [pair(prompt, a.id, c.id, 0.0, source="t", score_gap=-0.25)]
    data = Dataset(worlds.judged(tmp_path, rows))
    found = judge(data.visits(0, 0, 12), "pair").score_gap
    assert sorted(set(found.tolist())) == [-0.5, 0.25], "negative where the scorer contradicts the label"


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of which every first image has a caption of its own, two of them the same."""
    place, rows, made = tmp_path_factory.mktemp("captioned"), [], []
    for n, (prompt, (a, b, _)) in enumerate(worlds.images(place / "images").items()):
        made += [dataclasses.replace(a, caption=f"the image {max(n, 1)}"), dataclasses.replace(b, caption=None)]
        rows.append(pair(prompt, a.id, b.id, 1.0, source="test"))
    folders.write_part(place / "images", "images", 0, made)
    return worlds.judged(place, rows)


def test_own_captions(captioned: Path) -> None:
    plain, own = Dataset(captioned), Dataset(captioned, captions="own")
    for group in own.groups:
        texts = {own.shown(group, i) for i in group.images}
        assert len(texts) == 2
        assert own.texts[group.prompt] in texts
        assert any(text.startswith("the image ") for text in texts)
        assert {plain.shown(group, i) for i in group.images} == {plain.texts[group.prompt]}
    assert len(set(own.shown_texts())) == len(list(own.shown_texts())) == 6 + 5
    assert "the image 1" in set(own.shown_texts())


def test_own_captions_where_there_are_none(tmp_path: Path) -> None:
    rows, made = [], []
    for prompt, (a, b, _) in worlds.images(tmp_path / "images").items():
        made += [dataclasses.replace(image, caption=None) for image in (a, b)]
        rows.append(pair(prompt, a.id, b.id, 1.0, source="test"))
    folders.write_part(tmp_path / "images", "images", 0, made)
    with pytest.raises(InputError, match="no image has a caption of its own"):
        Dataset(worlds.judged(tmp_path, rows), captions="own")


def run_of(model: Path, data: Path, out: Path) -> Run:
    policy, optimizer = LoRA(rank=2), AdamW(lr=1e-2)
    return Run(str(model), DPO(), policy=policy, data=str(data), out=str(out), steps=2, batch=4, resolution=32,
               optimizer=optimizer)  # fmt: skip


def test_images_are_shown_under_their_captions(captioned: Path, models: dict[str, Path], tmp_path: Path) -> None:
    run = run_of(models["sdxl"], captioned, tmp_path / "run")
    plain, own = (Trainer(dataclasses.replace(run, captions=c)) for c in ("prompt", "own"))
    visits, whole = own.data.visits(0, 0, 3), backbones.load(run.model)
    shown, before = own.passes.conditioning(visits)["pooled"], plain.passes.conditioning(visits)["pooled"]
    for i, image in enumerate(i for v in visits for i in v.group.images):
        text = own.data.images[image]["caption"]
        assert torch.equal(shown[i], before[i]) == (text is None)
        if text:
            torch.testing.assert_close(shown[i], whole.encode_prompts([text])["pooled"][0], rtol=1e-4, atol=1e-5)
    first = next(iter(own)).metrics
    assert first["margin"] == 0, "the reference is shown the same captions"

    passes = dataclasses.replace(own.passes, run=dataclasses.replace(own.run, caption_dropout=0.999999))
    dropped = passes.conditioning(visits)["pooled"]
    torch.testing.assert_close(dropped, own.material.negative["pooled"].expand_as(dropped))


def easy(place: Path) -> Dataset:
    """Twelve pairs whose score gaps are 1 to 12, in no order."""
    rows = []
    for n, (prompt, (a, b, c)) in enumerate(worlds.images(place / "images").items()):
        rows.append(pair(prompt, a.id, b.id, 1.0, source="t", score_gap=float(1 + (5 * n) % 12)))
        rows.append(pair(prompt, a.id, c.id, 0.0, source="t", score_gap=-float(1 + (5 * n + 6) % 12)))
    return Dataset(worlds.judged(place, rows))


def test_curriculum_lets_the_easiest_in_first(tmp_path: Path) -> None:
    data, batch, stages, every = easy(tmp_path), 3, 3, 4
    gap = {g.id: abs(g.judgements[0].score_gap) for g in data.groups}
    assert [gap[g.id] for g in data.easiest] == [float(i) for i in range(12, 0, -1)]
    seen: Counter[tuple[str, int]] = Counter()
    for step in range(20):
        visits = data.visits(7, step, batch, stages, every)
        stage = min(step // every, stages - 1)
        assert min(gap[v.group.id] for v in visits) > 12 - 12 * (stage + 1) / stages
        assert visits == data.visits(7, step, batch, stages, every), "a function of its arguments alone"
        seen.update((v.group.id, v.draw) for v in visits)
    assert max(seen.values()) == 1, "no draw comes twice"
    for stage in range(stages):
        chained = [v.group.id for s in range(stage * every, (stage + 1) * every) for v in data.visits(7, s, 3, 3, 4)]
        size = 4 * (stage + 1)
        assert set(chained[:size]) == {g.id for g in data.easiest[:size]}, "a permutation of what is let in"


def test_one_stage_is_no_curriculum(pairs: Path) -> None:
    data = Dataset(pairs)
    for step in range(8):
        assert data.visits(3, step, 5, 1, 2) == data.visits(3, step, 5)
    order = [v.group.id for s in range(6) for v in data.visits(3, s, 4)]
    assert sorted(order[:12]) == sorted(order[12:]) == [g.id for g in data.groups]
    with pytest.raises(ValueError, match="at least 1"):
        Curriculum(0)


def test_an_objective_of_any_judgement_trains_on_pairs(models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    run = run_of(models["sdxl"], pairs, tmp_path / "run")
    losses = [float(s.metrics["loss"]) for s in Trainer(dataclasses.replace(run, objective=SFT()))]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    with pytest.raises(InputError, match="kind pair, but KTO learns from Unpaired"):
        Trainer(dataclasses.replace(run, objective=KTO()))


def test_curriculum_needs_gaps(tmp_path: Path, models: dict[str, Path], captioned: Path) -> None:
    run = dataclasses.replace(run_of(models["sdxl"], captioned, tmp_path / "run"), curriculum=Curriculum(2, 1))
    with pytest.raises(InputError, match="score_gap: is missing") as found:
        Trainer(run)
    assert "\n" not in str(found.value)
    assert math.isnan(judge(Dataset(captioned).visits(0, 0, 1), "pair").score_gap[0])

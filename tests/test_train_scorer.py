"""A scorer of one's own: its loss, what is held out, the verb on tiny towers, and that a cut run ends alike."""

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import tiny
import tiny_scorers
import torch

from diffalign import choices, fitting, folders, scorers, scoring
from diffalign.choices import TEST, TRAIN, TUNE
from diffalign.records import Image, InputError, Judgement, Prompt, digest, group_id, pair, prompt_id
from diffalign.train_scorer import train_scorer

PROMPTS, EACH = 30, 4
QUICK = {"steps": 60, "batch": 32, "every": 20, "hidden": 8, "head_lr": 3e-2}


def picture(level: int, seed: int) -> bytes:
    """A noisy grey picture, brighter by level."""
    noise = np.random.default_rng(seed).integers(-20, 20, (24, 24, 3))
    sink = io.BytesIO()
    PIL.Image.fromarray((50 + 45 * level + noise).clip(0, 255).astype(np.uint8)).save(sink, format="PNG")
    return sink.getvalue()


def world(place: Path, broken: bool = False) -> Path:
    """Pictures of four levels a prompt: "light" likes bright ones, to "dark" neighbours are no ties."""
    prompts = [Prompt(prompt_id(f"thing {n}"), f"thing {n}") for n in range(PROMPTS)]
    images, rows = [], []
    for n, prompt in enumerate(prompts):
        files = [b"no picture" if broken and n + k == 0 else picture(k, 10 * n + k) for k in range(EACH)]
        ids = [digest("picture", n, k) for k in range(EACH)]
        images += [
            Image(i, prompt.id, {"bytes": data, "path": None}, digest(data), 24, 24, index=k)
            for k, (i, data) in enumerate(zip(ids, files, strict=True))
        ]
        for a in range(EACH):
            for b in range(a + 1, EACH):
                known = {"source": "test", "rater": "r"}
                tie = {"status": "tie"} if b == a + 1 else {}
                rows.append(pair(prompt.id, ids[a], ids[b], 0.5 if tie else 0.0, dimension="light", **known, **tie))
                rows.append(pair(prompt.id, ids[a], ids[b], 1.0, dimension="dark", **known))
    folders.begin(place / "images", folders.Manifest("sample", {}, 1))
    folders.write_part(place / "images", "prompts", 0, prompts)
    folders.write_part(place / "images", "images", 0, images)
    return written(place, rows)


def written(place: Path, rows: list[Judgement], name: str = "pairs") -> Path:
    manifest = folders.Manifest("pair", {"name": name}, 1, (folders.parent(place / name, place / "images"),))
    folders.begin(place / name, manifest)
    folders.write_part(place / name, "judgements", 0, rows)
    return place / name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("train-scorer")
    world(found)
    tiny_scorers.clip_folder(found / "clip")
    tiny_scorers.first_siglip(found / "siglip", tiny.t5_tokenizer())
    return found


def test_the_loss_is_davidsons() -> None:
    rng = np.random.default_rng(0)
    gap, p, log_tie = rng.normal(size=9) * 3, rng.random(9), rng.normal(size=9)
    tie = np.arange(9) % 3 == 0
    parts = np.stack([np.exp(gap / 2), np.exp(log_tie), np.exp(-gap / 2)])
    first, even, second = np.log(parts / parts.sum(0))
    wanted = np.where(tie, -even, -p * first - (1 - p) * second)
    given = [torch.from_numpy(v) for v in (gap, p, tie, log_tie)]
    np.testing.assert_allclose(fitting.bradley_terry(*given).numpy(), wanted, rtol=1e-12)
    # without ties it is Bradley and Terry's, and the tie's weight has no gradient and stays
    never = torch.full((9,), -torch.inf, dtype=torch.float64, requires_grad=True)
    loss = fitting.bradley_terry(given[0], given[1], torch.zeros(9, dtype=torch.bool), never)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(given[0], given[1], reduction="none")
    torch.testing.assert_close(loss, plain)
    loss.sum().backward()
    assert (never.grad == 0).all()


def test_no_prompt_and_no_picture_is_in_two_parts(place: Path) -> None:
    known = choices.load(place / "pairs", (), 0.2, 0.2, 0)
    assert [len(np.unique(known.prompt[known.of(part)])) for part in (TRAIN, TUNE, TEST)] == [18, 6, 6]
    assert (known.dimensions, int(known.tie.sum()), dict(known.left_out)) == (("dark", "light"), 3 * PROMPTS, {})
    again = choices.load(place / "pairs", (), 0.2, 0.2, 1)
    assert (again.part != known.part).any(), "the seed names another cut"


def test_a_picture_under_two_prompts_is_not_trained_on_and_tested(place: Path) -> None:
    rows = folders.records(place / "pairs", "judgements")
    known = choices.load(place / "pairs", ("dark",), 0.2, 0.2, 0)
    tested, trained = (known.of(part)[0] for part in (TEST, TRAIN))
    names, texts = list(known.pictures.values()), known.texts
    stored = {row.id: row for row in folders.records(place / "images", "images")}
    shared = stored[names[known.first[tested]]]
    copy = Image(**{**shared.row(), "id": "copy", "prompt_id": prompt_id(texts[known.prompt[trained]])})
    other = stored[names[known.first[trained]]]
    folders.write_part(place / "images", "images", 1, [copy])
    try:
        more = pair(copy.prompt_id, "copy", other.id, 1.0, source="test", dimension="dark")
        leaky = choices.load(written(place, [*rows, more], "leaky"), ("dark",), 0.2, 0.2, 0)
        same = pair(copy.prompt_id, "copy", shared.id, 1.0, source="test", dimension="dark")
        with pytest.raises(InputError, match="compares images of several prompts"):
            choices.load(written(place, [*rows, same], "mixed"), ("dark",), 0.2, 0.2, 0)
    finally:
        folders.part(place / "images", "images", 1).unlink()
    assert dict(leaky.left_out) == {"shows a picture of a held-out prompt": 1}
    shown = [set(leaky.first[leaky.of(k)]) | set(leaky.second[leaky.of(k)]) for k in (TRAIN, TUNE, TEST)]
    assert not (shown[0] & shown[1] | shown[0] & shown[2] | shown[1] & shown[2])


def test_texts_that_differ_in_case_and_spaces_are_held_out_together() -> None:
    texts = [text for n in range(40) for text in (f"a thing {n}", f"A  Thing {n}")]
    part = choices._parts(texts, 0.2, 0.2, 0)
    assert (part[::2] == part[1::2]).all()
    assert sorted(np.bincount(part).tolist()) == [16, 16, 48]


def test_rankings_give_their_pairs_with_a_share_of_the_weight(place: Path) -> None:
    groups: dict[str, list[str]] = {}
    for row in folders.records(place / "images", "images"):
        groups.setdefault(row.prompt_id, []).append(row.id)
    rows = [
        Judgement(digest("r", p), group_id(p, ids), "ranking", tuple(ids), scores=(0.0, 1.0, 1.0, 2.0))
        for p, ids in groups.items()
    ]
    known = choices.load(written(place, rows, "ranked"), (), 0.2, 0.2, 0)
    assert (len(known.p), known.dimensions) == (6 * PROMPTS, ("overall",))
    np.testing.assert_allclose(known.weight, 1 / 6)
    assert (int(known.tie.sum()), set(known.p[~known.tie])) == (PROMPTS, {1.0})


def test_every_pair_is_visited_once_an_epoch_and_a_cut_changes_nothing(place: Path) -> None:
    known = choices.load(place / "pairs", (), 0.2, 0.2, 0)
    plan = fitting.Plan(1, 50, 0, 1e-3, 1e-3, 0.0, 1, 0)

    def taken(start: int, count: int) -> list[list[int]]:
        return [rows.tolist() for rows, _ in zip(fitting.batches(known, plan, start), range(count), strict=False)]

    size = len(known.of(TRAIN))
    flat = [row for rows in taken(0, 2 * size // 50 + 1) for row in rows]
    assert sorted(flat[:size]) == sorted(flat[size : 2 * size]) == known.of(TRAIN).tolist()
    assert flat[:size] != flat[size : 2 * size]
    assert taken(7, 5) == taken(0, 12)[7:]


def test_heads_learn_two_dimensions_and_score_takes_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"tower": str(place / "clip"), "out": place / "heads", "mode": "head", **QUICK}
    said = train_scorer(place / "pairs", **flags)
    measures = json.loads((place / "heads" / "measures.json").read_text())
    for dimension, opposite in (("light", "dark"), ("dark", "light")):
        now, before = measures["scorer"][dimension], measures["tower"][dimension]
        assert now["accuracy"] > 0.95
        assert now["kendall_tau_b"] > 0.7
        assert now["nll"] < before["nll"]
        assert now.keys() >= {"ece", "ece_before", "brier", "nll_before", "slope", "accuracy_low", "prompts"}
        assert measures["tower"][opposite]["accuracy"] == pytest.approx(1 - before["accuracy"], abs=0.35)
    assert said.startswith(f"{place / 'heads'}: dark: ")
    assert f"--scorer trained={place / 'heads'}" in said
    assert sorted(p.name for p in (place / "heads").iterdir()) == [
        "head.safetensors", "measures.json", "scorer.json", "training.json",
    ]  # fmt: skip

    monkeypatch.setattr("diffalign.train_scorer.fit", None)
    assert train_scorer(place / "pairs", **flags) == said, "a finished training only says what it found"
    with pytest.raises(InputError, match=r"heads: was made with hidden = 8, not 4"):
        train_scorer(place / "pairs", **(flags | {"hidden": 4}))

    light, dark, mean = (scorers.load(f"trained={place / 'heads'}{part}") for part in (",light", ",dark", ""))
    assert (light.name, mean.name) == ("heads:light", "heads")
    assert len({light.revision, dark.revision, mean.revision}) == 3
    pictures = [PIL.Image.open(io.BytesIO(picture(k, 999 + k))) for k in range(EACH)]
    bright, dim, both = (judge(pictures, ["thing 3"] * EACH) for judge in (light, dark, mean))
    assert (np.diff(bright) > 0).all()
    assert (np.diff(dim) < 0).all()
    np.testing.assert_allclose(both, (bright + dim) / 2, rtol=1e-4, atol=1e-4)
    assert light.probability(bright[3:], bright[:1])[0] > 0.9
    told = scoring.score(place / "images", scorer=(f"trained={place / 'heads'},light",), out=place / "scores")
    assert f"{PROMPTS * EACH} images scored by heads:light" in told


@pytest.mark.parametrize("layout", ["transformers", "open_clip", "siglip"])
def test_towers_learn_and_a_cut_run_ends_in_the_same_bytes(
    layout: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    towers = {"transformers": str(place / "clip"), "open_clip": "shapes/clip", "siglip": str(place / "siglip")}
    tower = towers[layout]
    flags = {"tower": tower, "dimensions": ("light",), "steps": 8, "batch": 16, "every": 4, "lr": 1e-3, "hidden": 0}
    step, count = fitting._step, [0]

    def breaking(*arguments: object) -> None:
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt
        step(*arguments)

    whole, broken = place / f"{layout}-whole", place / f"{layout}-broken"
    train_scorer(place / "pairs", out=whole, **flags)
    monkeypatch.setattr(fitting, "_step", breaking)
    with pytest.raises(KeyboardInterrupt):
        train_scorer(place / "pairs", out=broken, **flags, name=whole.name)
    assert not (broken / "scorer.json").exists()
    with pytest.raises(InputError, match="expected a folder that `diffalign train-scorer` finished"):
        scorers.load(f"trained={broken}")
    train_scorer(place / "pairs", out=broken, **flags, name=whole.name)
    assert count[0] == 6 + 4, "it went on from the checkpoint of step 4"
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(broken) for p in broken.rglob("*") if p.is_file())
    assert all((whole / f).read_bytes() == (broken / f).read_bytes() for f in files if f.name != "training.json")
    before = scorers.load(f"trained={whole}")
    assert before.name == whole.name
    image = PIL.Image.open(io.BytesIO(picture(3, 5)))
    assert np.isfinite(before([image], ["thing 3"])).all()
    # the towers lie in their own layout, and did learn
    if layout == "siglip":
        names = ("tokenizer.json", "preprocessor_config.json", "config.json", "model.safetensors")
        bits = {name: [(folder / name).read_bytes() for folder in (whole / "tower", Path(tower))] for name in names}
        assert [name for name, (new, old) in bits.items() if new != old] == ["model.safetensors"]
        return
    layouts = {"transformers": ("pickscore", str(place / "clip")), "open_clip": ("clip", "")}
    name, old = layouts[layout]
    new = scorers.load(f"{name}={whole / 'tower'}")([image], ["thing 3"])
    assert new != scorers.load(f"{name}={old}" if old else "shapes_clip")([image], ["thing 3"])


def test_towers_in_bfloat16_learn_as_those_in_float32_do_but_for_rounding(place: Path) -> None:
    flags = {"tower": str(place / "clip"), "mode": "full", **QUICK, "steps": 3, "every": 3}
    for precision in ("float32", "bfloat16"):
        train_scorer(place / "pairs", out=place / precision, precision=precision, cache=place / "shared", **flags)
    assert len(list((place / "shared").iterdir())) == 1, "pictures are prepared once for both"
    narrow, wide = (json.loads((place / n / "measures.json").read_text())["curve"] for n in ("bfloat16", "float32"))
    for low, high in zip(narrow, wide, strict=True):
        assert low["nll"] != high["nll"]
        assert low["nll"] == pytest.approx(high["nll"], rel=0.02)
    state = safetensors.torch.load_file(place / "bfloat16" / "tower" / "model.safetensors")
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}
    with pytest.raises(InputError, match="precision"):
        train_scorer(place / "pairs", out=place / "bfloat16", **flags)


def test_micro_batches_add_up_to_the_batch(place: Path) -> None:
    flags = {"tower": str(place / "clip"), "mode": "head", **QUICK, "steps": 3, "every": 3, "batch": 30}
    train_scorer(place / "pairs", out=place / "one", **flags)
    train_scorer(place / "pairs", out=place / "many", micro_batch=7, **flags)
    one, many = (json.loads((place / n / "measures.json").read_text())["curve"][-1]["nll"] for n in ("one", "many"))
    assert one == pytest.approx(many, rel=1e-5)


def test_pictures_that_cannot_be_read_are_left_out_and_counted(place: Path) -> None:
    pairs = world(place / "broken", broken=True)
    flags = {"tower": str(place / "clip"), "mode": "head", **QUICK, "steps": 1, "every": 1}
    said = train_scorer(pairs, out=place / "broken" / "out", **flags)
    assert "left out: 6 a picture cannot be read" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tower": "nowhere"}, r"nowhere: no such file or folder"),
        ({"tune": 0.6, "test": 0.5}, r"tune = 0.6, test = 0.5: expected shares above 0"),
        ({"lr": 0.0}, r"lr = 0.0: expected a number between 0 and 1"),
        ({"steps": 0}, r"steps = 0: expected at least 1"),
        ({"dimensions": ("taste",)}, r"pairs: holds no pairs of dimension taste, expected one of dark, light$"),
        ({"name": "gold"}, r"name = gold: is a scorer's of diffalign; expected another --name"),
        ({"out": "imagereward"}, r"name = imagereward: is a scorer's of diffalign"),
        ({"name": "judge/part"}, r"name = judge/part: is that of a scorer's part"),
        ({"out": "images"}, r"images: is not empty and holds no training of a scorer"),
    ],
)
def test_bad_flags(flags: dict, message: str, place: Path) -> None:
    given = {"tower": str(place / "clip"), "out": place / "bad", "steps": 1} | flags
    given["out"] = place / given["out"]
    with pytest.raises(InputError, match=message):
        train_scorer(place / "pairs", **given)
    assert not (place / "bad").exists()
    assert not (place / "imagereward").exists()


def test_what_a_kill_leaves_is_cleared(place: Path) -> None:
    flags = {"tower": str(place / "clip"), "out": place / "killed", "mode": "head", **QUICK, "steps": 1, "every": 1}
    (place / "killed").mkdir()
    (place / "killed" / ".training.json.tmp-1").write_text("{")
    said = train_scorer(place / "pairs", **flags)
    before = sorted(p.name for p in (place / "killed").iterdir())
    for name in ("cache", "checkpoint-1"):
        (place / "killed" / name).mkdir()
    (place / "killed" / ".scorer.json.tmp-1").write_text("{")
    assert train_scorer(place / "pairs", **flags) == said
    assert before == sorted(p.name for p in (place / "killed").iterdir())
    assert not [name for name in before if name.startswith(".")]


def test_damaged_folders_are_one_line(place: Path) -> None:
    flags = {"tower": str(place / "clip"), "out": place / "damaged", "mode": "head", **QUICK, "steps": 1, "every": 1}
    train_scorer(place / "pairs", **flags)
    for name in ("measures.json", "training.json"):
        (place / "damaged" / name).write_text("{")
        with pytest.raises(InputError, match=rf"{name}: is damaged \(JSONDecodeError: .*; choose another --out"):
            train_scorer(place / "pairs", **flags)


def test_other_towers_and_damaged_cards_are_refused(tmp_path: Path) -> None:
    clip = tiny_scorers.clip_folder(tmp_path / "clip")
    folder = tiny_scorers.trained_folder(tmp_path / "mine", clip)
    with pytest.raises(InputError, match=r"has no dimension 'taste', expected one of beauty, truth"):
        scorers.load(f"trained={folder},taste")
    with pytest.raises(InputError, match=r"scorer trained: needs a folder"):
        scorers.load("trained")
    card = json.loads((folder / "scorer.json").read_text())
    (folder / "scorer.json").write_text(json.dumps(card | {"slopes": [1.0]}))
    with pytest.raises(InputError, match=r"scorer.json: is no card of a scorer .*one positive slope a dimension"):
        scorers.load(f"trained={folder}")
    (folder / "scorer.json").write_text(json.dumps(card))
    tiny_scorers.clip_folder(clip, seed=5)
    with pytest.raises(InputError, match=r"clip: is another tower than the one that .*mine was trained on"):
        scorers.load(f"trained={folder}")

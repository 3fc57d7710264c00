"""Laws of every public judge, on tiny checkpoints in the published layouts: a score is of one image and one prompt."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tiny
import tiny_scorers
import tiny_vlm
import torch
import worlds

from diffalign import decoding, folders, scorers, scoring
from diffalign.records import Image, InputError, Prompt, digest, prompt_id
from diffalign.scorers import Scorer, hpsv3
from diffalign.scorers.networks import Remembered
from diffalign.scorers.towers import Towers

# judged without weights of their own, or tested elsewhere
ELSEWHERE = {"gold", "gold_right", "shapes_clip", "clip", "judge", "hpsv3", "vqascore"}
BLIND = {"aesthetic", "aesthetic_v2.5", "hp"}
NAMES = sorted(set(scorers.NAMES) - ELSEWHERE)
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_scorers.all_places(tmp_path_factory.mktemp("scorers"))


@pytest.fixture(scope="module")
def loaded(places: dict[str, str]) -> dict[str, Scorer]:
    return {name: scorers.load(place) for name, place in places.items()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[PIL.Image.Image]:
    place, sizes = tmp_path_factory.mktemp("pictures"), [(40, 40), (33, 50), (61, 24), (16, 17), (1, 9), (40, 40)]
    for n, size in enumerate(sizes):
        (place / f"{n}.png").write_bytes(worlds.png(n % 5, size))
    return [PIL.Image.open(place / f"{n}.png").convert("RGB") for n in range(len(sizes))]


every = pytest.mark.parametrize("name", NAMES)


def test_every_name_is_under_the_laws(places: dict[str, str]) -> None:
    assert sorted(places) == NAMES


@every
def test_a_score_does_not_depend_on_its_batch(
    name: str, loaded: dict[str, Scorer], pictures: list[PIL.Image.Image]
) -> None:
    judge, texts = loaded[name], tiny_scorers.TEXTS
    whole = judge(pictures, texts)
    close = {"rtol": TOLERANCE, "atol": TOLERANCE}
    assert np.isfinite(whole).all()
    assert np.ptp(whole) > 1e-3
    singles = [judge([p], [t])[0] for p, t in zip(pictures, texts, strict=True)]
    np.testing.assert_allclose(singles, whole, **close)
    np.testing.assert_allclose(judge(pictures[::-1], texts[::-1])[::-1], whole, **close)
    np.testing.assert_allclose(judge(pictures * 2, texts * 2), np.tile(whole, 2), **close)
    assert whole[0] == pytest.approx(whole[5], rel=1e-6), "one image under one prompt, twice in a batch"


@every
def test_prompts_go_with_their_images(name: str, loaded: dict[str, Scorer], pictures: list[PIL.Image.Image]) -> None:
    judge, texts, order = loaded[name], tiny_scorers.TEXTS[:5], [3, 0, 4, 1, 2]
    table = np.array([judge(pictures[:5], [t] * 5) for t in texts])
    mixed = judge(pictures[:5], [texts[i] for i in order])
    np.testing.assert_allclose(mixed, table[order, range(5)], rtol=TOLERANCE, atol=TOLERANCE)
    assert (np.ptp(table, axis=0).max() == 0) == (name in BLIND)
    assert np.ptp(table, axis=1).max() > 0


@pytest.mark.parametrize("name", sorted({"hpsv2", *NAMES} - {"hpsv2_aliased", "hpsv2.1", "hpsv2.1_aliased"}))
def test_weights_from_disk_give_the_same_bits(
    name: str, places: dict[str, str], loaded: dict[str, Scorer], pictures: list[PIL.Image.Image]
) -> None:
    again = scorers.load(places[name])
    assert again.revision == loaded[name].revision
    assert (again(pictures, tiny_scorers.TEXTS) == loaded[name](pictures, tiny_scorers.TEXTS)).all()


@every
def test_towers_in_bfloat16(
    name: str, places: dict[str, str], loaded: dict[str, Scorer], pictures: list[PIL.Image.Image]
) -> None:
    texts, low = tiny_scorers.TEXTS, scorers.load(places[name]).lowered()
    assert low.preprocessing == f"{loaded[name].preprocessing}, bfloat16 towers"
    whole = low(pictures, texts)
    near = {"rtol": 0, "atol": 0.05 * {"pickscore": np.exp(4), "mps": np.exp(4)}.get(name, 1.0)}
    assert np.abs(whole - loaded[name](pictures, texts)).max() > 0
    np.testing.assert_allclose(whole, loaded[name](pictures, texts), **near)
    np.testing.assert_allclose([low([p], [t])[0] for p, t in zip(pictures, texts, strict=True)], whole, **near)
    assert {p.dtype for tower in low.function.towers for p in tower.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["pickscore", "hpsv2", "mps", "trained"])
def test_a_prompt_reads_the_same_whatever_is_read_beside_it(name: str, loaded: dict[str, Scorer]) -> None:
    """Bit for bit, because what was read before is remembered, and an interrupted run has not read it."""
    function = loaded[name].function
    said = function.clip.said if name == "pickscore" else function.said
    said.clear()
    together = said(tiny_scorers.TEXTS)
    for chosen in ([0], [3, 1], [4, 0, 2]):
        said.clear()
        assert torch.equal(said([tiny_scorers.TEXTS[i] for i in chosen]), together[chosen])


def test_what_is_remembered_is_bounded_and_stays() -> None:
    read: Counter[str] = Counter()

    def encode(prompts: list[str]) -> torch.Tensor:
        read.update(prompts)
        return torch.tensor([[float(int(p)), 0.0] for p in prompts])

    # 8 bytes a row: six of ten prompts fit
    said, prompts = Remembered(encode, most=6 * 8 + 7), [str(n) for n in range(10)]
    for _ in range(3):
        for start in range(0, 10, 2):
            assert said(prompts[start : start + 2])[:, 0].tolist() == [start, start + 1]
            assert said.held == sum(row.untyped_storage().nbytes() for row in said.known.values()) <= 6 * 8
    assert read == dict.fromkeys(prompts[:6], 1) | dict.fromkeys(prompts[6:], 3), "who came first is read once"
    read.clear()
    # what does not fit is still there in the next call, where the pictures of a prompt lie in two batches
    for asked in (["6", "7", "7"], ["7", "0", "8"], ["8", "9"], ["7"]):
        assert said(asked)[:, 0].tolist() == [float(p) for p in asked]
    assert read == {"6": 1, "7": 2, "8": 1, "9": 1}
    assert set(said.last) == {"7"}
    said.clear()
    said(["0"])
    assert (read["0"], said.held) == (1, 8)


def test_what_is_remembered_at_once_is_at_most_a_gibibyte() -> None:
    """MPS keeps 78 rows of 1024 numbers a prompt: of 16,384 prompts, 4.9 GiB."""
    said = Remembered(lambda prompts: torch.empty(len(prompts), 78, 1024, device="meta"))
    for start in range(0, 4000, 100):
        said([str(n) for n in range(start, start + 100)])
    assert len(said.known) == (1 << 30) // (78 * 1024 * 4)
    assert len(said.last) == 100


def test_work_is_counted_in_unique_images_and_prompts(
    tmp_path: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, decoded = Counter(), []
    seen, said, rgb = Towers.seen, Towers.read, decoding.rgb
    monkeypatch.setattr(Towers, "seen", lambda self, x: work.update(images=len(x)) or seen(self, x))
    monkeypatch.setattr(Towers, "read", lambda self, x: work.update(texts=len(x)) or said(self, x))
    monkeypatch.setattr(decoding, "rgb", lambda data: decoded.append(data) or rgb(data))
    prompts = [Prompt(prompt_id(t), t) for t in worlds.TEXTS[:3]]
    rows = []
    for n in range(12):  # six files, of which each is there twice, under two prompts
        data, name = worlds.png(n % 6), digest("picture", n)
        rows.append(Image(name, prompts[n // 4].id, {"bytes": data, "path": None}, digest(data), 32, 32, index=n % 4))
    folders.begin(tmp_path / "images", folders.Manifest("sample", {}, 1))
    folders.write_part(tmp_path / "images", "prompts", 0, prompts)
    folders.write_part(tmp_path / "images", "images", 0, rows)
    names = (places["pickscore"], places["clipscore"])
    scoring.score(tmp_path / "images", scorer=names, out=tmp_path / "scores", batch=4)
    assert work == {"images": 2 * 6, "texts": 2 * 3}
    assert len(decoded) == 6
    work.clear()
    scoring.score(tmp_path / "images", scorer=names, out=tmp_path / "scores", batch=4)
    assert not work
    assert len(decoded) == 6
    low = scoring.score(tmp_path / "images", scorer=names, out=tmp_path / "low", batch=4, precision="bfloat16")
    assert "12 images scored" in low
    assert {s.preprocessing for s in folders.records(tmp_path / "low", "scores")} == {
        "PIL bicubic, floor crop, bfloat16 towers", "PIL bicubic, rounded crop, bfloat16 towers",
    }  # fmt: skip
    with pytest.raises(InputError, match="was made with preprocessing of "):
        scoring.score(tmp_path / "images", scorer=names, out=tmp_path / "scores", batch=4, precision="bfloat16")


@pytest.fixture(scope="module")
def readers(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every scorer that reads prompts, those on other towers also by other tokenizers."""
    place = tmp_path_factory.mktemp("readers")
    both = {"": None, " of bytes": tiny.clip_tokenizer(), " of pieces": tiny.t5_tokenizer()}
    towers = {how: tiny_scorers.open_clip_folder(place / f"clip{how}", words) for how, words in both.items()}
    own = {f"trained{how}": tiny_scorers.trained_folder(place / f"own{how}", tower) for how, tower in towers.items()}
    file, base, _, _ = tiny_vlm.hpsv3(place / "hpsv3")
    return {
        **places,
        **{f"clip{how}": f"clip={tower}" for how, tower in towers.items()},
        **{f"clipscore in open_clip's layout{how}": f"clipscore={tower}" for how, tower in towers.items()},
        **{f"{name} on open_clip": f"trained={where}" for name, where in own.items()},
        **{
            f"trained on SigLIP {n}": f"trained={tiny_scorers.trained_folder(place / f'by-{n}', folder, width=32)}"
            for n, folder in (
                (1, tiny_scorers.first_siglip(place / "siglip-1", tiny.t5_tokenizer())),
                (2, tiny_scorers.siglip_folder(place / "siglip-2", tokenizer=tiny.gemma_tokenizer())),
            )
        },
        "shapes_clip": "shapes_clip", "hpsv3": f"hpsv3={file},{base}",
        "vqascore": f"vqascore={tiny_vlm.folder(place / 'vlm')}",
        "judge": f"judge=vqascore,local,{tiny_vlm.folder(place / 'loud', loud=8.0)}",
    }  # fmt: skip


def test_no_scorer_lets_a_prompt_end_itself(
    readers: dict[str, str], pictures: list[PIL.Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands behind words that look special counts. (That they are text, test_scorer_tokens has by the ids.)"""
    monkeypatch.setattr(hpsv3, "PIXELS", 9 * 64)
    assert {name.split()[0] for name in readers} | set(scorers.MEASURES) == set(scorers.NAMES)
    count = len(tiny_scorers.INJECTIONS)
    for name in readers.keys() - BLIND:
        judge = scorers.load(readers[name])
        ends = [judge([pictures[0]] * count, [f"{text} {end}" for text in tiny_scorers.INJECTIONS])
                for end in ("house", "red circle")]  # fmt: skip
        assert np.isfinite(ends).all(), name
        same = [text for text, a, b in zip(tiny_scorers.INJECTIONS, *ends, strict=True) if a == b]
        assert not same, name
    for name in scorers.MEASURES:
        for text in tiny_scorers.INJECTIONS:
            with pytest.raises(InputError):
                scorers.load(name).understands(f"a red circle {text[2:]}")


@every
def test_transparent_and_palette_pictures(name: str, loaded: dict[str, Scorer]) -> None:
    plain = PIL.Image.new("RGB", (30, 20), "white")
    clear = PIL.Image.new("RGBA", (30, 20), (255, 0, 0, 0))
    same = [plain, clear, plain.convert("P"), plain.convert("L"), plain.convert("CMYK"), plain.convert("1")]
    values = loaded[name](same, ["a red circle"] * len(same))
    np.testing.assert_allclose(values, values[0], rtol=TOLERANCE, atol=TOLERANCE)


@every
def test_probability_is_by_the_models_own_temperature(name: str, loaded: dict[str, Scorer]) -> None:
    judge, a, b = loaded[name], np.array([0.0, 0.2, 500.0]), np.array([0.0, 0.1, -500.0])
    if judge.scale is None:
        with pytest.raises(InputError, match="states no temperature"):
            judge.probability(a, b)
        return
    found = judge.probability(a, b)
    scale = {
        "pickscore": 1.0,
        "mps": 1.0,
        "trained": 1.0,
        "imagereward": 1.0333394966054072,
        "clipscore_original": np.exp(4.0) / 2.5,
    }
    wanted = 1 / (1 + np.exp(-scale.get(name, np.exp(4.0)) * 0.1))
    np.testing.assert_allclose(found, [0.5, wanted, 1.0], rtol=1e-6)
    np.testing.assert_allclose(judge.probability(b, a), 1 - found, rtol=1e-6, atol=1e-12)


@every
def test_no_weight_is_trained(name: str, loaded: dict[str, Scorer]) -> None:
    def modules(value: object) -> list[torch.nn.Module]:
        if isinstance(value, torch.nn.Module):
            return [value]
        if isinstance(value, list):
            return [m for v in value for m in modules(v)]
        inner = vars(value).values() if type(value).__module__.startswith("diffalign.") else ()
        return [m for v in inner for m in modules(v)]

    found = modules(loaded[name].function)
    assert found
    assert not any(p.requires_grad for m in found for p in m.parameters())
    assert not any(m.training for m in found)


def test_the_score_stage_takes_them_all(tmp_path: Path, places: dict[str, str]) -> None:
    worlds.images(tmp_path / "images", per_prompt=1)
    names = tuple(places[n] for n in ("pickscore", "imagereward", "aesthetic", "hpsv2.1"))
    said = scoring.score(tmp_path / "images", scorer=names, out=tmp_path / "scores")
    assert re.search(r"6 images scored by pickscore \(mean .*imagereward.*aesthetic.*hpsv2\.1", said)
    assert all(s.value is not None for s in folders.records(tmp_path / "scores", "scores"))


def test_a_folder_in_both_layouts_is_read_in_the_one_that_is_no_pickle(tmp_path: Path) -> None:
    folder = tiny_scorers.clip_folder(tmp_path / "clip")
    before = scorers.load(f"clipscore={folder}")
    (folder / "open_clip_config.json").write_text("{}")
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"")
    image = PIL.Image.new("RGB", (30, 20), "red")
    assert scorers.load(f"clipscore={folder}")([image], ["red"]) == before([image], ["red"])

"""What is done to a group is done to all its images: crops, mirroring, sizes; what is computed once is read back."""

import dataclasses
import hashlib
import logging
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import worlds
from hypothesis import given
from hypothesis import strategies as st

from diffalign import backbones, buckets, folders, keeping, material, views, weights
from diffalign.dataset import Dataset, Visit
from diffalign.objectives import DPO
from diffalign.records import Image, InputError, pair
from diffalign.run import AdamW, LoRA, Pictures, Run
from diffalign.sampling import sample
from diffalign.trainer import Trainer
from diffalign.training import train
from diffalign.views import View


def gradient(width: int, height: int) -> PIL.Image.Image:
    """Red grows to the right, green downwards."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return PIL.Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))


# --- views


@given(st.integers(1, 9), st.floats(0, 1), st.integers(0, 5), st.integers(0, 5))
def test_what_is_drawn_is_among_all_views(crops: int, flip: float, seed: int, draw: int) -> None:
    view = views.draw((64, 32), crops, flip, seed, "g", draw)
    assert view in views.every((64, 32), crops, flip)
    assert view == views.draw((64, 32), crops, flip, seed, "g", draw)
    assert len({v.name for v in views.every((64, 32), crops, flip)}) == crops * (1 + (0 < flip < 1))


def test_views_differ_by_group_and_draw_and_seed() -> None:
    drawn = {views.draw((8, 8), 16, 0.5, s, g, d) for s in range(3) for g in "abc" for d in range(6)}
    assert len(drawn) > 20
    mirrored = [views.draw((8, 8), 1, 0.25, 0, f"g{n}", 0).mirrored for n in range(400)]
    assert 60 < sum(mirrored) < 140


@given(st.integers(8, 60), st.integers(8, 60), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_pixels_are_the_part_that_the_view_names(width: int, height: int, x: float, y: float, mirrored: bool) -> None:
    """At scale 1 every pixel says where it comes from."""
    scale = max(8 / width, 8 / height)
    picture = gradient(width, height)
    view = View(round(width / 2) or 1, height, x, y, mirrored)
    found = views.pixels(picture, view).float()
    left, top = views.corner((width, height), view)
    columns = torch.arange(left, left + view.width).float()
    assert scale > 0
    assert top == 0
    assert torch.equal(found[0, 0], width - 1 - columns if mirrored else columns)
    assert torch.equal(found[1, :, 0], torch.arange(height).float())


@pytest.mark.parametrize("size", [(96, 96), (200, 130), (31, 47)])
def test_pixels_are_those_of_pillow_within_a_level(size: tuple[int, int]) -> None:
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    view = View(64, 64, 0.25, 0.75)
    covered = views.covering(size, (64, 64))
    left, top = views.corner(covered, view)
    whole = np.asarray(picture.resize(covered, PIL.Image.Resampling.BILINEAR), np.int16)
    found = views.pixels(picture, view).permute(1, 2, 0).numpy().astype(np.int16)
    off = np.abs(found - whole[top : top + 64, left : left + 64])
    assert off.max() <= 1
    assert (off > 0).mean() < 0.005


def test_both_sides_are_shown_alike(models: dict[str, Path], tmp_path: Path) -> None:
    """Two copies of one picture in a pair have the same latents at every visit, whatever is drawn."""
    images = worlds.images(tmp_path / "images", sizes=((48, 32),))
    rows = []
    for prompt, (a, b, _) in images.items():
        rows.append(pair(prompt, a.id, b.id, 1.0, source="test"))
    run = run_of(models["sdxl"], worlds.judged(tmp_path, rows), tmp_path / "run", crops=3, flip=0.5)
    data = material.dataset_of(run)
    found = material.prepare(run, data, backbones.load(run.model))
    seen = set()
    for draw in range(8):
        visit = Visit(data.groups[0], draw)
        view = found.view(visit)
        seen.add(view)
        twin = Visit(dataclasses.replace(visit.group, images=visit.group.images[:1] * 2), draw)
        first, second = found.x0([twin])
        assert torch.equal(first, second)
        corners = found.told([visit])["time_ids"][:, 2:4]
        assert torch.equal(corners[0], corners[1])
    assert len(seen) > 3
    assert len(found.latents) == 1
    (store,) = found.latents.values()
    shas = set(data.images.table["sha256"].to_pylist())
    every = [f"{s} {v.name}" for s in shas for v in views.every((32, 32), 3, 0.5)]
    assert not store.missing(every)
    assert len(store._known) == 6 * len(shas), "k keyed variants per unique image"


def run_of(model: Path, data: Path, out: Path, **shown: object) -> Run:
    known = {"policy": LoRA(rank=2), "optimizer": AdamW(lr=1e-2), "steps": 2, "batch": 4, "resolution": 32}
    return Run(str(model), DPO(), data=str(data), out=str(out), pictures=Pictures(**shown), **known)


def test_a_picture_that_is_not_the_one_on_record_is_not_cached(models: dict[str, Path], tmp_path: Path) -> None:
    images = worlds.images(tmp_path / "images", sizes=((32, 32),))
    rows = [row for found in images.values() for row in found]
    rows[3] = dataclasses.replace(rows[3], image=rows[4].image)
    folders.write_part(tmp_path / "images", "images", 0, rows)
    pairs = [pair(prompt, a.id, b.id, 1.0, source="test") for prompt, (a, b, _) in images.items()]
    run = run_of(models["sdxl"], worlds.judged(tmp_path, pairs), tmp_path / "run")
    with pytest.raises(InputError, match=f"image {rows[3].id}: its bytes are not those of its sha256"):
        material.prepare(run, material.dataset_of(run), backbones.load(run.model))


# --- buckets


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of which one half is wide and the other high."""
    place = tmp_path_factory.mktemp("wide")
    rows = []
    for n, (prompt, (a, b, _)) in enumerate(_wide(place).items()):
        rows.append(pair(prompt, a.id, b.id, float(n % 2), source="test"))
    return worlds.judged(place, rows)


def _wide(place: Path) -> dict[str, list[Image]]:
    from diffalign import folders

    made = worlds.images(place / "images")
    changed = {}
    for n, (prompt, rows) in enumerate(made.items()):
        size = ((128, 64), (64, 128), (96, 96))[n % 3]
        changed[prompt] = []
        for row in rows:
            data = worlds.png(int(row.id[:6], 16), size)
            image = {"bytes": data, "path": None}
            sha256, (width, height) = hashlib.sha256(data).hexdigest(), size
            changed[prompt].append(dataclasses.replace(row, image=image, sha256=sha256, width=width, height=height))
    folders.write_part(place / "images", "images", 0, [r for rows in changed.values() for r in rows])
    return changed


def test_a_group_and_its_micro_batch_are_of_one_bucket(models: dict[str, Path], wide: Path, tmp_path: Path) -> None:
    run = dataclasses.replace(run_of(models["sdxl"], wide, tmp_path / "run", shape="buckets"), resolution=128, batch=6)
    trainer = Trainer(run)
    visits = trainer.data.visits(0, 0, 6)
    parts = trainer._parts(visits)
    assert sorted(v.group.id for part in parts for v in part) == sorted(v.group.id for v in visits)
    assert len(trainer.material.latents) == 3
    for part in parts:
        views_ = {(trainer.material.view(v).width, trainer.material.view(v).height) for v in part}
        assert len(views_) == 1
        ((width, height),) = views_
        assert trainer.material.x0(part).shape[2:] == (height // 2, width // 2)
        assert trainer.material.told(part)["time_ids"][:, 4:].unique(dim=0).tolist() == [[height, width]]
    first = next(iter(trainer)).metrics
    assert math.isfinite(float(first["loss"]))
    small = dataclasses.replace(run, micro_batch=1)
    again = Trainer(dataclasses.replace(small, out=str(tmp_path / "other"), cache=str(tmp_path / "run" / "cache")))
    torch.testing.assert_close(next(iter(again)).metrics["loss"], first["loss"], rtol=1e-4, atol=1e-6)


def test_what_crops_hide_is_said(
    models: dict[str, Path], wide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(models["sdxl"], wide, tmp_path / "run")
    data = material.dataset_of(run)
    with caplog.at_level(logging.WARNING, "diffalign"):
        material._rows_by_size(run, data)
    assert "hides more than 25% of an image in 4 of 6 groups (at most 50%); --pictures.shape buckets" in caplog.text
    caplog.clear()
    bucketed = dataclasses.replace(run, resolution=512, pictures=Pictures(shape="buckets"))
    material._rows_by_size(bucketed, data)
    assert not caplog.text


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=4), st.integers(1, 16))
def test_buckets_are_of_about_the_area_and_cover(sizes: list[tuple[int, int]], k: int) -> None:
    width, height = buckets.shared(tuple(sizes), 64 * k)
    assert width * height <= (64 * k) ** 2
    assert width % 64 == height % 64 == 0
    for size in sizes:
        share = buckets.hidden(size, (width, height))
        assert -1e-9 <= share < 1


# --- what is computed once


def test_with_a_cache_neither_autoencoder_nor_text_encoders_are_read(
    models: dict[str, Path], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(models["sdxl"], pairs, tmp_path / "a")
    shared = dataclasses.replace(run, cache=str(tmp_path / "shared"))
    first = next(iter(Trainer(shared))).metrics

    def refused(*_: object) -> None:
        raise AssertionError("is computed again")

    monkeypatch.setattr(backbones.SDXL, "encode_images", refused)
    monkeypatch.setattr(backbones.SDXL, "encode_prompts", refused)
    monkeypatch.setattr(backbones.SDXL, "encode_negative", refused)
    trainer = Trainer(dataclasses.replace(shared, out=str(tmp_path / "b")))
    pipe = trainer.backbone.pipe
    for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        assert all(p.is_meta for p in part.parameters())
    assert not any(p.is_meta for p in trainer.denoiser.parameters())
    again = next(iter(trainer)).metrics
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("family", ["sd", "sd3", "flux", "pixart", "qwen_image", "sana", "zimage", "flux2_klein"])
def test_every_family_trains_without_its_encoders(models: dict[str, Path], family: str, tmp_path: Path) -> None:
    backbone = backbones.load(str(models[family]), encoders=False)
    meta = {n for n, m in backbone.pipe.components.items() if isinstance(m, torch.nn.Module) and _is_meta(m)}
    whole = backbones.load(str(models[family]))
    parts = {n for n, m in whole.pipe.components.items() if isinstance(m, torch.nn.Module)}
    assert meta == parts - {backbone.part}
    size = whole.native_size()
    assert backbone.latent_shape(size, size) == whole.latent_shape(size, size)
    whole.release()
    assert {n for n in parts if _is_meta(getattr(whole.pipe, n))} == meta


def _is_meta(module: torch.nn.Module) -> bool:
    return all(p.is_meta for p in module.parameters())


@pytest.mark.parametrize(
    "family", ["sd", "sdxl", "sd3", "flux", "pixart", "qwen_image", "sana", "zimage", "flux2_klein"]
)
def test_posteriors_have_the_mean_and_a_deviation(models: dict[str, Path], family: str) -> None:
    backbone = backbones.load(str(models[family]))
    pixels = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    mean, deviation = backbone.posterior(pixels)
    assert torch.equal(mean, backbone.encode_images(pixels))
    assert deviation.shape == mean.shape
    assert (deviation == 0).all() if family == "sana" else (deviation > 0).all()


def test_samples_of_the_posterior_are_drawn_by_image_and_visit(
    models: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    run = run_of(models["sdxl"], pairs, tmp_path / "run", posterior="sample", stored="float16")
    data = material.dataset_of(run)
    found = material.prepare(run, data, backbones.load(run.model))
    group = data.groups[0]
    first, again, later = (found.x0([Visit(group, draw)]) for draw in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    mean = material.prepare(dataclasses.replace(run, pictures=Pictures()), data, backbones.load(run.model))
    rest = torch.stack([found.x0([Visit(group, n)]) for n in range(64)]).mean(0) - mean.x0([Visit(group, 0)])
    spread = torch.stack([found.x0([Visit(group, n)]) for n in range(64)]).std(0)
    assert (rest.abs() < 5 * spread / 8 + 1e-2).all()


def test_every_choice_has_a_cache_of_its_own(models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    """Nothing that changes a latent is missing in its key; what does not is shared."""
    run, backbone = run_of(models["sdxl"], pairs, tmp_path / "run"), backbones.load(str(models["sdxl"]))
    data = material.dataset_of(run)

    def stores(changed: Run) -> set[str]:
        material.prepare(changed, data, backbone)
        return {p.name for p in (tmp_path / "run" / "cache").glob("latents-*")}

    assert len(stores(run)) == 1
    assert len(stores(dataclasses.replace(run, seed=3, steps=9, pictures=Pictures(crops=2)))) == 1
    assert len(stores(dataclasses.replace(run, pictures=Pictures(stored="float16")))) == 2
    assert len(stores(dataclasses.replace(run, pictures=Pictures(posterior="sample")))) == 3
    assert len(stores(dataclasses.replace(run, resolution=64))) == 4


def test_the_mapped_tables_are_those_in_memory(pairs: Path, tmp_path: Path) -> None:
    plain, mapped = Dataset(pairs), Dataset(pairs, cache=tmp_path)
    again = Dataset(pairs, cache=tmp_path)
    assert list(plain.groups) == list(mapped.groups) == list(again.groups)
    assert list(plain.shown_texts()) == list(mapped.shown_texts())
    assert all(plain.images[i] == mapped.images[i] for i in plain.image_ids())
    assert len(list(tmp_path.iterdir())) == 1
    for name in ("nothing", "", "zzz"):
        assert name not in plain.images
        assert name not in plain.texts
    (place,) = tmp_path.iterdir()
    (place / "images.arrow").write_bytes(b"cut")
    assert list(Dataset(pairs, cache=tmp_path).groups) == list(plain.groups)


def test_a_changed_folder_has_another_index(tmp_path: Path) -> None:
    from diffalign import folders

    pairs = worlds.pairs(tmp_path)
    before = Dataset(pairs, cache=tmp_path / "cache")
    rows = folders.records(pairs, "judgements")
    folders.write_part(pairs, "judgements", 0, rows[:4])
    assert len(Dataset(pairs, cache=tmp_path / "cache").groups) < len(before.groups)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(("shown", "match"), [({"crops": 0}, "crops"), ({"flip": 1.5}, "flip")])
def test_impossible_pictures_are_refused(shown: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Pictures(**shown)


def test_a_bucket_that_the_model_cannot_draw_is_refused(models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="size 33x33: this model draws multiples of"):
        train(dataclasses.replace(run_of(models["sdxl"], pairs, tmp_path / "run"), resolution=33))
    assert not list((tmp_path / "run").rglob("part-*"))


def test_kept_latents_are_not_encoded_again(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training is shown, bit for bit, the latents that the pictures were decoded from."""
    (tmp_path / "p.txt").write_text("a red circle\nthe blue square\n")
    images = tmp_path / "images"
    sample(model=str(models["sdxl"]), prompts=tmp_path / "p.txt", out=images, per_prompt=2, steps=2, keep_latents=True)
    drawn = folders.records(images, "images")
    pairs = [pair(a.prompt_id, a.id, b.id, 1.0, source="test") for a, b in zip(drawn[:2], drawn[2:], strict=True)]
    run = run_of(models["sdxl"], worlds.judged(tmp_path, pairs), tmp_path / "run")
    backbone = backbones.load(run.model)
    monkeypatch.setattr(type(backbone), "encode_images", None)
    data = material.dataset_of(run)
    found = material.prepare(run, data, backbone)
    ids = [row.id for row in drawn]
    kept = keeping.rows(keeping.index(images, ids, weights.fingerprint(models["sdxl"])), ids)
    for group in data.groups:
        assert torch.equal(found.x0([Visit(group, 0)]), torch.stack([kept[i] for i in group.images]))

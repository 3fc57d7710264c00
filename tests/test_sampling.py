"""Sampling: a picture is a function of its names; what is drawn is not drawn twice; a mistake is one line."""

import dataclasses
import io
import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from commands import Command, contents, launched, run

from diffalign import backbones, folders, keeping, plan, streams, weights
from diffalign.records import InputError, Prompt, prompt_id
from diffalign.sampling import Artist, Sampler, sample, to_png

TEXTS = ["a red circle", "the blue square", "large green", "a small red square", "photo of the circle"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def draw(model: Path, prompts: Path, out: Path, **changes: object) -> str:
    options = {"model": str(model), "prompts": prompts, "out": out, "batch": 2, "steps": 2, "per_prompt": 2, "seed": 3}
    return sample(**{**options, **changes})


def pictures(folder: Path) -> dict[tuple[str, int], bytes]:
    rows = folders.read(folder, "images").to_pylist()
    return {(row["prompt_id"], row["index"]): row["image"]["bytes"] for row in rows}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(data))).astype(int)


# --- what is drawn


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_a_picture_depends_on_its_names_alone(
    models: dict[str, Path], prompts: Path, tmp_path: Path, family: str
) -> None:
    """Not on the batch, the order of the prompts, or what else is drawn (beyond rounding, one level of 255)."""
    draw(models[family], prompts, tmp_path / "a")
    other = tmp_path / "other.txt"
    other.write_text("\n".join(["with another one", *reversed(TEXTS[1:])]))
    draw(models[family], other, tmp_path / "b", batch=5, per_prompt=1)
    first, second = pictures(tmp_path / "a"), pictures(tmp_path / "b")
    shared = first.keys() & second.keys()
    assert len(shared) == 4
    for key in shared:
        assert np.abs(pixels(first[key]) - pixels(second[key])).max() <= 1
    assert len(set(first.values())) == len(first) == 10, "every index and prompt has its own noise"


def test_seed_adapter_and_sampler_are_names_too(models: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    ids = set()
    for n, changes in enumerate([{}, {"seed": 4}, {"steps": 3}, {"guidance": 2.0}, {"height": 48}]):
        draw(models["sdxl"], prompts, tmp_path / str(n), per_prompt=1, **changes)
        ids |= {row["id"] for row in folders.read(tmp_path / str(n), "images", ["id"]).to_pylist()}
    assert len(ids) == 5 * len(TEXTS)
    assert folders.read(tmp_path / "4", "images", ["height", "width"]).to_pylist()[0] == {"height": 48, "width": 32}


def test_rows_say_where_a_picture_comes_from(models: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    said = draw(models["sdxl"], prompts, tmp_path / "out")
    out = tmp_path / "out"
    assert said == f"{out}: 10 images of 5 prompts; next: diffalign score {out} --scorer … --out …"
    rows = folders.records(tmp_path / "out", "images")
    assert [(r.index, r.prompt_id) for r in rows] == [(i, prompt_id(t)) for i in range(2) for t in TEXTS]
    for row in rows:
        assert row.sampler == "EulerDiscreteScheduler, 2 steps, guidance 5, 32x32"
        assert (row.seed, row.adapter, row.model) == (3, None, weights.fingerprint(models["sdxl"]))
        assert row.noise == streams.name("sampling", 3, row.prompt_id, row.index)
        assert re.fullmatch(r"diffalign \S+, torch \S+, diffusers \S+, transformers \S+", row.versions)
        assert re.fullmatch(r"[0-9a-f]{32}\.png", row.image["path"]), "nothing of a prompt is in a file's name"
        picture = pixels(row.image["bytes"])
        assert picture.shape == (row.height, row.width, 3) == (32, 32, 3)
    assert [p.text for p in folders.records(tmp_path / "out", "prompts")] == TEXTS


def test_the_same_prompt_id_with_another_text_is_another_image(models: dict[str, Path], tmp_path: Path) -> None:
    ids = []
    for n, text in enumerate(TEXTS[:2]):
        (tmp_path / f"{n}.jsonl").write_text(json.dumps({"id": "mine", "text": text}))
        draw(models["sdxl"], tmp_path / f"{n}.jsonl", tmp_path / str(n), per_prompt=1)
        ids += folders.read(tmp_path / str(n), "images", ["id"])["id"].to_pylist()
    assert len(set(ids)) == 2


def test_drawing_in_python_is_drawing_by_command(models: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    draw(models["sdxl"], prompts, tmp_path / "out", batch=10)
    artist = Artist(backbones.load(str(models["sdxl"])), Sampler(2, 5.0, 32, 32), seed=3)
    artist.encode([Prompt(prompt_id(t), t) for t in TEXTS])
    found = artist.draw([(prompt_id(t), i) for i in range(2) for t in TEXTS])
    assert [to_png(picture) for picture in found] == list(pictures(tmp_path / "out").values())


# --- going on


def no_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was asked")

    monkeypatch.setattr(plan.backbones, "load", refuse)


def test_a_finished_folder_is_not_drawn_again(
    models: dict[str, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = draw(models["sdxl"], prompts, tmp_path / "out")
    before = contents(tmp_path / "out")
    no_forward(monkeypatch)
    assert draw(models["sdxl"], prompts, tmp_path / "out") == said
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("damage", ["gone", "truncated", "foreign"])
def test_only_what_is_missing_is_drawn_and_ends_in_the_same_bytes(
    models: dict[str, Path], prompts: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(models["sdxl"], prompts, tmp_path / "out")
    before = contents(tmp_path / "out")
    victim = folders.part(tmp_path / "out", "images", 2)
    if damage == "gone":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-20])
    else:
        victim.write_bytes(folders.part(tmp_path / "out", "images", 1).read_bytes())
    drawn: list[int] = []
    original = Artist.paint
    monkeypatch.setattr(
        Artist, "paint", lambda self, work, *rest: drawn.append(len(work)) or original(self, work, *rest)
    )
    draw(models["sdxl"], prompts, tmp_path / "out")
    assert drawn == [2]
    assert contents(tmp_path / "out") == before


def test_more_per_prompt_extends_and_keeps_every_byte(models: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    draw(models["sdxl"], prompts, tmp_path / "grown", per_prompt=1)
    before = pictures(tmp_path / "grown")
    fingerprint = folders.load(tmp_path / "grown").fingerprint
    draw(models["sdxl"], prompts, tmp_path / "grown", per_prompt=3)
    draw(models["sdxl"], prompts, tmp_path / "whole", per_prompt=3)
    grown, whole = pictures(tmp_path / "grown"), pictures(tmp_path / "whole")
    assert {key: grown[key] for key in before} == before
    assert {k: v for k, v in grown.items() if k not in before} == {k: v for k, v in whole.items() if k not in before}
    assert folders.load(tmp_path / "grown").fingerprint == fingerprint, "scores of it stay scores of it"
    with pytest.raises(InputError, match="was made with per_prompt = 3, not 2; choose another --out or the old value"):
        draw(models["sdxl"], prompts, tmp_path / "grown", per_prompt=2)


def test_other_changes_are_refused_by_name(models: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    draw(models["sdxl"], prompts, tmp_path / "out")
    before = contents(tmp_path / "out")
    other = tmp_path / "other.txt"
    other.write_text("green")
    changes = [{"seed": 4}, {"batch": 3}, {"steps": 3}, {"height": 48}, {"prompts": other}]
    for name, change in ((next(iter(change)), change) for change in changes):
        with pytest.raises(InputError, match=rf"was made with {name} = .*; choose another --out or the old value"):
            draw(models["sdxl"], change.pop("prompts", prompts), tmp_path / "out", **change)
    with pytest.raises(InputError, match="was made with model = "):
        draw(models["sd3"], prompts, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_lists_of_several_sizes_are_drawn_size_by_size(models: dict[str, Path], tmp_path: Path) -> None:
    sizes = [None, (48, 32), None, (32, 48), (48, 32)]
    rows = [{"text": t} | ({"height": s[0], "width": s[1]} if s else {}) for t, s in zip(TEXTS, sizes, strict=True)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for n in (1, 2):
        draw(models["sdxl"], tmp_path / "p.jsonl", tmp_path / "out", per_prompt=n)
    draw(models["sdxl"], tmp_path / "p.jsonl", tmp_path / "whole")
    found = pictures(tmp_path / "out")
    assert {k: pixels(v).shape[:2] for k, v in found.items()} == {
        (prompt_id(t), i): s or (32, 32) for t, s in zip(TEXTS, sizes, strict=True) for i in range(2)
    }
    whole = pictures(tmp_path / "whole")
    assert max(np.abs(pixels(found[k]) - pixels(whole[k])).max() for k in found) <= 1
    for part in (tmp_path / "out" / "images").iterdir():
        rows = folders.read(tmp_path / "out", "images", ["width", "height"]).to_pylist()
        assert {tuple(r.values()) for r in rows} == {(32, 32), (32, 48), (48, 32)}
        assert part.suffix == ".parquet"


# --- again


def test_again_draws_the_same_bytes(models: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {"scheduler": "EulerAncestralDiscreteScheduler", "guidance_interval": (0.0, 0.5), "steps": 4}
    draw(models["sdxl"], prompts, out, batch=3, **options)
    for row in folders.records(out, "images")[4:10:5]:
        said = sample(out=out, again=row.id)
        assert said.startswith(f"{out}/again/{row.id}.png: the recorded picture, byte for byte")
        assert (out / "again" / f"{row.id}.png").read_bytes() == row.image["bytes"]
    moved = Path(shutil.copytree(models["sdxl"], tmp_path / "moved"))
    assert "byte for byte" in sample(out=out, again=row.id, model=str(moved))
    with pytest.raises(InputError, match=r"was drawn by model .*, not .*; name the right --model"):
        sample(out=out, again=row.id, model=str(models["sd"]))
    with pytest.raises(InputError, match="images holds no 'nothing'"):
        sample(out=out, again="nothing")


def test_again_says_where_the_picture_is_another(models: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    draw(models["sdxl"], prompts, out, per_prompt=1)
    rows = folders.records(out, "images")
    wrong = [dataclasses.replace(r, sha256="0", image=rows[1].image, versions="torch 0") for r in rows[:2]]
    folders.write_part(out, "images", 0, wrong)
    with pytest.raises(
        InputError, match=r"pixels are not as recorded, by \d+ of 255 .* drawn with torch 0, now"
    ) as found:
        sample(out=out, again=rows[0].id)
    assert found.value.status == 1


# --- what else is kept


def test_latents_are_kept_beside_the_pictures(models: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    """They decode to the pictures, and are there again after an interruption or an extension."""
    out = tmp_path / "out"
    draw(models["sdxl"], prompts, out, keep_latents=True, per_prompt=1)
    first = {p.name: p.read_bytes() for p in sorted((out / "latents").iterdir())}
    (out / "latents" / "part-00001.safetensors").unlink()
    draw(models["sdxl"], prompts, out, keep_latents=True)
    assert {n: (out / "latents" / n).read_bytes() for n in list(first)[:2]} == {n: first[n] for n in list(first)[:2]}
    backbone = backbones.load(str(models["sdxl"]))
    rows = {r.id: r for r in folders.records(out, "images")}
    model = weights.fingerprint(models["sdxl"])
    assert keeping.index(out, rows, "another") == {}
    kept = keeping.rows(keeping.index(out, rows, model), list(rows))
    assert kept.keys() == rows.keys()
    for name, latents in kept.items():
        decoded = backbone.decode_latents(latents[None])[0]
        seen = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
        assert np.abs(seen - pixels(rows[name].image["bytes"])).max() <= 1
    with pytest.raises(InputError, match="was made with keep_latents = True, not None"):
        draw(models["sdxl"], prompts, out)


def test_a_scorer_of_the_user_flags_pictures(models: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def red(images, prompts):\n"
        "    assert len(images) == len(prompts)\n"
        "    values = np.array([np.asarray(i)[..., 0].mean() for i in images])\n"
        "    return np.where([p == 'large green' for p in prompts], np.nan, values)\n"
    )
    draw(models["sdxl"], prompts, tmp_path / "out", nsfw=f"{tmp_path}/mine.py:red", per_prompt=1)
    for row, text in zip(folders.records(tmp_path / "out", "images"), TEXTS, strict=True):
        assert row.nsfw == (None if text == "large green" else pixels(row.image["bytes"])[..., 0].mean())
    with pytest.raises(InputError, match="was made with nsfw"):
        draw(models["sdxl"], prompts, tmp_path / "out", per_prompt=1)


def test_a_flag_that_fails_costs_no_picture(
    models: dict[str, Path], prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text("def broken(images, prompts):\n    raise ValueError('no\\nmodel')\n")
    with caplog.at_level("WARNING"):
        draw(models["sdxl"], prompts, tmp_path / "out", nsfw=f"{tmp_path}/mine.py:broken", per_prompt=1, batch=5)
    assert [row.nsfw for row in folders.records(tmp_path / "out", "images")] == [None] * 5
    assert caplog.messages == ["nsfw: 5 pictures without a value (first: ValueError: no model)"]


def test_prompts_that_are_too_long_are_named(
    models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "p.txt").write_text("a red circle\n" + "the blue square and " * 30 + "the end\n\na red circle\n")
    with caplog.at_level("WARNING"):
        said = draw(models["sdxl"], tmp_path / "p.txt", tmp_path / "out", per_prompt=1)
    assert "2 images of 2 prompts (1 of them listed more than once, 1 empty lines left out);" in said
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("the end'")


# --- several processes


def test_two_processes_draw_what_one_does(
    models: dict[str, Path], prompts: Path, tmp_path: Path, uninterrupted: dict
) -> None:
    ends = [c.ended() for c in pair_of(models, tmp_path)]
    assert [e.status for e in ends] == [0, 0], ends
    assert ends[0].out.startswith("out: 30 images of 5 prompts")
    assert ends[1].out == "out: process 2 of 2 has drawn its share\n"
    assert contents(tmp_path / "out") == uninterrupted["sdxl"]


def test_a_process_that_dies_ends_the_others_and_loses_nothing(
    models: dict[str, Path], prompts: Path, tmp_path: Path, uninterrupted: dict
) -> None:
    first, second = pair_of(models, tmp_path)
    second.until((tmp_path / "out" / "images").exists).signal(signal.SIGKILL)
    assert second.ended().status == -signal.SIGKILL
    end = first.ended()
    assert end.status == 2
    assert end.err.endswith("another process of this command has ended; what is written stays, run it again\n")
    assert run(*words(models, "out"), cwd=tmp_path).status == 0
    assert contents(tmp_path / "out") == uninterrupted["sdxl"]


# --- mistakes


def message(**changes: object) -> str:
    with pytest.raises(InputError) as caught:
        draw(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_that_cannot_be_loaded_claims_no_folder(models: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(models["sdxl"], tmp_path / "broken"))
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    out = tmp_path / "out"
    assert str(broken) in message(model=broken, prompts=prompts, out=out)
    assert not out.exists()
    assert "no such model" in message(model=tmp_path / "nowhere", prompts=prompts, out=out)
    assert "multiples of 4" in message(model=models["sdxl"], prompts=prompts, out=out, height=33)
    assert "steps = 0" in message(model=models["sdxl"], prompts=prompts, out=out, steps=0)
    assert "guidance = nan" in message(model=models["sdxl"], prompts=prompts, out=out, guidance=float("nan"))
    assert "no such adapter file" in message(
        model=models["sdxl"], prompts=prompts, out=out, lora=(str(tmp_path / "nowhere"),)
    )
    (tmp_path / "lora.bin").write_bytes(b"")
    assert "pickled" in message(model=models["sdxl"], prompts=prompts, out=out, lora=(str(tmp_path / "lora.bin"),))
    assert not out.exists()


# --- interruptions, in processes


def words(models: dict[str, Path], out: str, family: str = "sdxl") -> list[object]:
    return [
        *("sample", "--model", models[family], "--prompts", "prompts.txt", "--out", out, "--steps", 2),
        *("--batch", 3, "--per-prompt", 6),
    ]


@pytest.fixture(scope="module")
def uninterrupted(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    found = {}
    for family in ("sdxl", "sd3"):
        cwd = tmp_path_factory.mktemp("whole")
        (cwd / "prompts.txt").write_text("\n".join(TEXTS) + "\n")
        ended = run(*words(models, "out", family), cwd=cwd)
        assert ended.status == 0
        assert re.fullmatch(r"30 images drawn, [\d.e+]+ a second\n", ended.err)
        found[family] = contents(cwd / "out")
    return found


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_interrupted_ends_in_the_same_bytes(
    models: dict[str, Path], prompts: Path, tmp_path: Path, family: str, number: signal.Signals, uninterrupted: dict
) -> None:
    for part in (1, 4):
        file = folders.part(tmp_path / "out", "images", part)
        ended = Command(*words(models, "out", family), cwd=tmp_path).until(file.exists).signal(number).ended()
        if number == signal.SIGINT:
            assert (ended.status, ended.err) == (130, "diffalign: interrupted; the same command goes on\n")
        else:
            assert ended.status == -signal.SIGKILL
        assert file.exists()
        assert len(list((tmp_path / "out" / "images").glob("part-*"))) < 10
    ended = run(*words(models, "out", family), cwd=tmp_path)
    assert ended.status == 0
    assert ended.out.startswith("out: 30 images of 5 prompts; next: diffalign score out")
    assert contents(tmp_path / "out") == uninterrupted[family]


def pair_of(models: dict[str, Path], cwd: Path) -> list[Command]:
    return launched(words(models, "out"), cwd)


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_no_room_is_one_line_and_the_command_goes_on(
    models: dict[str, Path], prompts: Path, tmp_path: Path, family: str, uninterrupted: dict
) -> None:
    inside = run(*words(models, "prompts.txt/out", family), cwd=tmp_path)
    assert (inside.status, inside.err.count("\n")) == (2, 1)
    assert "prompts.txt/out: Not a directory; choose a folder that can be written" in inside.err
    ended = run(*words(models, "out", family), cwd=tmp_path, largest=2000)
    assert ended.status == 2
    assert ended.err.startswith("diffalign: ")
    assert ended.err.endswith("File too large; free some room and run the same command again\n")
    assert ended.err.count("\n") == 1
    assert not [p for p in (tmp_path / "out").rglob("*") if ".tmp" in p.name], "nothing half-written"
    assert run(*words(models, "out", family), cwd=tmp_path).status == 0
    assert contents(tmp_path / "out") == uninterrupted[family]

"""Scorers: names, what each gives, and that a score does not depend on its batch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import tiny
import torch
import worlds

from diffalign import scorers
from diffalign.records import InputError
from diffalign.shapes import captions, scene

TEXTS = ["a red circle", "the blue square", "a red circle", "a photo", "a large green square"]


def write_clip(place: Path, seed: int = 0) -> Path:
    """A tiny random open_clip folder with a tokenizer of its own, as open_clip itself lays it out."""
    import open_clip

    tokenizer = tiny.clip_tokenizer(16)
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {
            "context_length": 16, "vocab_size": len(tokenizer), "width": 32, "heads": 2, "layers": 1,
            "hf_tokenizer_name": ".",
        },
    }  # fmt: skip
    place.mkdir(parents=True)
    tokenizer.save_pretrained(place)
    torch.manual_seed(seed)
    safetensors.torch.save_file(open_clip.CLIP(**config).state_dict(), place / "open_clip_model.safetensors")
    whole = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}}
    (place / "open_clip_config.json").write_text(json.dumps(whole))
    return place


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[PIL.Image.Image]:
    place = tmp_path_factory.mktemp("pictures")
    for n in range(len(TEXTS)):
        (place / f"{n}.png").write_bytes(worlds.png(n, (32 + n, 48)))
    return [PIL.Image.open(place / f"{n}.png").convert("RGB") for n in range(len(TEXTS))]


@pytest.fixture(scope="module")
def renders() -> tuple[list[PIL.Image.Image], list[str]]:
    rng = np.random.default_rng(3)
    scenes = [scene.sample_scene(rng) for _ in range(6)]
    return [PIL.Image.fromarray(scene.render(s)) for s in scenes], [captions.caption(s, "short", rng) for s in scenes]


# --- names


def test_naming_scorers_is_cheap() -> None:
    code = (
        "import sys, diffalign.scorers as s; s.load('gold'); print(sorted({'torch', 'open_clip'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gold_rihgt", "did you mean gold_right"),
        ("", "expected one of gold, gold_right, shapes_clip, clip, clipscore, .*, or file.py:function"),
        ("clip", "needs a folder, clip=FOLDER"),
        ("gold=somewhere", "takes no place, but 'somewhere' was given"),
        ("clip=nowhere", "nowhere/open_clip_config.json: no such file; expected an open_clip folder"),
        ("nowhere.py:f", "nowhere.py: no such scorer file"),
    ],
)
def test_names_that_are_not_there(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        scorers.load(name)
    assert "\n" not in str(caught.value)


def test_what_only_measures_is_named() -> None:
    assert set(scorers.MEASURES) <= set(scorers.NAMES)
    assert all(name in scorers.MEASURES for name in scorers.NAMES if name.startswith("gold"))


# --- outsiders


def test_anybodys_function_is_a_scorer(tmp_path: Path, pictures: list[PIL.Image.Image]) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def length(images, prompts):\n    return [len(p) for p in prompts]\n")
    found = scorers.load(f"{path}:length")
    assert found.name == "mine.py:length"
    values = found(pictures, TEXTS)
    assert values.dtype == np.float64
    assert values.tolist() == [len(t) for t in TEXTS]
    path.write_text("def length(images, prompts):\n    return [-len(p) for p in prompts]\n")
    changed = scorers.load(f"{path}:length")
    assert changed.revision != found.revision
    assert changed(pictures, TEXTS)[0] == -values[0]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def other(images, prompts): ...\nf = 3", "defines no function 'f' \\(it defines: other\\)"),
        ("def f(", "SyntaxError"),
        ("import nothing_like_this", "ModuleNotFoundError: No module named"),
    ],
)
def test_broken_outsiders(source: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(InputError, match=said):
        scorers.load(f"{tmp_path / 'mine.py'}:f")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("[1.0]", "gave shape \\(1,\\), expected \\(5,\\)"),
        ("[[1.0]] * 5", "gave shape \\(5, 1\\)"),
        ("None", "gave shape \\(\\)"),
        ("['good'] * 5", "gave list, expected an array of numbers"),
    ],
)
def test_what_is_no_score_is_refused(body: str, said: str, tmp_path: Path, pictures: list[PIL.Image.Image]) -> None:
    (tmp_path / "mine.py").write_text(f"def f(images, prompts):\n    return {body}\n")
    with pytest.raises(InputError, match=said):
        scorers.load(f"{tmp_path / 'mine.py'}:f")(pictures, TEXTS)


# --- gold


def test_gold_follows_the_pixels(renders: tuple[list[PIL.Image.Image], list[str]]) -> None:
    images, prompts = renders
    gold, right = scorers.load("gold"), scorers.load("gold_right")
    assert (gold(images, prompts) > 0.95).all()
    assert right(images, prompts).tolist() == [1.0] * 6
    turned = prompts[1:] + prompts[:1]
    assert (gold(images, turned) < gold(images, prompts)).all()
    assert right(images, turned).sum() < 6
    assert gold.revision == right.revision


def test_gold_refuses_other_prompts(renders: tuple[list[PIL.Image.Image], list[str]]) -> None:
    with pytest.raises(InputError, match="unknown word 'astronaut'"):
        scorers.load("gold")(renders[0][:1], ["an astronaut"])


# --- open_clip


def test_clip_is_the_cosine_of_open_clips_features(clip_folder: Path, pictures: list[PIL.Image.Image]) -> None:
    import open_clip

    name = f"local-dir:{clip_folder}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    with torch.no_grad():
        seen = model.encode_image(torch.stack([transform(p) for p in pictures]))
        said = model.encode_text(open_clip.get_tokenizer(name)(TEXTS))
    wanted = torch.nn.functional.cosine_similarity(seen.double(), said.double()).numpy()
    found = scorers.load(f"clip={clip_folder}")(pictures, TEXTS)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.ptp(found) > 1e-3
    assert np.abs(found).max() <= 1 + 1e-6


def test_clip_scores_do_not_depend_on_the_batch(clip_folder: Path, pictures: list[PIL.Image.Image]) -> None:
    clip = scorers.load(f"clip={clip_folder}")
    whole = clip(pictures, TEXTS)
    singles = np.concatenate([clip([p], [t]) for p, t in zip(pictures, TEXTS, strict=True)])
    np.testing.assert_allclose(singles, whole, atol=1e-6)
    np.testing.assert_allclose(clip(pictures[::-1], TEXTS[::-1])[::-1], whole, atol=1e-6)
    doubled = clip(pictures * 2, TEXTS * 2)
    np.testing.assert_allclose(doubled, np.tile(whole, 2), atol=1e-6)


def test_clip_encodes_each_prompt_once_and_builds_no_graph(
    clip_folder: Path, pictures: list[PIL.Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    function = scorers.load(f"clip={clip_folder}").function
    seen: list[int] = []
    encode = function.model.encode_text
    monkeypatch.setattr(function.model, "encode_text", lambda tokens: seen.append(len(tokens)) or encode(tokens))
    function(pictures, TEXTS)
    assert seen == [1] * 4, "on the CPU each by itself"
    assert not any(p.requires_grad for p in function.model.parameters())


def test_clip_weights_from_disk_give_the_same_bits(clip_folder: Path, pictures: list[PIL.Image.Image]) -> None:
    first, again = (scorers.load(f"clip={clip_folder}")(pictures, TEXTS) for _ in range(2))
    assert (first == again).all()


def test_clip_revision_is_that_of_its_weights(clip_folder: Path, tmp_path: Path) -> None:
    other = write_clip(tmp_path / "other", seed=1)
    same = write_clip(tmp_path / "same", seed=0)
    revisions = [scorers.load(f"clip={p}").revision for p in (clip_folder, other, same)]
    assert revisions[0] == revisions[2] != revisions[1]
    assert scorers.load(f"shapes_clip={other}").name == "shapes_clip"
    assert "squash" in scorers.load(f"clip={other}").preprocessing


def test_clip_folders_that_do_not_load(tmp_path: Path) -> None:
    place = write_clip(tmp_path / "clip")
    weights = place / "open_clip_model.safetensors"
    state = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({k: v for k, v in state.items() if k != "ln_final.weight"}, weights)
    with pytest.raises(InputError, match="ln_final.weight") as caught:
        _ = scorers.load(f"clip={place}").function
    assert "\n" not in str(caught.value)
    weights.write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="open_clip cannot load it"):
        _ = scorers.load(f"clip={place}").function
    weights.rename(place / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights are never loaded"):
        scorers.load(f"clip={place}")
    (place / "open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(InputError, match="is not an open_clip configuration"):
        scorers.load(f"clip={place}")

"""Own captions of images: which image gets which text, in every mode; interruption; mistakes in one line."""

from pathlib import Path

import pytest
import worlds

from diffalign import captioning, folders
from diffalign.dataset import Dataset
from diffalign.records import InputError, pair

CODE = """
CALLS = []
def describe(pictures, prompts):
    CALLS.append(len(pictures))
    assert all(p.size == (32, 32) for p in pictures)
    return [f"seen: {text}" for text in prompts]
def spoil(texts):
    return [f"{text}, spoilt" for text in texts]
def silent(pictures, prompts):
    return [None] * len(prompts)
def first_only(pictures, prompts):
    return [f"seen: {prompts[0]}"] + [None] * (len(prompts) - 1)
def short(pictures, prompts):
    return ["one"]
def empty(texts):
    return [" "] * len(texts)
"""


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, str, dict[str, str]]:
    """A pairs folder of one pair a prompt, the code's place, and the role of each image."""
    rows, roles = [], {}
    for n, (prompt, (a, b, _)) in enumerate(worlds.images(tmp_path / "images").items()):
        better, worse = (a.id, b.id) if n % 2 else (b.id, a.id)
        rows.append(pair(prompt, a.id, b.id, 1.0 if n % 2 else 0.0, source="test"))
        roles |= {better: "chosen", worse: "rejected"}
    (tmp_path / "mine.py").write_text(CODE)
    return worlds.judged(tmp_path, rows), str(tmp_path / "mine.py"), roles


def shown(folder: Path) -> dict[str, str]:
    """Image -> the text that training shows it under."""
    data = Dataset(folder, captions="own")
    return {i: data.shown(g, i) for g in data.groups for i in g.images}


@pytest.mark.parametrize("mode", ["caption", "perturb", "hybrid"])
def test_what_training_shows(mode: str, world: tuple[Path, str, dict[str, str]], tmp_path: Path) -> None:
    pairs, code, roles = world
    flags = {"captioner": f"{code}:describe"} if mode != "perturb" else {}
    flags |= {"perturber": f"{code}:spoil"} if mode != "caption" else {}
    plain = Dataset(pairs)
    prompts = {i: plain.texts[g.prompt] for g in plain.groups for i in g.images}
    had = {name: row["caption"] for name, row in folders.image_rows(pairs).items()}
    said = captioning.caption(pairs, out=tmp_path / "out", mode=mode, batch=5, **flags)
    for image, text in shown(tmp_path / "out").items():
        wanted = f"seen: {prompts[image]}" if mode != "perturb" else prompts[image]
        if roles[image] == "rejected" and mode != "caption":
            wanted += ", spoilt"
        elif mode == "perturb":
            wanted = had[image] or prompts[image]
        assert text == wanted, roles[image]
    assert f"captions ({mode})" in said
    assert list(Dataset(tmp_path / "out").groups) == list(plain.groups), "the judgements are the same"


def test_an_interruption_asks_only_for_what_is_missing(world: tuple[Path, str, dict[str, str]], tmp_path: Path) -> None:
    pairs, code, _ = world
    flags = {"mode": "caption", "captioner": f"{code}:describe", "batch": 4}
    said = captioning.caption(pairs, out=tmp_path / "out", **flags)
    parts = sorted((tmp_path / "out" / "captions").iterdir())
    assert len(parts) == 3
    before = {p.name: p.read_bytes() for p in parts}
    parts[1].unlink()
    with pytest.raises(InputError, match="1 of 3 parts are missing; run its `caption` again"):
        Dataset(tmp_path / "out")
    assert captioning.caption(pairs, out=tmp_path / "out", **flags) == said
    assert {p.name: p.read_bytes() for p in (tmp_path / "out" / "captions").iterdir()} == before
    (tmp_path / "mine.py").write_text(CODE + "\n# another")
    with pytest.raises(InputError, match="was made with revisions"):
        captioning.caption(pairs, out=tmp_path / "out", **flags)


def test_a_captioner_that_says_nothing(world: tuple[Path, str, dict[str, str]], tmp_path: Path) -> None:
    pairs, code, _ = world
    said = captioning.caption(pairs, out=tmp_path / "one", mode="caption", captioner=f"{code}:first_only", batch=50)
    assert "1 captions (caption), 11 left without one" in said
    with pytest.raises(InputError, match="silent gave None for all 12"):
        captioning.caption(pairs, out=tmp_path / "none", mode="caption", captioner=f"{code}:silent")


@pytest.mark.parametrize(
    ("mode", "captioner", "perturber", "match"),
    [
        ("caption", "", "", "mode caption needs a captioner"),
        ("perturb", "describe", "spoil", "mode caption needs a captioner, perturb a perturber, hybrid both"),
        ("hybrid", "describe", "", "hybrid both"),
        ("caption", "describes", "", "defines no function 'describes' \\(it defines: describe, spoil"),
        ("caption", "short", "", "gave .*expected a list of 12 texts"),
        ("perturb", "", "empty", "expected a list of 6 texts, none of them empty"),
    ],
)
def test_mistakes(
    mode: str, captioner: str, perturber: str, match: str, world: tuple[Path, str, dict[str, str]], tmp_path: Path
) -> None:
    pairs, code, _ = world
    flags = {k: f"{code}:{v}" for k, v in (("captioner", captioner), ("perturber", perturber)) if v}
    with pytest.raises(InputError, match=match) as caught:
        captioning.caption(pairs, out=tmp_path / "out", mode=mode, **flags)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("captions/*"))


def test_an_image_of_two_roles_has_no_perturbed_caption(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    images = next(iter(worlds.images(tmp_path / "images").items()))
    prompt, (a, b, c) = images
    rows = [pair(prompt, a.id, b.id, 1.0, source="test"), pair(prompt, b.id, c.id, 1.0, source="test")]
    pairs = worlds.judged(tmp_path, rows)
    with pytest.raises(InputError, match=f"image {b.id} is chosen in one pair and rejected in another"):
        captioning.caption(pairs, out=tmp_path / "out", mode="perturb", perturber=f"{tmp_path}/mine.py:spoil")
    assert not (tmp_path / "out").exists()

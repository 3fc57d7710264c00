"""Scoring: what is judged once is never judged again, what cannot be judged says why, and nothing is lost."""

import csv
import dataclasses
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import worlds

from diffalign import folders, scoring
from diffalign.readers import folder as image_folder
from diffalign.readers import seen
from diffalign.records import Image, InputError, Prompt, digest, prompt_id

COUNTING = """
import pathlib
import numpy as np

LOG = pathlib.Path(__file__).with_suffix(".log")

def brightness(images, prompts):
    with LOG.open("a") as log:
        log.write(f"brightness {len(images)}\\n")
    return np.array([np.asarray(i).mean() for i in images])

def reddish(images, prompts):
    with LOG.open("a") as log:
        log.write(f"reddish {len(images)}\\n")
    return [float(np.asarray(i)[..., 0].mean()) for i in images]

def dies(images, prompts):
    with LOG.open("a") as log:
        log.write(f"dies {len(images)}\\n")
    if len(LOG.read_text().splitlines()) == 3:
        raise KeyboardInterrupt
    return brightness(images, prompts)
"""


class Counter:
    """A file of scorers that writes down how it is called."""

    def __init__(self, place: Path) -> None:
        self.path = place / "mine.py"
        self.path.write_text(COUNTING)

    def name(self, function: str) -> str:
        return f"{self.path}:{function}"

    def calls(self) -> list[str]:
        log = self.path.with_suffix(".log")
        found = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return found


@pytest.fixture
def mine(tmp_path: Path) -> Counter:
    return Counter(tmp_path)


def drawn(place: Path, per_prompt: int, part: int = 4, broken: tuple[int, ...] = ()) -> list[Image]:
    """An images folder as sampling writes it: index by index over three prompts, cut every `part` images."""
    prompts = [Prompt(prompt_id(t), t) for t in worlds.TEXTS[:3]]
    rows = []
    for n, (index, prompt) in enumerate((i, p) for i in range(per_prompt) for p in prompts):
        data = b"no picture %d" % n if n in broken else worlds.png(n)
        name = digest("picture", prompt.id, index)
        image = {"bytes": data, "path": f"{name}.png"}
        rows.append(Image(name, prompt.id, image, digest(data), 32, 32, seed=0, index=index))
    cuts = [rows[i : i + part] for i in range(0, len(rows), part)]
    folders.begin(place, folders.Manifest("sample", {"per_prompt": per_prompt}, len(cuts), extends=("per_prompt",)))
    folders.write_part(place, "prompts", 0, prompts)
    for n, cut in enumerate(cuts):
        folders.write_part(place, "images", n, cut)
    return rows


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "scores.csv").read_text())))


# --- record folders


def test_every_image_by_every_scorer(tmp_path: Path, mine: Counter) -> None:
    rows = drawn(tmp_path / "images", per_prompt=3)
    out, names = tmp_path / "scores", ("mine.py:brightness", "mine.py:reddish")
    said = scoring.score(tmp_path / "images", scorer=tuple(map(mine.name, ("brightness", "reddish"))), out=out, batch=5)
    assert said.startswith(f"{out}: 9 images scored by mine.py:brightness (mean ")
    assert said.endswith(f"next: diffalign pair {out} --out …")
    assert mine.calls() == ["brightness 5", "reddish 5", "brightness 4", "reddish 4"]
    found = folders.records(out, "scores")
    assert [(s.image_id, s.scorer) for s in found] == [(r.id, n) for r in rows for n in names]
    import numpy as np

    for score, row in zip(found, [r for r in rows for _ in names], strict=True):
        pixels = np.asarray(PIL.Image.open(io.BytesIO(row.image["bytes"])))
        assert score.value == (pixels.mean() if score.scorer == names[0] else pixels[..., 0].mean())
        assert score.prompt_id == row.prompt_id
        assert score.preprocessing == "PIL, RGB"
    manifest = folders.open_folder(out, "score")
    assert manifest.batches == 2
    assert manifest.parents[0]["path"] == "../images"
    lines = table(out)
    assert [(x["prompt"], x["index"], x["image_id"]) for x in lines] == [
        (worlds.TEXTS[n % 3], str(n // 3), r.id) for n, r in enumerate(rows)
    ]
    assert float(lines[3]["mine.py:reddish"]) == found[7].value


def test_one_decode_for_all_scorers(tmp_path: Path, mine: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(tmp_path / "images", per_prompt=2)
    opened = []
    open_picture = PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda data: opened.append(1) or open_picture(data))
    scorer = tuple(map(mine.name, ("brightness", "reddish")))
    scoring.score(tmp_path / "images", scorer=scorer, out=tmp_path / "scores", batch=4)
    assert len(opened) == 6


def test_again_is_free_and_changes_nothing(tmp_path: Path, mine: Counter) -> None:
    drawn(tmp_path / "images", per_prompt=3)
    out = tmp_path / "scores"
    first = scoring.score(tmp_path / "images", scorer=(mine.name("brightness"),), out=out)
    before = contents(out)
    mine.calls()
    assert scoring.score(tmp_path / "images", scorer=(mine.name("brightness"),), out=out) == first
    assert mine.calls() == []
    assert contents(out) == before


def test_interrupted_ends_in_the_same_bytes(tmp_path: Path, mine: Counter) -> None:
    drawn(tmp_path / "images", per_prompt=3)
    out, scorer = tmp_path / "scores", (mine.name("dies"),)
    with pytest.raises(KeyboardInterrupt):
        scoring.score(tmp_path / "images", scorer=scorer, out=out, batch=2)
    assert mine.calls() == ["dies 2", "brightness 2", "dies 2"]
    assert len(list((out / "scores").iterdir())) == 1
    mine.path.with_suffix(".log").write_text("\n" * 5)
    scoring.score(tmp_path / "images", scorer=scorer, out=out, batch=2)
    assert [c for c in mine.calls() if c.startswith("dies")] == ["dies 2"] * 3 + ["dies 1"]
    mine.path.with_suffix(".log").write_text("\n" * 5)
    scoring.score(tmp_path / "images", scorer=scorer, out=tmp_path / "again", batch=2)
    assert contents(out) == contents(tmp_path / "again")


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:100])])
def test_a_damaged_part_is_made_again(tmp_path: Path, mine: Counter, damage: object) -> None:
    drawn(tmp_path / "images", per_prompt=3)
    out, scorer = tmp_path / "scores", (mine.name("brightness"),)
    scoring.score(tmp_path / "images", scorer=scorer, out=out, batch=3)
    before = contents(out)
    mine.calls()
    damage(folders.part(out, "scores", 1))
    scoring.score(tmp_path / "images", scorer=scorer, out=out, batch=3)
    assert mine.calls() == ["brightness 3"]
    assert contents(out) == before


@pytest.mark.parametrize("batch", [2, 4, 5, 32])
def test_more_images_score_only_what_is_new(tmp_path: Path, mine: Counter, batch: int) -> None:
    scorer, out = (mine.name("brightness"),), tmp_path / "scores"
    drawn(tmp_path / "images", per_prompt=1)
    scoring.score(tmp_path / "images", scorer=scorer, out=out, batch=batch)
    child = folders.parent(tmp_path / "pairs", out)
    mine.calls()
    drawn(tmp_path / "images", per_prompt=3)
    scoring.score(tmp_path / "images", scorer=scorer, out=out, batch=batch)
    assert sum(int(c.split()[1]) for c in mine.calls()) == 6
    scoring.score(tmp_path / "images", scorer=scorer, out=tmp_path / "whole", batch=batch)
    assert contents(out) == contents(tmp_path / "whole")
    assert folders.parent(tmp_path / "pairs", out) == child


def test_other_arguments_are_refused(tmp_path: Path, mine: Counter) -> None:
    drawn(tmp_path / "images", per_prompt=1)
    out = tmp_path / "scores"
    scoring.score(tmp_path / "images", scorer=(mine.name("brightness"),), out=out)
    before = contents(out)
    with pytest.raises(InputError, match="made with batch = 32, not 16"):
        scoring.score(tmp_path / "images", scorer=(mine.name("brightness"),), out=out, batch=16)
    shutil.rmtree(tmp_path / "images")
    worlds.images(tmp_path / "images")
    with pytest.raises(InputError, match="made from another ../images"):
        scoring.score(tmp_path / "images", scorer=(mine.name("brightness"),), out=out)
    with pytest.raises(InputError, match="holds the output of `score`, expected that of `sample` or `import`"):
        scoring.score(out, scorer=(mine.name("brightness"),), out=tmp_path / "more")
    assert contents(out) == before
    assert not (tmp_path / "more").exists()


def without_manifest(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name != "diffalign.json"}


def test_more_scorers_are_added_and_fewer_delete_nothing(tmp_path: Path, mine: Counter) -> None:
    drawn(tmp_path / "images", per_prompt=3, broken=(1,))
    out, (bright, red) = tmp_path / "scores", map(mine.name, ("brightness", "reddish"))
    scoring.score(tmp_path / "images", scorer=(bright,), out=out, batch=5)
    child = folders.parent(tmp_path / "pairs", out)
    mine.calls()
    said = scoring.score(tmp_path / "images", scorer=(bright, red), out=out, batch=5)
    assert mine.calls() == ["reddish 4", "reddish 4"]
    assert said == scoring.score(tmp_path / "images", scorer=(bright, red), out=tmp_path / "both", batch=5).replace(
        "/both", "/scores"
    )
    assert without_manifest(out) == without_manifest(tmp_path / "both")
    assert folders.parent(tmp_path / "pairs", out) == child, "pairs of before are still its children"
    whole = contents(out)
    mine.calls()
    for names in ((bright,), (red,), (red, bright)):
        assert scoring.score(tmp_path / "images", scorer=names, out=out, batch=5) == said
        assert mine.calls() == []
        assert contents(out) == whole
    drawn(tmp_path / "images", per_prompt=4, broken=(1,))
    said = scoring.score(tmp_path / "images", scorer=(bright,), out=out, batch=5)
    assert mine.calls() == ["brightness 1", "brightness 2"]
    assert "; not all have scores by mine.py:reddish, name it again; " in said
    with pytest.raises(InputError, match="scores: scores by mine.py:reddish are missing; run its `score` again"):
        folders.open_folder(out, "score")
    scoring.score(tmp_path / "images", scorer=(red,), out=out, batch=5)
    assert mine.calls() == ["reddish 1", "reddish 2"]
    scoring.score(tmp_path / "images", scorer=(bright, red), out=tmp_path / "more", batch=5)
    assert without_manifest(out) == without_manifest(tmp_path / "more")
    assert folders.open_folder(out, "score").counts == {}


def test_scorers_that_are_being_added(tmp_path: Path, mine: Counter) -> None:
    drawn(tmp_path / "images", per_prompt=3)
    out, names = tmp_path / "scores", (mine.name("reddish"), mine.name("dies"))
    scoring.score(tmp_path / "images", scorer=names[:1], out=out, batch=2)
    mine.calls()
    with pytest.raises(KeyboardInterrupt):
        scoring.score(tmp_path / "images", scorer=names, out=out, batch=2)
    assert mine.calls() == ["dies 2", "brightness 2", "dies 2"]
    with pytest.raises(InputError, match="scores by mine.py:dies are missing"):
        folders.open_folder(out, "score")
    mine.path.with_suffix(".log").write_text("\n" * 5)
    scoring.score(tmp_path / "images", scorer=names, out=out, batch=2)
    assert [c for c in mine.calls() if c.startswith(("dies", "reddish"))] == ["dies 2"] * 3 + ["dies 1"]
    mine.path.with_suffix(".log").write_text("\n" * 5)
    scoring.score(tmp_path / "images", scorer=names, out=tmp_path / "both", batch=2)
    assert without_manifest(out) == without_manifest(tmp_path / "both")
    assert folders.open_folder(out, "score").batches == 5


def test_scorers_that_have_judged_nothing(tmp_path: Path, mine: Counter) -> None:
    """An added one is forgotten where it is not named again; one of the first makes another folder."""
    drawn(tmp_path / "images", per_prompt=1)
    (tmp_path / "bad.py").write_text("def f(images, prompts):\n    raise RuntimeError('no')\n")
    bright, bad = (mine.name("brightness"),), (f"{tmp_path / 'bad.py'}:f",)
    out = tmp_path / "scores"
    scoring.score(tmp_path / "images", scorer=bright, out=out)
    before = contents(out)
    with pytest.raises(InputError, match="RuntimeError: no"):
        scoring.score(tmp_path / "images", scorer=bad, out=out)
    with pytest.raises(InputError, match=r"scores by bad\.py:f are missing"):
        folders.open_folder(out, "score")
    scoring.score(tmp_path / "images", scorer=bright, out=out)
    assert contents(out) == before
    with pytest.raises(InputError, match="RuntimeError: no"):
        scoring.score(tmp_path / "images", scorer=bad, out=tmp_path / "none")
    with pytest.raises(InputError, match=r"was made with scorers = 'bad\.py:f', not 'mine\.py:brightness'; choose "):
        scoring.score(tmp_path / "images", scorer=bright, out=tmp_path / "none")


def test_a_scorer_that_is_another_one_now_is_refused(tmp_path: Path, mine: Counter) -> None:
    drawn(tmp_path / "images", per_prompt=1)
    out = tmp_path / "scores"
    scoring.score(tmp_path / "images", scorer=(mine.name("brightness"),), out=out)
    scoring.score(tmp_path / "images", scorer=(mine.name("reddish"),), out=out)
    before, revision = contents(out), folders.records(out, "scores")[0].revision
    mine.path.write_text(COUNTING + "\n# other code\n")
    for name in ("brightness", "reddish"):
        with pytest.raises(InputError) as caught:
            scoring.score(tmp_path / "images", scorer=("gold", mine.name(name)), out=out)
        said = f"{out}: was made with revision of mine.py:{name} = '{revision}', not '"
        assert str(caught.value).startswith(said)
        assert str(caught.value).endswith("'; choose another --out or the old value")
        assert "\n" not in str(caught.value)
    assert contents(out) == before


def test_scorers_are_told_apart(tmp_path: Path, mine: Counter) -> None:
    drawn(tmp_path / "images", per_prompt=1)
    for names, said in (
        ((mine.name("brightness"),) * 2, "mine.py:brightness: is named twice"),
        ((), "none is named"),
        (("no_such",), "scorer 'no_such'"),
    ):
        with pytest.raises(InputError, match=said):
            scoring.score(tmp_path / "images", scorer=names, out=tmp_path / "scores")
    with pytest.raises(InputError, match="batch = 0: expected at least 1"):
        scoring.score(tmp_path / "images", scorer=(mine.name("brightness"),), out=tmp_path / "scores", batch=0)
    assert not (tmp_path / "scores").exists()


def test_a_scorer_that_does_not_load_leaves_nothing(tmp_path: Path) -> None:
    drawn(tmp_path / "images", per_prompt=1)
    clip = tmp_path / "clip"
    clip.mkdir()
    (clip / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}')
    (clip / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="open_clip cannot load it"):
        scoring.score(tmp_path / "images", scorer=(f"clip={clip}",), out=tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


# --- what cannot be judged


def test_unreadable_images_say_so_and_the_rest_is_kept(tmp_path: Path, mine: Counter) -> None:
    rows = drawn(tmp_path / "images", per_prompt=3, broken=(1, 4))
    out, scorer = tmp_path / "scores", tuple(map(mine.name, ("brightness", "reddish")))
    said = scoring.score(tmp_path / "images", scorer=scorer, out=out, batch=4)
    assert f"4 values missing (first: image {rows[1].id}: is no picture)" in said
    found = folders.records(out, "scores")
    assert [s.value is None for s in found[::2]] == [n in (1, 4) for n in range(9)]
    assert found[2].reason == f"image {rows[1].id}: is no picture"
    assert found[0].reason is None
    line = table(out)[4]
    assert (line["mine.py:brightness"], line["mine.py:reddish"]) == ("", "")
    assert rows[4].id in line["reason"]
    assert mine.calls() == ["brightness 3", "reddish 3"] * 2 + ["brightness 1", "reddish 1"]
    before = contents(out)
    scoring.score(tmp_path / "images", scorer=scorer, out=out, batch=4)
    assert mine.calls() == []
    assert contents(out) == before


def test_truncated_pictures_are_unreadable(tmp_path: Path, mine: Counter) -> None:
    drawn(tmp_path / "images", per_prompt=1)
    rows = folders.records(tmp_path / "images", "images")
    cut = rows[0].image | {"bytes": rows[0].image["bytes"][:-200]}
    rows[0] = Image(**rows[0].row() | {"image": cut})
    folders.write_part(tmp_path / "images", "images", 0, rows)
    scoring.score(tmp_path / "images", scorer=(mine.name("brightness"),), out=tmp_path / "scores")
    found = folders.records(tmp_path / "scores", "scores")
    assert found[0].value is None
    assert "OSError" in found[0].reason
    assert None not in [s.value for s in found[1:]]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("[float('nan') if p == 'the blue square' else 1.0 for p in prompts]", "the score is nan"),
        ("[float('inf') if p == 'the blue square' else 1.0 for p in prompts]", "the score is inf"),
        ("[1 / (p != 'the blue square') for p in prompts]", "ZeroDivisionError: division by zero"),
    ],
)
def test_scores_that_are_no_numbers(tmp_path: Path, body: str, said: str) -> None:
    rows = drawn(tmp_path / "images", per_prompt=2)
    (tmp_path / "odd.py").write_text(f"def f(images, prompts):\n    return {body}\n")
    scoring.score(tmp_path / "images", scorer=(f"{tmp_path / 'odd.py'}:f",), out=tmp_path / "scores")
    found = folders.records(tmp_path / "scores", "scores")
    assert [s.value for s in found] == [1.0, None, 1.0] * 2
    assert found[1].reason == f"image {rows[1].id}: {said}"


def test_a_bug_in_a_scorer_is_not_a_missing_score(tmp_path: Path) -> None:
    drawn(tmp_path / "images", per_prompt=1)
    (tmp_path / "odd.py").write_text(
        "def f(images, prompts):\n    return undefined\ndef g(images, prompts):\n    return 1"
    )
    with pytest.raises(InputError, match=r"odd\.py, line 2: NameError: name 'undefined' is not defined"):
        scoring.score(tmp_path / "images", scorer=(f"{tmp_path / 'odd.py'}:f",), out=tmp_path / "a")
    assert not (tmp_path / "a" / "scores.csv").exists()
    with pytest.raises(InputError, match="gave shape \\(\\), expected \\(3,\\)"):
        scoring.score(tmp_path / "images", scorer=(f"{tmp_path / 'odd.py'}:g",), out=tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(images):\n    return 1", r"odd\.py: TypeError: f\(\) takes 1 positional argument but 2 were given"),
        ("def f(images, prompts):\n    raise RuntimeError('a\\nb')", r"odd\.py, line 2: RuntimeError: a b$"),
        ("import torch\ndef f(i, p):\n    return torch.ones(len(i), requires_grad=True)", "gave Tensor, expected an"),
        ("{}['x']", r"odd\.py, line 1: KeyError: 'x'$"),
        ("\nraise RuntimeError('no card')", r"odd\.py, line 2: RuntimeError: no card$"),
    ],
)
def test_a_mistake_in_somebodys_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    drawn(tmp_path / "images", per_prompt=1)
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(InputError, match=said):
        scoring.score(tmp_path / "images", scorer=(f"{tmp_path / 'odd.py'}:f",), out=tmp_path / "out")


def test_what_a_function_does_to_pictures_no_other_scorer_sees(tmp_path: Path, mine: Counter) -> None:
    drawn(tmp_path / "images", per_prompt=2)
    (tmp_path / "paints.py").write_text(
        "def f(images, prompts):\n    for image in images:\n        image.paste((0, 0, 0), (0, 0, *image.size))\n"
        "    return [0.0] * len(images)"
    )
    scoring.score(tmp_path / "images", scorer=(mine.name("brightness"),), out=tmp_path / "alone")
    both = (f"{tmp_path / 'paints.py'}:f", mine.name("brightness"))
    scoring.score(tmp_path / "images", scorer=both, out=tmp_path / "both")
    alone, beside = (
        [s.value for s in folders.records(tmp_path / name, "scores") if s.scorer == "mine.py:brightness"]
        for name in ("alone", "both")
    )
    assert min(alone) > 0
    assert beside == alone


def test_each_scorer_without_a_value_says_why(tmp_path: Path) -> None:
    rows = drawn(tmp_path / "images", per_prompt=1, broken=(2,))
    (tmp_path / "odd.py").write_text(
        "nan = float('nan')\ndef f(images, prompts):\n    return [nan] * len(images)\n"
        "def g(images, prompts):\n    return [1.0] * len(images)\n"
        "def h(images, prompts):\n    raise ValueError('too small')"
    )
    names = tuple(f"{tmp_path / 'odd.py'}:{name}" for name in "fgh")
    said = scoring.score(tmp_path / "images", scorer=names, out=tmp_path / "out")
    image = f"image {rows[0].id}"
    wanted = f"odd.py:f: {image}: the score is nan; odd.py:h: {image}: ValueError: too small"
    assert f"7 values missing (first: {wanted})" in said
    found = [row["reason"] for row in table(tmp_path / "out")]
    assert found[0] == wanted
    assert found[2] == f"image {rows[2].id}: is no picture", "who says it is not said of all"


# --- image folders


def photos(place: Path, rows: list[tuple[str, str]], header: str = "file_name,prompt") -> Path:
    place.mkdir(exist_ok=True)
    for n, (name, _) in enumerate(rows):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(worlds.png(n, (20 + n, 30)))
    lines = [header, *(f'{name},"{text}"' for name, text in rows)]
    (place / "metadata.csv").write_text("\n".join(lines) + "\n")
    return place


ROWS = [("a.png", "a red circle"), ("sub/b.png", "Ein Haus, groß"), ("c.png", "a red circle")]


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute after everything was written."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 60_000_000_000)


@pytest.fixture
def pictures_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are read, one by one."""
    found, read = [], Path.read_bytes

    def reading(path: Path) -> bytes:
        if path.suffix in image_folder.PICTURES:
            found.append(path.name)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", reading)
    return found


@pytest.mark.usefixtures("late")
def test_image_folders_hold_everything(tmp_path: Path, mine: Counter) -> None:
    place, out = photos(tmp_path / "photos", ROWS), tmp_path / "deep" / "scores"
    said = scoring.score(place, scorer=(mine.name("brightness"),), out=out, batch=2)
    assert "3 images" in said
    assert [p.count for p in folders.records(out, "prompts")] == [2, 1]
    images = folders.records(out, "images")
    assert [(i.image["path"], i.width, i.index) for i in images] == [
        ("../../photos/a.png", 20, 0), ("../../photos/sub/b.png", 21, 0), ("../../photos/c.png", 22, 1),
    ]  # fmt: skip
    assert images[0].id == images[0].sha256
    assert list(folders.image_bytes(out, [images[1].id])) == [(images[1].id, worlds.png(1, (21, 30)))]
    assert folders.texts(out)[images[1].prompt_id] == "Ein Haus, groß"
    assert "config_name: images" in (out / "README.md").read_text()
    before = contents(out)
    mine.calls()
    scoring.score(place, scorer=(mine.name("brightness"),), out=out, batch=2)
    assert mine.calls() == []
    assert contents(out) == before


def test_image_folders_grow_at_the_end_only(tmp_path: Path, mine: Counter) -> None:
    out, scorer = tmp_path / "scores", (mine.name("brightness"),)
    scoring.score(photos(tmp_path / "photos", ROWS), scorer=scorer, out=out, batch=2)
    mine.calls()
    more = [*ROWS, ("d.png", "a photo")]
    scoring.score(photos(tmp_path / "photos", more), scorer=scorer, out=out, batch=2)
    assert mine.calls() == ["brightness 1"]
    assert len(table(out)) == 4
    before = contents(out)
    for changed in (more[::-1], more[:3], [(n, "another text") for n, _ in more]):
        with pytest.raises(InputError, match="restore it or choose another --out"):
            scoring.score(photos(tmp_path / "photos", changed), scorer=scorer, out=out, batch=2)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file_name,prompt\n", "holds no row"),
        ("", "line 1: column file_name is missing; expected file_name, prompt"),
        ("file_name,caption\na.png,x\n", "line 1: column prompt is missing"),
        ("file_name,prompt\na.png,\n", "line 2, field prompt: is empty"),
        ("file_name,prompt\na.png\n", "line 2, field prompt: is empty"),
        ("file_name,prompt\n,x\n", "line 2, field file_name: is empty"),
        ("file_name,prompt\na.png,x,y\n", "line 2: more cells than columns"),
        ("file_name,prompt\nc.png,x\nz.png,x\n", "line 3, field file_name: .*z.png is not there"),
        ("file_name,prompt\nsub,x\n", "line 2, field file_name: .*sub is not there"),
        ("file_name,prompt\n../a.png,x\n", "line 2, field file_name: '../a.png' lies outside"),
        ("file_name,prompt\nsub/../../a.png,x\n", "lies outside"),
        ("file_name,prompt\n/etc/passwd,x\n", "'/etc/passwd' lies outside"),
        ("file_name,prompt\nmetadata.csv,x\n", "line 2, field file_name: .* is not a picture that can be read"),
        ("file_name,prompt\ncut.png,x\n", "line 2, field file_name: .* is not a picture that can be read"),
        ("file_name,prompt\na.png,x\na.png,x\n", "line 3, field file_name: a.png is the picture of line 2 again"),
        ('file_name,prompt\na.png,"x\n', "is not CSV"),
        (b"file_name,prompt\na.png,x\nc.png,\xff\n", "line 3: is not UTF-8 \\(byte 31\\)"),
    ],
)
def test_bad_image_folders(text: str | bytes, said: str, tmp_path: Path, mine: Counter) -> None:
    place = photos(tmp_path / "photos", ROWS)
    (tmp_path / "a.png").write_bytes(worlds.png(9))
    shutil.copy(place / "a.png", place / "copy.png")
    (place / "cut.png").write_bytes(worlds.png(8)[:-40])
    (place / "metadata.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=said) as caught:
        scoring.score(place, scorer=(mine.name("brightness"),), out=tmp_path / "scores")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "scores").exists()


def test_files_that_are_no_pictures_are_named_and_the_rest_is_kept(
    tmp_path: Path, mine: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    place = photos(tmp_path / "photos", ROWS)
    (place / "metadata.csv").unlink()
    (place / "b.png").write_bytes(b"no picture")
    (place / "d.png").write_bytes(worlds.png(8)[:-40])
    shutil.copy(place / "a.png", place / "copy.png")
    said = scoring.score(place, scorer=(mine.name("brightness"),), out=tmp_path / "scores")
    assert "4 images scored" in said
    assert f"; 2 files left out (first: {place / 'b.png'}, field file_name: " in said
    assert [r.message.split(", ")[0] for r in caplog.records] == [str(place / "b.png"), str(place / "d.png")]
    lines = {line["file"]: line["mine.py:brightness"] for line in table(tmp_path / "scores")}
    assert sorted(lines) == ["a.png", "c.png", "copy.png", "sub/b.png"]
    assert {line["row"] for line in table(tmp_path / "scores")} == {""}
    assert lines["copy.png"] == lines["a.png"] != lines["c.png"]
    assert mine.calls() == ["brightness 4"]


def test_spreadsheets_write_a_mark_first(tmp_path: Path) -> None:
    place = photos(tmp_path / "photos", ROWS)
    (place / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + b"prompt,file_name,more\r\n two ,a.png,1\r\n")
    prompts, images, broken, _ = image_folder.read(place, tmp_path / "out", {})
    assert not broken
    assert [p.text for p in prompts] == ["two"]
    assert images[0].image["path"] == "../photos/a.png"


def test_folders_without_metadata(tmp_path: Path, mine: Counter) -> None:
    place = photos(tmp_path / "photos", ROWS)
    (place / "metadata.csv").unlink()
    scoring.score(place, scorer=(mine.name("brightness"),), out=tmp_path / "bare", batch=2)
    assert [line["prompt"] for line in table(tmp_path / "bare")] == ["", "", ""]
    (tmp_path / "judge.py").write_text("def f(images, prompts):\n    return [float(len(p)) for p in prompts]\n")
    for name, text in (("a.txt", "a red circle\n"), ("c.txt", "blau"), ("sub/b.txt", "two words")):
        (place / name).write_text(text)
    scoring.score(place, scorer=(f"{tmp_path / 'judge.py'}:f",), out=tmp_path / "said")
    assert [(x["prompt"], x["judge.py:f"]) for x in table(tmp_path / "said")] == [
        ("a red circle", "12.0"), ("blau", "4.0"), ("two words", "9.0"),
    ]  # fmt: skip
    (place / "metadata.jsonl").write_text(
        '{"file_name": "c.png", "prompt": "one"}\n\n{"file_name": "a.png", "prompt": "two"}'
    )
    scoring.score(place, scorer=(f"{tmp_path / 'judge.py'}:f",), out=tmp_path / "lines")
    assert [x["prompt"] for x in table(tmp_path / "lines")] == ["one", "two"]
    (place / "metadata.jsonl").write_text('{"file_name": "c.png"}')
    with pytest.raises(InputError, match="metadata.jsonl, line 1, field prompt: expected a text"):
        scoring.score(place, scorer=(mine.name("brightness"),), out=tmp_path / "bad")


def test_folders_without_pictures(tmp_path: Path, mine: Counter) -> None:
    (tmp_path / "empty").mkdir()
    for place, said in (("empty", "metadata.csv: no such file, and no pictures beside"), ("gone", "no such folder")):
        with pytest.raises(InputError, match=said):
            scoring.score(tmp_path / place, scorer=(mine.name("brightness"),), out=tmp_path / "scores")


def test_a_scorer_that_needs_prompts_says_so(tmp_path: Path) -> None:
    place = photos(tmp_path / "photos", ROWS)
    (place / "metadata.csv").unlink()
    with pytest.raises(InputError, match=r"has no prompt, which gold needs \(3 such images\)"):
        scoring.score(place, scorer=("gold",), out=tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


# --- what is remembered of the pictures of a folder


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("listed", [True, False])
def test_a_second_run_reads_no_picture(
    listed: bool, tmp_path: Path, mine: Counter, pictures_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, out, scorer = photos(tmp_path / "photos", ROWS), tmp_path / "scores", (mine.name("brightness"),)
    (place / "linked.png").symlink_to(place / "sub" / "b.png")
    (place / "elsewhere").symlink_to(photos(tmp_path / "more", [("e.png", "a photo")]))
    with (place / "metadata.csv").open("a") as rows:
        rows.write("linked.png,another text\na.png,another text\nelsewhere/e.png,a photo\n")
    if not listed:
        (place / "metadata.csv").unlink()
        (place / "linked.png").unlink()
        (place / "elsewhere").unlink()
    said = scoring.score(place, scorer=scorer, out=out)
    assert sorted(set(pictures_read)) == ["a.png", "b.png", "c.png", *(["e.png"] if listed else [])]
    before = contents(out)
    assert len(json.loads(before["files.json"])["files"]) == (4 if listed else 3), "a link is the file it leads to"
    pictures_read.clear()
    mine.calls()
    written = []
    monkeypatch.setattr(folders, "write_part", lambda *part: written.append(part))
    assert scoring.score(place, scorer=scorer, out=out) == said
    assert (pictures_read, mine.calls(), written) == ([], [], [])
    assert contents(out) == before


@pytest.mark.usefixtures("late")
def test_pictures_that_moved_are_found_where_they_are(tmp_path: Path, mine: Counter) -> None:
    place, out, scorer = photos(tmp_path / "photos", ROWS), tmp_path / "scores", (mine.name("brightness"),)
    scoring.score(place, scorer=scorer, out=out)
    mine.calls()
    scoring.score(place.rename(tmp_path / "moved"), scorer=scorer, out=out)
    assert mine.calls() == []
    places = [i.image["path"] for i in folders.records(out, "images")]
    assert places == ["../moved/a.png", "../moved/sub/b.png", "../moved/c.png"]
    assert list(json.loads((out / "files.json").read_text())["files"]) == places


@pytest.mark.usefixtures("late")
def test_only_new_pictures_are_read(tmp_path: Path, mine: Counter, pictures_read: list[str]) -> None:
    place, out, scorer = photos(tmp_path / "photos", ROWS), tmp_path / "scores", (mine.name("brightness"),)
    (place / "cut.png").write_bytes(worlds.png(8)[:-40])
    with (place / "metadata.csv").open("a") as rows:
        rows.write("cut.png,a photo\n")
    scoring.score(place, scorer=scorer, out=out)
    (place / "d.png").write_bytes(worlds.png(9))
    with (place / "metadata.csv").open("a") as rows:
        rows.write("d.png,a photo\n")
    pictures_read.clear()
    scoring.score(place, scorer=scorer, out=out)
    # once to know it, once to judge it; what is no picture is not remembered
    assert pictures_read.count("d.png") == 2
    assert set(pictures_read) == {"cut.png", "d.png"}
    assert len(json.loads((out / "files.json").read_text())["files"]) == 4


@pytest.mark.usefixtures("late")
def test_a_picture_that_changed_is_seen_though_its_time_is_set_back(tmp_path: Path, mine: Counter) -> None:
    place, out, scorer = photos(tmp_path / "photos", ROWS), tmp_path / "scores", (mine.name("brightness"),)
    for n in (1, 2):  # bytes without compression, of one length
        with PIL.Image.open(io.BytesIO(worlds.png(n))) as picture:
            picture.save(tmp_path / f"{n}.bmp")
    (place / "c.png").write_bytes((tmp_path / "1.bmp").read_bytes())
    scoring.score(place, scorer=scorer, out=out)
    before = (place / "c.png").stat()
    while (place / "c.png").stat().st_ctime_ns == before.st_ctime_ns:  # at most a tick of the kernel's clock
        (place / "c.png").write_bytes((tmp_path / "2.bmp").read_bytes())
        os.utime(place / "c.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (place / "c.png").stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(InputError, match="row 3 is not the one"):
        scoring.score(place, scorer=scorer, out=out)


@pytest.mark.parametrize(
    "kept",
    ["", "{", "[]", '{"format": 0, "files": {}}', '{"format": 1}', '{"format": 1, "files": {"a": [1]}}',
     '{"format": 1, "files": {"../photos/a.png": [1, 2, 3, 4, 5, 6, 7]}}'],
)  # fmt: skip
@pytest.mark.usefixtures("late")
def test_what_is_remembered_may_be_lost(kept: str, tmp_path: Path, mine: Counter, pictures_read: list[str]) -> None:
    place, out, scorer = photos(tmp_path / "photos", ROWS), tmp_path / "scores", (mine.name("brightness"),)
    scoring.score(place, scorer=scorer, out=out)
    before = json.loads((out / "files.json").read_text())
    (out / "files.json").write_text(kept)
    pictures_read.clear()
    scoring.score(place, scorer=scorer, out=out)
    assert sorted(pictures_read) == ["a.png", "b.png", "c.png"]
    after = json.loads((out / "files.json").read_text())
    assert after.keys() == before.keys()
    # but for when it was read
    assert {n: v[:3] + v[4:] for n, v in after["files"].items()} == {
        n: v[:3] + v[4:] for n, v in before["files"].items()
    }


def test_just_written_is_not_remembered(
    tmp_path: Path, mine: Counter, pictures_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one tick of a file system's clock a file may change again and bear the same time."""
    place, out, scorer = photos(tmp_path / "photos", ROWS), tmp_path / "scores", (mine.name("brightness"),)
    times = {name: (place / name).stat().st_ctime_ns for name, _ in ROWS}
    monkeypatch.setattr(time, "time_ns", lambda: min(times.values()) + seen.MARGIN)
    scoring.score(place, scorer=scorer, out=out)
    assert not (out / "files.json").exists()
    pictures_read.clear()
    monkeypatch.setattr(time, "time_ns", lambda: max(times.values()) + seen.MARGIN + 1)
    scoring.score(place, scorer=scorer, out=out)
    assert len(pictures_read) == 3
    scoring.score(place, scorer=scorer, out=out)
    assert len(pictures_read) == 3


@pytest.mark.usefixtures("late")
def test_all_that_is_known_of_a_file_has_to_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(worlds.png(0))
    known = seen.measure(path, None)
    assert seen.measure(path, known) is known
    newest = max(known.written, known.changed)
    other = {
        "size": known.size + 1, "written": known.written - 1, "changed": known.changed - 1,
        "read": newest + seen.MARGIN,
    }  # fmt: skip
    for field, value in other.items():
        wrong = dataclasses.replace(known, **{field: value}, sha256="of another")
        assert seen.measure(path, wrong).sha256 == known.sha256, field
    early = dataclasses.replace(known, read=newest + seen.MARGIN + 1)
    assert seen.measure(path, early) is early


@pytest.mark.usefixtures("late")
def test_a_change_while_a_file_is_read_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "a.png", Path.read_bytes
    path.write_bytes(worlds.png(0))

    def disturbed(path: Path) -> bytes:
        data = read(path)
        path.write_bytes(worlds.png(1, (40, 40)))
        return data

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", disturbed)
        known = seen.measure(path, None)
    assert (known.width, seen.measure(path, known).width) == (32, 40)


# --- tables


def tables(place: Path) -> dict[str, Path]:
    """The same four rows, one of them no picture and two of them one picture, as Parquet and as a webdataset."""
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["a red circle", "the blue square", "a photo", "a red circle"]
    data = [worlds.png(0), worlds.png(1), b"no picture", worlds.png(0)]
    (place / "set").mkdir(parents=True)
    images = [{"bytes": d, "path": None} for d in data]
    pq.write_table(pa.table({"caption": texts, "image": images}), place / "set" / "a.parquet")
    with tarfile.open(place / "b.tar", "w") as tar:
        for n, (text, picture) in enumerate(zip(texts, data, strict=True)):
            for name, content in ((f"{n}.png", picture), (f"{n}.json", json.dumps({"prompt": text}).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {"parquet": place / "set" / "a.parquet", "folder": place / "set", "tar": place / "b.tar"}


@pytest.mark.parametrize("kind", ["parquet", "folder", "tar"])
def test_tables_are_stored_and_scored(
    kind: str, tmp_path: Path, mine: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, out = tables(tmp_path / "in")[kind], tmp_path / "scores"
    monkeypatch.setattr("diffalign.inputs.PART", 1)
    said = scoring.score(place, scorer=(mine.name("brightness"),), out=out)
    assert "2 images scored" in said
    assert "1 rows left out (first: " in said
    assert "field image: unreadable image" in said or "field png: unreadable image" in said
    assert mine.calls() == ["brightness 2"]
    assert [(p.text, p.count) for p in folders.records(out, "prompts")] == [("a red circle", 2), ("the blue square", 1)]
    images = folders.records(out, "images")
    assert [i.image["bytes"] for i in images] == [worlds.png(0), worlds.png(1)]
    # each row has its line, but for the one without a picture
    file = "b.tar" if kind == "tar" else "a.parquet"
    shown = [(line["file"], line["row"], line["image_id"], line["prompt"]) for line in table(out)]
    assert shown == [
        (file, "0", images[0].id, "a red circle"), (file, "3", images[0].id, "a red circle"),
        (file, "1", images[1].id, "the blue square"),
    ]  # fmt: skip
    before = contents(out)
    assert scoring.score(place, scorer=(mine.name("brightness"),), out=out) == said
    assert mine.calls() == []
    assert contents(out) == before
    (out / "rows.csv").unlink()
    assert scoring.score(place, scorer=(mine.name("brightness"),), out=out) == said
    assert mine.calls() == []
    assert contents(out) == before


@pytest.mark.parametrize("kind", ["tables", "photos"])
def test_scores_may_lie_in_the_folder_of_the_pictures(kind: str, tmp_path: Path, mine: Counter) -> None:
    if kind == "tables":
        place = tables(tmp_path / "in")["folder"]
    else:
        place = photos(tmp_path / "in", ROWS)
        (place / "metadata.csv").unlink()
    out = place / "scores"
    said = scoring.score(place, scorer=(mine.name("brightness"),), out=out)
    before = contents(place)
    assert mine.calls()
    assert scoring.score(place, scorer=(mine.name("brightness"),), out=out) == said
    assert mine.calls() == []
    assert contents(place) == before
    scoring.score(place, scorer=(mine.name("brightness"),), out=tmp_path / "beside")
    assert table(tmp_path / "beside") == table(out)


def test_rows_of_every_kind_of_table_are_named(tmp_path: Path, mine: Counter) -> None:
    """By the file inside the folder that was named, and the row's number from 0, or its key."""
    import tarfile

    place = tmp_path / "in"
    (place / "deep").mkdir(parents=True)
    with tarfile.open(place / "deep" / "b.tar", "w") as tar:
        for n, key in enumerate(("x/first", "x/second")):
            member = tarfile.TarInfo(f"{key}.png")
            member.size = len(worlds.png(n))
            tar.addfile(member, io.BytesIO(worlds.png(n)))
    scoring.score(place, scorer=(mine.name("brightness"),), out=tmp_path / "tar")
    assert [(x["file"], x["row"]) for x in table(tmp_path / "tar")] == [
        ("deep/b.tar", "x/first"), ("deep/b.tar", "x/second"),
    ]  # fmt: skip
    for n in (0, 1):
        (place / f"{n}.png").write_bytes(worlds.png(n))
    for name, text in (
        ("a.csv", 'image,prompt\n1.png,"two\nlines"\n0.png,x\n'),
        ("a.jsonl", '{"image": "1.png", "prompt": "x"}\n\n{"image": "0.png", "prompt": "x"}\n'),
    ):
        (place / name).write_text(text)
        out = tmp_path / name
        scoring.score(place / name, scorer=(mine.name("brightness"),), out=out)
        lines = table(out)
        assert [(x["file"], x["row"]) for x in lines] == [(name, "0"), (name, "1")]
        wanted = [float(np.asarray(PIL.Image.open(place / f"{n}.png").convert("RGB")).mean()) for n in (1, 0)]
        assert [float(x["mine.py:brightness"]) for x in lines] == wanted


def test_a_table_that_changed_far_from_its_end_is_seen(tmp_path: Path, mine: Counter) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, pictures = np.random.default_rng(0), []
    for _ in range(9):
        sink = io.BytesIO()
        PIL.Image.fromarray(rng.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(sink, format="BMP")
        pictures.append(sink.getvalue())
    place, out = tmp_path / "a.parquet", tmp_path / "scores"
    images = [{"bytes": p, "path": None} for p in pictures[:8]]
    pq.write_table(pa.table({"caption": ["a red circle"] * 8, "image": images}), place, compression="none")
    scoring.score(place, scorer=(mine.name("brightness"),), out=out)
    before = place.read_bytes()
    assert before.index(pictures[0]) + len(pictures[0]) < len(before) - 65536
    place.write_bytes(before.replace(pictures[0], pictures[8]))
    with pytest.raises(InputError, match="scores: was made with source = "):
        scoring.score(place, scorer=(mine.name("brightness"),), out=out)


def test_an_interrupted_store_is_made_again(tmp_path: Path, mine: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    place, out = tables(tmp_path / "in")["tar"], tmp_path / "scores"
    monkeypatch.setattr("diffalign.inputs.PART", 1)
    write, done = folders.write_part, []

    def dies(*given: object) -> None:
        done.append(given)
        if len(done) == 2:
            raise KeyboardInterrupt
        write(*given)

    monkeypatch.setattr(folders, "write_part", dies)
    with pytest.raises(KeyboardInterrupt):
        scoring.score(place, scorer=(mine.name("brightness"),), out=out)
    with pytest.raises(InputError, match="parts are missing; run its `score` again"):
        folders.open_folder(out, "score")
    monkeypatch.setattr(folders, "write_part", write)
    scoring.score(place, scorer=(mine.name("brightness"),), out=out)
    scoring.score(place, scorer=(mine.name("brightness"),), out=tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.xyz", b"", "x.xyz: expected "),
        ("x.csv", b"a,b\n1,2\n", "has no column image or file_name"),
        ("x.json", b"{}", "x.json: expected a list of objects"),
        ("x.jsonl", b'{"image": "gone.png", "prompt": "x"}\n', "no row can be used .first: .*gone.png is not there"),
        ("x.jsonl", b'{"image": "../x.png", "prompt": "x"}\n', "lies outside the data folder"),
        ("x.tar", b"no tar", "is not a whole tar"),
        ("x.parquet", b"no parquet", "is not a whole Parquet file"),
    ],
)
def test_bad_tables(name: str, data: bytes, said: str, tmp_path: Path, mine: Counter) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        scoring.score(tmp_path / name, scorer=(mine.name("brightness"),), out=tmp_path / "scores")
    assert "\n" not in str(caught.value)


def test_one_file_under_several_prompts_is_seen_once(tmp_path: Path, mine: Counter) -> None:
    (tmp_path / "same.py").write_text(
        "CALLS = []\ndef f(images, prompts):\n    CALLS.append(len({id(i) for i in images}))\n"
        "    return [float(len(p)) for p in prompts]\n"
    )
    prompts = [Prompt(prompt_id(t), t) for t in worlds.TEXTS[:3]]
    rows = []
    for n in range(9):
        data, prompt = worlds.png(n // 3 if n < 6 else n - 6), prompts[n % 3]
        name = digest("picture", n)
        rows.append(Image(name, prompt.id, {"bytes": data, "path": None}, digest(data), 32, 32, index=n // 3))
    folders.begin(tmp_path / "images", folders.Manifest("sample", {}, 1))
    folders.write_part(tmp_path / "images", "prompts", 0, prompts)
    folders.write_part(tmp_path / "images", "images", 0, rows)
    scorer = (f"{tmp_path / 'same.py'}:f",)
    scoring.score(tmp_path / "images", scorer=scorer, out=tmp_path / "scores", batch=2)
    calls = next(m for n, m in sys.modules.items() if n.startswith("scorer_same_")).CALLS
    assert calls == [2, 1], "three files, two a batch, though nine images"
    found = {s.image_id: s.value for s in folders.records(tmp_path / "scores", "scores")}
    assert found == {r.id: float(len(worlds.TEXTS[n % 3])) for n, r in enumerate(rows)}
    assert len({r.id for r in rows}) == 9


def test_processes_share_the_work(tmp_path: Path, mine: Counter) -> None:
    drawn(tmp_path / "images", per_prompt=3)
    words = ("score", str(tmp_path / "images"), "--scorer", mine.name("brightness"), "--batch", "2", "--out")
    launch = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "diffalign")
    done = subprocess.run([*launch, *words, str(tmp_path / "both")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "9 images scored" in done.stdout
    assert "process 2 of 2: 2 batches done" in done.stdout
    assert sorted(mine.calls()) == ["brightness 1"] + ["brightness 2"] * 4
    scoring.score(tmp_path / "images", scorer=(mine.name("brightness"),), out=tmp_path / "alone", batch=2)
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")


def test_a_second_run_over_ten_thousand_images_loads_nothing_heavy(tmp_path: Path) -> None:
    prompt, data = Prompt(prompt_id("x"), "x"), worlds.png(0)
    rows = [
        Image(digest("i", n), prompt.id, {"bytes": data, "path": None}, digest("file", n), 32, 32, index=n)
        for n in range(10_000)
    ]
    place, out = tmp_path / "images", tmp_path / "scores"
    folders.begin(place, folders.Manifest("sample", {}, 1))
    folders.write_part(place, "prompts", 0, [prompt])
    folders.write_part(place, "images", 0, rows)
    (tmp_path / "fast.py").write_text("def f(images, prompts):\n    return [1.0] * len(images)\n")
    words = ["score", str(place), "--scorer", f"{tmp_path / 'fast.py'}:f", "--out", str(out)]
    scoring.score(place, scorer=(words[3],), out=out)
    before = contents(out)
    again = "import sys, diffalign.cli; diffalign.cli.main(); print({'torch', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", again, *words], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n"), "a run that has nothing to do loads neither"
    assert contents(out) == before


# --- pictures that are odd


def odd(kind: str) -> bytes:
    """A picture of even grey, 100 of 255, in another mode; or one that is none."""
    sink, grey = io.BytesIO(), PIL.Image.new("RGB", (6, 5), (100, 100, 100))
    if kind == "animated":
        grey.save(sink, "GIF", save_all=True, append_images=[PIL.Image.new("RGB", (6, 5), "white")])
    elif kind == "sixteen":
        PIL.Image.new("I;16", (6, 5), 100 * 257).save(sink, "PNG")
    elif kind == "cmyk":
        PIL.Image.new("CMYK", (6, 5), (0, 0, 0, 155)).save(sink, "TIFF")
    elif kind == "rgba":
        # half of black over white
        PIL.Image.new("RGBA", (6, 5), (0, 0, 0, 155)).save(sink, "PNG")
    elif kind == "gigantic":
        sink.write(b"\x89PNG\r\n\x1a\n")
        for chunk in (b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0), b"IDAT" + bytes(100)):
            sink.write(struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)))
    else:
        made = {"palette": grey.convert("P"), "grey": grey.convert("L"), "pixel": grey.crop((0, 0, 1, 1))}
        made.get(kind, grey).save(sink, "PNG")
    return sink.getvalue()[: -40 if kind == "cut" else None]


def test_odd_pictures_are_read_or_said_to_be_unreadable(tmp_path: Path, mine: Counter) -> None:
    kinds = ("animated", "sixteen", "cmyk", "rgba", "palette", "grey", "pixel", "plain", "gigantic", "cut", "empty")
    prompt, rows = Prompt(prompt_id("x"), "x"), []
    for kind in kinds:
        data = odd(kind) if kind != "empty" else b""
        rows.append(Image(kind, prompt.id, {"bytes": data, "path": None}, digest(kind), 6, 5))
    folders.begin(tmp_path / "images", folders.Manifest("sample", {}, 1))
    folders.write_part(tmp_path / "images", "prompts", 0, [prompt])
    folders.write_part(tmp_path / "images", "images", 0, rows)
    said = scoring.score(tmp_path / "images", scorer=(mine.name("brightness"),), out=tmp_path / "scores")
    assert "11 images" in said
    assert "3 values missing" in said
    for score in folders.records(tmp_path / "scores", "scores"):
        if score.image_id in ("gigantic", "cut", "empty"):
            assert score.value is None
            assert score.reason.startswith(f"image {score.image_id}: ")
            assert "\n" not in score.reason
            assert ("DecompressionBombError" in score.reason) == (score.image_id == "gigantic")
        else:
            assert score.value == pytest.approx(100, abs=2), score.image_id

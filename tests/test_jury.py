"""Pictures judged as they are drawn: the bytes that `score` leaves afterwards, whatever was interrupted."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import contents, launched

from diffalign import scoring
from diffalign.drawing import Artist, Drawn
from diffalign.folders import load
from diffalign.records import InputError
from diffalign.sampling import sample
from diffalign.scoring import score

SCORER = """
import numpy as np

def bright(images, prompts):
    values = np.array([np.asarray(i).mean() for i in images])
    return np.where([p == "large green" for p in prompts], np.nan, values)
"""
ROWS = [{"text": text} for text in ("a red circle", "the blue square", "large green", "a small red square")]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(SCORER)
    write(tmp_path, ROWS)
    return tmp_path


def write(place: Path, rows: list[dict]) -> None:
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw(model: Path, place: Path, name: str, *, judged: bool, **changes: object) -> str:
    """Draw into place/NAME/images; judge into place/NAME/scores on the way, or afterwards."""
    out = place / name
    names = (f"{place}/mine.py:bright", "gold")
    asked = {"batch": 3, "steps": 1, "per_prompt": 2} | changes
    judges = {"scorer": names, "scores": out / "scores"} if judged else {}
    said = sample(model=str(model), prompts=place / "prompts.jsonl", out=out / "images", **asked, **judges)
    return said if judged else score(out / "images", scorer=names, out=out / "scores", batch=asked["batch"])


def refuse(*_: object) -> None:
    raise AssertionError("a picture is decoded")


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(scoring, "_decode", refuse)


def test_they_are_the_scores_of_the_files_and_nothing_is_decoded(
    models: dict[str, Path], place: Path, no_decoding: Callable[[], None]
) -> None:
    said = draw(models["sdxl"], place, "later", judged=False)
    no_decoding()
    first, second = draw(models["sdxl"], place, "now", judged=True).splitlines()
    assert first == f"{place}/now/images: 8 images of 4 prompts"
    assert second == said.replace("/later/", "/now/")
    assert "values missing (first: gold: image" in said
    assert contents(place / "now") == contents(place / "later")
    draw(models["sdxl"], place, "now", judged=True)
    assert contents(place / "now") == contents(place / "later")


@pytest.mark.parametrize(
    "gone",
    [("scores/scores/part-00001.parquet",), ("images/images/part-00001.parquet", "scores/scores/part-00001.parquet"),
     ("images/images/part-00002.parquet",), ("scores/scores.csv",), ("scores/diffalign.json",)],
    ids=lambda gone: gone[0],
)  # fmt: skip
def test_what_is_missing_is_judged_again(models: dict[str, Path], place: Path, gone: tuple[str, ...]) -> None:
    draw(models["sdxl"], place, "now", judged=True)
    before = contents(place / "now")
    for name in gone:
        (place / "now" / name).unlink()
    if gone == ("scores/diffalign.json",):  # as if it was never asked for
        for path in sorted((place / "now" / "scores").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    draw(models["sdxl"], place, "now", judged=True)
    assert contents(place / "now") == before


def test_more_per_prompt_extends_the_scores_too(models: dict[str, Path], place: Path) -> None:
    for per_prompt in (1, 3):
        for name in ("now", "later"):
            draw(models["sdxl"], place, name, judged=name == "now", per_prompt=per_prompt)
    assert contents(place / "now") == contents(place / "later")


def test_lists_of_several_sizes(models: dict[str, Path], place: Path) -> None:
    """Their parts are not the batches of `score`, but for the first."""
    write(place, [ROWS[0], *({**row, "height": 48, "width": 32} for row in ROWS[1:])])
    for name in ("now", "later"):
        draw(models["sdxl"], place, name, judged=name == "now")
    assert contents(place / "now") == contents(place / "later")


def test_images_of_one_file(models: dict[str, Path], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`score` sees a file once, so that its batches are others and fewer."""

    def paint(self: Artist, work: list[tuple[str, int]]) -> Drawn:
        made = original(self, work)
        return Drawn(np.stack([made.pictures[k] if i == 0 else blank for k, (_, i) in enumerate(work)]), made.latents)

    original, blank = Artist.paint, np.zeros((32, 32, 3), np.uint8)
    monkeypatch.setattr(Artist, "paint", paint)
    for name in ("now", "later"):
        draw(models["sdxl"], place, name, judged=name == "now")
    assert contents(place / "now") == contents(place / "later")


def test_two_processes(models: dict[str, Path], place: Path) -> None:
    draw(models["sdxl"], place, "later", judged=False)
    words = ["sample", "--model", models["sdxl"], "--prompts", "prompts.jsonl", "--out", "now/images", "--batch", 3]
    words += ["--steps", 1, "--per-prompt", 2, "--scorer", "mine.py:bright", "gold", "--scores", "now/scores"]
    ends = [c.ended() for c in launched(words, place)]
    assert [e.status for e in ends] == [0, 0], ends
    assert contents(place / "now") == contents(place / "later")


def test_what_cannot_be_is_refused_before_anything_is_drawn(models: dict[str, Path], place: Path) -> None:
    asked = {"model": str(models["sdxl"]), "prompts": place / "prompts.jsonl", "out": place / "out", "steps": 1}
    for changes, expected in (
        ({"scorer": ("gold",)}, "scorer = gold, scores = none: expected both or neither"),
        ({"scores": place / "s"}, "scorer = none, scores = .*: expected both or neither"),
        ({"scorer": ("gold",), "scores": place / "out"}, "is the folder of the images"),
        ({"scorer": ("golt",), "scores": place / "s"}, "did you mean gold"),
        ({"scorer": (f"{place}/mine.py:dark",), "scores": place / "s"}, "defines no function 'dark'"),
    ):
        with pytest.raises(InputError, match=expected):
            sample(**asked, **changes)
    assert not (place / "out").exists()
    assert not (place / "s").exists()
    sample(**asked, scorer=(f"{place}/mine.py:bright",), scores=place / "s")
    (place / "mine.py").write_text(SCORER + "\n# other code\n")
    with pytest.raises(InputError, match=r"s: was made with revision of mine\.py:bright = '"):
        sample(**asked, scorer=(f"{place}/mine.py:bright",), scores=place / "s")


def test_a_scorer_joins_the_jury(models: dict[str, Path], place: Path) -> None:
    """Of what was drawn before too; until then the scores are not whole."""
    asked = {"model": str(models["sdxl"]), "prompts": place / "prompts.jsonl", "out": place / "images", "steps": 1}
    sample(**asked, scorer=("gold",), scores=place / "s", per_prompt=1, batch=3)
    (place / "bad.py").write_text("def f(images, prompts):\n    raise RuntimeError('no')\n")
    with pytest.raises(InputError, match="RuntimeError: no"):
        sample(**asked, scorer=("gold", f"{place}/bad.py:f"), scores=place / "s", per_prompt=2, batch=3)
    assert load(place / "s").counts == {"lacking": ["bad.py:f"]}
    sample(**asked, scorer=("gold",), scores=place / "s", per_prompt=2, batch=3)
    assert load(place / "s").counts == {}, "who has judged nothing is forgotten"
    names = ("gold", f"{place}/mine.py:bright")
    sample(**asked, scorer=names, scores=place / "s", per_prompt=3, batch=3)
    score(place / "images", scorer=names, out=place / "later", batch=3)
    found = contents(place / "s")
    assert {k: v for k, v in contents(place / "later").items() if found[k] != v}.keys() == {"diffalign.json"}

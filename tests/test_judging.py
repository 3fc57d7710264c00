"""Preferences from a model that sees two images: both orders, what cannot be read, and going on after a fault."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest
import worlds
from test_judge import Fake, brighter, completion

from diffalign import folders, judging
from diffalign.records import InputError
from diffalign.scorers import Unavailable


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.delenv("DIFFALIGN_JUDGE_KEY", raising=False)
    monkeypatch.setattr("diffalign.scorers.judge.Judge.__init__.__defaults__", (lambda seconds: None,))
    found = Fake()
    yield found
    found.server.shutdown()
    found.server.server_close()


def redder(body: dict, n: int) -> dict:
    """The model prefers the redder picture, and the first one where it is in doubt."""
    a, b = brighter(body, n)
    return completion(f"Image {'A' if a >= b - 20 else 'B'} is better.")


def reds(place: Path) -> dict[str, int]:
    rows = folders.records(place, "images")
    return {r.id: PIL.Image.open(io.BytesIO(r.image["bytes"])).getpixel((0, 0))[0] for r in rows}


def test_every_two_images_of_a_prompt_in_both_orders(fake: Fake, tmp_path: Path) -> None:
    worlds.images(tmp_path / "images", per_prompt=3)
    fake.answer = redder
    said = judging.judge(tmp_path / "images", question="two_text", url=fake.url, model="m", out=tmp_path / "pairs")
    assert len(fake.bodies) == 36
    rows, red = folders.records(tmp_path / "pairs", "judgements"), reds(tmp_path / "images")
    assert len(rows) == 18
    for row in rows:
        gap = red[row.images[0]] - red[row.images[1]]
        assert row.p == (1.0 if gap > 20 else 0.0 if gap < -20 else 0.5)
        assert row.status == ("tie" if row.p == 0.5 else "decided")
        assert (row.rater, row.source) == ("m", "judge:two_text")
    ties = sum(r.status == "tie" for r in rows)
    assert 0 < ties < 18
    agreed = f"both orders agree on {(18 - ties) / 18:.1%}, lean to the image shown first +{ties / 36:.3f}"
    assert agreed in said
    assert said.startswith("36 requests, 0 of them retries, 0 asked again, 0 without an answer, 252 + 72 tokens; ")
    manifest = folders.open_folder(tmp_path / "pairs", "pair")
    assert manifest.parents[0]["path"] == "../images"
    again = judging.judge(tmp_path / "images", question="two_text", url=fake.url, model="m", out=tmp_path / "pairs")
    assert said.endswith(again)
    assert len(fake.bodies) == 36


def test_it_goes_on_where_the_server_left(fake: Fake, tmp_path: Path) -> None:
    worlds.images(tmp_path / "images", per_prompt=2)
    whole = {"question": "two_text", "url": fake.url, "model": "m", "batch": 2}
    fake.answer = redder
    judging.judge(tmp_path / "images", out=tmp_path / "a", **whole)
    start = len(fake.bodies)
    fake.answer = lambda body, n: redder(body, n) if n < start + 5 else (503, {}, b"gone")
    with pytest.raises(Unavailable, match="gone"):
        judging.judge(tmp_path / "images", out=tmp_path / "b", **whole)
    fake.answer, kept = redder, len(fake.bodies)
    judging.judge(tmp_path / "images", out=tmp_path / "b", **whole)
    assert len(fake.bodies) == kept + 8
    for n in range(3):
        name = f"judgements/part-{n:05d}.parquet"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_cannot_be_read_is_unlabelled(fake: Fake, tmp_path: Path) -> None:
    worlds.images(tmp_path / "images", per_prompt=2)
    fake.answer = lambda body, n: completion("Hm.") if "a photo" in str(body) else redder(body, n)
    said = judging.judge(tmp_path / "images", question="two_text", url=fake.url, model="m", out=tmp_path / "pairs")
    rows = folders.records(tmp_path / "pairs", "judgements")
    assert [r.p for r in rows if r.status == "unlabelled"] == [None]
    assert "1 unlabelled (first: no verdict in 'Hm.')" in said
    (part,) = (tmp_path / "pairs" / "comparisons").iterdir()
    assert len(json.loads(part.read_text())) == 6


def test_at_most_so_many_pairs_of_a_prompt(fake: Fake, tmp_path: Path) -> None:
    worlds.images(tmp_path / "images", per_prompt=3)
    fake.answer = redder
    judging.judge(tmp_path / "images", question="two_text", url=fake.url, model="m", out=tmp_path / "p", most=1)
    rows = folders.records(tmp_path / "p", "judgements")
    assert len(rows) == len({folders.image_rows(tmp_path / "p")[r.images[0]]["prompt_id"] for r in rows}) == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"question": "scale_5"}, "asks about one image; `diffalign score` takes it"),
        ({"question": "perhaps"}, "no such question"),
        ({"url": ""}, "names no url"),
        ({"most": 0}, "expected at least 1"),
    ],
)
def test_what_is_refused(changes: dict, said: str, tmp_path: Path) -> None:
    worlds.images(tmp_path / "images", per_prompt=1)
    whole = {"question": "two", "url": "http://127.0.0.1:9/v1", "model": "m", "out": tmp_path / "pairs"} | changes
    with pytest.raises(InputError, match=said):
        judging.judge(tmp_path / "images", **whole)
    assert not (tmp_path / "pairs").exists()


def test_nothing_to_compare(tmp_path: Path) -> None:
    worlds.images(tmp_path / "images", per_prompt=1)
    with pytest.raises(InputError, match="no prompt has two images"):
        judging.judge(tmp_path / "images", question="two", url="http://a/v1", model="m", out=tmp_path / "pairs")

"""The page: what it shows, escapes and loads (nothing), and what it makes of damaged or unfinished runs."""

import hashlib
import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import worlds

from diffalign import curves, findings, folders, pictures
from diffalign.records import Image, InputError, Prompt, Score, digest, pair, prompt_id
from diffalign.report import flatten, headline, report, signed
from diffalign.sampling import to_png
from diffalign.shapes import captions, gold
from diffalign.shapes.scene import render, sample_scene

EVIL = "<script>alert('prompt')</script> & \"quotes\""
SCORERS = ("gold", "gold_right", "shapes_clip")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def make_run(place: Path, *, prompts: int = 12, lines: int = 30) -> Path:
    """A run folder as `train` and `compare` leave it, its pictures rendered instead of drawn by a model."""
    run = place / "run"
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, 1) for _ in range(prompts)]
    texts = [captions.caption(s, "compositional", rng) for s in scenes]
    texts[0] = EVIL
    table = {}
    for name, errors in (("base", 2), ("policy", 1)):
        shown = [captions.corrupt(s, rng, errors) if rng.random() < 0.5 else s for s in scenes]
        table[name] = write_scored(run, name, texts, [render(s) for s in shown])
    write_pairs(run)
    write_compare(run, table)
    settings = {
        "run": {
            "model": "assets/shapes/sdxl",
            "objective": {"class": "diffalign.objectives.dpo:DPO", "beta": 2000.0, "label_smoothing": 0.0},
            "policy": {"class": "diffalign.run:LoRA", "rank": 8, "alpha": 8.0, "targets": []},
            "optimizer": {"class": "diffalign.run:AdamW", "lr": 2e-4, "betas": [0.9, 0.999]},
            "data": str(run / "pairs"), "out": str(run), "seed": 0, "steps": 10 * lines, "batch": 32,
        },
        "versions": folders.versions(),
        "command": f"diffalign train shapes_dpo --data {run / 'pairs'} --out {run}",
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(settings))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics(lines, rng)))
    return run


def metrics(lines: int, rng: np.random.Generator) -> list[dict]:
    entries = []
    for i in range(lines):
        done, noise = (i + 1) / lines, rng.normal(size=4)
        margin = 0.9 * (1 - math.exp(-3 * done)) + 0.15 * noise[0]
        entries.append({
            "step": 10 * (i + 1), "loss": math.log1p(math.exp(-margin)), "margin": margin,
            "accuracy": min(1.0, 0.5 + 0.3 * done + 0.05 * noise[1]), "chosen_error": -3e-4 * done + 4e-5 * noise[2],
            "rejected_error": 5e-4 * done + 4e-5 * noise[3], "gradient_norm": 0.4 + 0.1 * noise[2],
            "learning_rate": 2e-4 * min(1, (i + 1) / 4), "groups": 320 * (i + 1),
        })  # fmt: skip
    return entries


def write_scored(run: Path, name: str, texts: list[str], shots: list[np.ndarray]) -> list[dict[str, float]]:
    place = run / "test" / name
    listed = [Prompt(prompt_id(t), t) for t in texts]
    rows, scores, values = [], [], []
    folders.begin(place, folders.Manifest("sample", {"model": name}, 1))
    for prompt, shot in zip(listed, shots, strict=True):
        png, key = to_png(shot), digest(name, prompt.id)
        image = {"bytes": png, "path": None}
        sha = hashlib.sha256(png).hexdigest()
        rows.append(Image(key, prompt.id, image, sha, *shot.shape[:2], model=name, seed=0, index=0))
        verdict = None if prompt.text == EVIL else gold.judge(shot, prompt.text)
        found = {"gold": verdict.score, "gold_right": float(all(verdict.right.values()))} if verdict else {}
        found |= {"shapes_clip": 20 + 10 * found.get("gold", 0.0)}
        values.append(found)
        scores += [Score(key, prompt.id, s, "1", "none", found.get(s)) for s in SCORERS]
    folders.write_part(place, "prompts", 0, listed)
    folders.write_part(place, "images", 0, rows)
    scored = run / "test" / f"{name}-scores"
    folders.begin(scored, folders.Manifest("score", {"scorers": SCORERS}, 1, (folders.parent(scored, place),)))
    folders.write_part(scored, "scores", 0, scores)
    return values


def write_pairs(run: Path) -> None:
    scored, place = run / "test" / "base-scores", run / "pairs"
    manifest = folders.Manifest("pair", {"scorer": "shapes_clip"}, 1, (folders.parent(place, scored),))
    folders.begin(place, manifest)
    a, b = list(folders.image_rows(scored))[:2]
    folders.write_part(place, "judgements", 0, [pair("p", a, b, 1.0, source="shapes_clip")])


def write_compare(run: Path, table: dict[str, list[dict[str, float]]]) -> None:
    entries = {}
    for scorer in SCORERS:
        both = [(a[scorer], b[scorer]) for a, b in zip(table["base"], table["policy"], strict=True) if scorer in a]
        a, b = np.array(both).T
        rate = float((np.sign(b - a) / 2 + 0.5).mean())
        entries[scorer] = {
            "win_rate": rate, "win_rate_low": rate - 0.06, "win_rate_high": rate + 0.06,
            "wins": int((b > a).sum()), "ties": int((b == a).sum()), "losses": int((b < a).sum()),
            "mean_a": float(a.mean()), "mean_b": float(b.mean()), "median_a": 0.5, "median_b": 0.5,
            "delta": float((b - a).mean()), "delta_low": float((b - a).mean()) - 0.05,
            "delta_high": float((b - a).mean()) + 0.05, "p_value": 0.0004,
        }  # fmt: skip
    data = {"a": "../test/base-scores", "b": "../test/policy-scores", "prompts": len(table["base"]), "scorers": entries}
    (run / "compare").mkdir()
    (run / "compare" / "compare.json").write_text(json.dumps(data))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that no test changes."""
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run for a test to damage."""
    return Path(shutil.copytree(made, tmp_path / "run"))


class Page(HTMLParser):
    """The tags of a page: every (tag, attributes)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def written(run: Path, out: Path) -> str:
    report(run, out=out)
    return out.read_text()


def refused(run: Path, out: Path) -> str:
    with pytest.raises(InputError) as caught:
        report(run, out=out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not out.with_suffix(".png").exists()
    return str(caught.value)


def test_the_page_says_who_wins_by_which_judge_and_how_sure_that_is(made: Path, tmp_path: Path) -> None:
    text = html.unescape(written(made, tmp_path / "r.html"))
    gold_numbers = json.loads((made / "compare" / "compare.json").read_text())["scorers"]["gold"]
    assert f"{100 * gold_numbers['win_rate']:.0f}% of comparisons" in text
    assert f"{100 * gold_numbers['win_rate_low']:.1f}% to {100 * gold_numbers['win_rate_high']:.1f}%" in text
    rows = re.findall(r'<th scope="row">([^<]*)<span class="under">([^<]*)</span>', text)
    assert rows == [
        ("gold score", "did not judge the training pairs"),
        ("all attributes right", "did not judge the training pairs"),
        ("CLIP proxy", "judged the training pairs"),
    ]


def test_the_same_run_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    first = written(made, tmp_path / "a" / "r.html"), (tmp_path / "a" / "r.png").read_bytes()
    assert (written(made, tmp_path / "a" / "r.html"), (tmp_path / "a" / "r.png").read_bytes()) == first


def test_the_page_loads_nothing(made: Path, tmp_path: Path) -> None:
    text = written(made, tmp_path / "r.html")
    page = Page(text)
    places = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "srcset", "data", "action")]
    assert places
    assert all(v.startswith("data:") for v in places)
    assert "url(" not in text
    assert "@import" not in text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "embed", "base", "form"})


def test_prompts_are_escaped(made: Path, tmp_path: Path) -> None:
    page = Page(written(made, tmp_path / "r.html"))
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert any(EVIL in alt for alt in alts)
    assert "script" not in {tag for tag, _ in page.tags}


def test_every_picture_has_its_prompt_as_alternative_text(made: Path, tmp_path: Path) -> None:
    images = [attrs for tag, attrs in Page(written(made, tmp_path / "r.html")).tags if tag == "img"]
    assert len(images) >= 2 * 12
    assert all(re.match(r"(base|policy) picture for the prompt: .", i["alt"]) for i in images)


def test_the_sample_does_not_depend_on_scores(made: Path) -> None:
    cells = pictures.cells(made / "test" / "base-scores", made / "test" / "policy-scores")
    swapped = pictures.cells(made / "test" / "policy-scores", made / "test" / "base-scores")
    assert [c.prompt for c in pictures.fair(cells, 12)] == [c.prompt for c in pictures.fair(swapped[::-1], 12)]


def test_extremes_are_the_largest_changes_in_both_directions(made: Path) -> None:
    cells = pictures.cells(made / "test" / "base-scores", made / "test" / "policy-scores")
    gains = sorted(c.gain("gold") for c in cells if c.gain("gold") is not None)
    wins, losses = pictures.extremes(cells, "gold", 3)
    assert [c.gain("gold") for c in wins] == gains[::-1][:3]
    assert [c.gain("gold") for c in losses] == [g for g in gains[:3] if g < 0]


def test_the_grid_holds_the_pictures_side_by_side(made: Path, tmp_path: Path) -> None:
    written(made, tmp_path / "r.html")
    sheet = np.asarray(PIL.Image.open(tmp_path / "r.png").convert("RGB"))
    cells = pictures.cells(made / "test" / "base-scores", made / "test" / "policy-scores")
    first = pictures.fair(cells, 1)
    images = pictures.load(made / "test" / "base-scores", made / "test" / "policy-scores", first)
    side, x, y = 2 * pictures.SIDE, 2 * pictures.MARGIN, 2 * pictures.MARGIN + 34
    for shot in (first[0].before, first[0].after):
        wanted = pictures._square(images[shot.id], side)
        inside = np.s_[y + 2 : y + side - 2, x + 2 : x + side - 2]
        np.testing.assert_array_equal(sheet[inside], np.asarray(wanted)[2:-2, 2:-2])
        x += side + 2 * pictures.GAP


def test_without_compare_the_page_says_what_to_run(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "compare")
    text = written(run, tmp_path / "r.html")
    assert "diffalign compare BASE_SCORES POLICY_SCORES" in text
    assert "<polyline" in text
    assert not (tmp_path / "r.png").exists()


def test_without_pictures_the_numbers_stay_and_the_page_says_why(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "test" / "base")
    text = html.unescape(written(run, tmp_path / "r.html"))
    assert "of comparisons" in text
    assert f"its parent {run / 'test' / 'base'} is not there" in text
    assert "<img" not in text


def test_without_metrics_the_page_says_so(run: Path, tmp_path: Path) -> None:
    (run / "metrics.jsonl").unlink()
    text = written(run, tmp_path / "r.html")
    assert "There is no metrics.jsonl yet" in text
    assert "<polyline" not in text


def test_an_unfinished_run_is_called_unfinished(run: Path, tmp_path: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:7]))
    assert "Training stands at step 70 of 300" in written(run, tmp_path / "r.html")


def test_alarms_of_metrics_and_of_pictures_are_shown_with_their_remedies(run: Path, tmp_path: Path) -> None:
    def noted() -> list[str]:
        report(run, out=tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        return re.findall(r"<strong>Alarm at step (\d+): ([\w ]+)\.</strong>.+\n\s+Usual remedy: \w", page)

    before = noted()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
    with (run / "metrics.jsonl").open("a") as file:
        for step in range(steps[-1] + 1, steps[-1] + 11):
            file.write(json.dumps({"step": step, "margin": 999.0}) + "\n")
    (run / "evaluations.jsonl").write_text('{"step": 40, "saturation": 1.9, "contrast": 1.0}\n')
    assert set(noted()) - set(before) == {(str(steps[-1] + 1), "exploding margins"), ("40", "drift in saturation")}
    (run / "evaluations.jsonl").write_text('{"step": 40, "saturation": "high"}\n')
    with pytest.raises(InputError, match=r"evaluations\.jsonl, row 1, field 'saturation': is 'high'"):
        report(run, out=tmp_path / "page.html")


def test_commands_come_from_the_script_where_there_is_one(run: Path, tmp_path: Path) -> None:
    assert f"diffalign report {run}" in written(run, tmp_path / "a.html")
    (run / "commands.sh").write_text("#!/bin/sh\nset -e\ndiffalign pair 'x y' --out z\n")
    text = html.unescape(written(run, tmp_path / "b.html"))
    assert "<code>diffalign pair 'x y' --out z</code>" in text


def test_a_folder_without_run_json_is_refused(tmp_path: Path) -> None:
    assert "holds no run.json" in refused(tmp_path, tmp_path / "r.html")


@pytest.mark.parametrize("name", ["run.json", "compare/compare.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", b"\xff\xfe"])
def test_a_damaged_file_is_named(run: Path, tmp_path: Path, name: str, content: str | bytes) -> None:
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert str(run / name) in refused(run, tmp_path / "r.html")


def test_a_missing_number_of_a_scorer_is_named(run: Path, tmp_path: Path) -> None:
    path = run / "compare" / "compare.json"
    data = json.loads(path.read_text())
    data["scorers"]["gold"]["win_rate_low"] = "low"
    path.write_text(json.dumps(data))
    assert f"{path}, field scorers.gold.win_rate_low: expected a number" in refused(run, tmp_path / "r.html")


def test_only_the_last_line_of_metrics_may_be_cut_short(run: Path, tmp_path: Path) -> None:
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert "row 30) was cut short" in written(run, tmp_path / "a.html")
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], lines[4][:20] + b"\n", *lines[5:]]))
    assert f"{path}, row 5: is not JSON" in refused(run, tmp_path / "b.html")
    path.write_bytes(b'{"step": 1, "loss": "low"}\n')
    assert f"{path}, row 1, field 'loss': is 'low', expected a number" in refused(run, tmp_path / "b.html")
    path.write_bytes(b'{"step": "1"}\n')
    assert f"{path}, row 1, field 'step': is '1', expected a number" in refused(run, tmp_path / "b.html")
    path.write_bytes(b'{"loss": 1}\n')
    assert f"{path}, row 1: expected an object with the field 'step'" in refused(run, tmp_path / "b.html")


def test_what_is_not_a_reports_own_stays(made: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "x.html", tmp_path / "x.png"
    written(made, page)
    whole = page.read_bytes(), picture.read_bytes()
    report(made, out=page)
    assert (page.read_bytes(), picture.read_bytes()) == whole
    for place, data in ((picture, b"mine"), (picture, worlds.png(1)), (page, b"<html>mine</html>")):
        place.write_bytes(data)
        with pytest.raises(InputError, match=f"^{place}: is no .* of a report.*; choose another --out$"):
            report(made, out=page)
        assert place.read_bytes() == data
        page.write_bytes(whole[0])
        picture.write_bytes(whole[1])
    page.unlink()
    report(made, out=page)
    assert (page.read_bytes(), picture.read_bytes()) == whole


def test_a_folder_is_no_page_and_a_file_no_folder(made: Path, tmp_path: Path) -> None:
    (tmp_path / "dir.html").mkdir()
    (tmp_path / "file").write_text("mine")
    for out, message in (("dir.html", "dir.html: is a folder, expected a file"), ("file/x.html", "file: is a file")):
        with pytest.raises(InputError, match=f"^{tmp_path / message}"):
            report(made, out=tmp_path / out)
    assert {p.name for p in tmp_path.iterdir()} == {"dir.html", "file"}


def test_another_suffix_is_refused(made: Path, tmp_path: Path) -> None:
    assert "ends in .html" in refused(made, tmp_path / "r.pdf")


@pytest.mark.parametrize(
    ("low", "rate", "high", "trained", "words"),
    [
        (0.51, 0.6, 0.7, False, ("beats its base", "did not judge")),
        (0.45, 0.52, 0.6, None, ("No difference shown", "may or may not")),
        (0.3, 0.4, 0.49, True, ("worse than its base", "what was optimised")),
    ],
)
def test_the_headline_claims_what_the_interval_allows(low, rate, high, trained, words) -> None:
    numbers = {"win_rate": rate, "win_rate_low": low, "win_rate_high": high}
    said, sure = headline(findings.Verdict("gold", numbers, trained, False), 10)
    assert words[0] in said
    assert words[1] in sure


@pytest.mark.parametrize(
    ("judged", "trained"),
    [
        ("judge:aspects", [True, True, True, False]),
        ("judge:aspects/fidelity", [True, True, True, False]),
        ("judge:aspects + pickscore", [True, True, True, True]),
        ("hpsv2.1", [False, False, False, False]),
        (None, [None, None, None, None]),
    ],
)
def test_who_judged_the_pairs_did_so_with_all_parts_and_beside_others(
    judged: str | None, trained: list[bool | None], tmp_path: Path
) -> None:
    run, pairs = tmp_path / "run", tmp_path / "pairs"
    folders.begin(pairs, folders.Manifest("pair", {"scorer": judged}, 1))
    names = ("judge:aspects", "judge:aspects/fidelity", "judge:aspects/aesthetics", "pickscore")
    scorers = {name: dict.fromkeys(findings.NUMBERS, 0.5) for name in names}
    (run / "compare").mkdir(parents=True)
    said = {"a": "../../a", "b": "../../b", "prompts": 3, "scorers": scorers}
    (run / "compare" / "compare.json").write_text(json.dumps(said))
    found = findings.evaluation(run, {"data": str(pairs), "out": str(run)})
    assert [v.trained for v in found.verdicts] == trained


def test_flatten_names_every_field_of_a_run() -> None:
    nested = {"a": 1, "b": {"class": "m:C", "x": 2000.0, "y": {"class": "m:D", "z": [1, 2]}}}
    wanted = [("a", "1"), ("b", "C"), ("b.x", "2000"), ("b.y", "D"), ("b.y.z", "[1, 2]")]
    assert list(flatten(nested)) == wanted


def test_differences_keep_their_sign_and_their_size() -> None:
    given = ((0.0821, True), (-0.12, False), (-2e-4, False), (0.0, True), (0.0, False))
    assert [signed(*g) for g in given] == ["+8.2", "−0.120", "−0.0002", "±0.0", "±0.000"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3e-4, 5e-4), (0.31, 0.69), (0, 2e-4), (1e6, 3e6), (-5, -4.9)])
def test_ticks_are_round_enclose_and_are_few(low: float, high: float) -> None:
    ticks = curves.round_ticks(low, high)
    assert ticks[0] <= low + 1e-9 * abs(low)
    assert ticks[-1] >= high - 1e-9 * abs(high)
    assert 3 <= len(ticks) <= 8
    step = ticks[1] - ticks[0]
    leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(leading - f) for f in (1, 2, 5)) < 1e-6


def test_a_curve_goes_through_its_points() -> None:
    rows = [{"step": s, "margin": m} for s, m in ((0, 0.0), (50, 1.0), (100, float("nan")), (200, 2.0))]
    drawn = curves.draw(rows, curves.CHARTS[0])
    points = [tuple(map(float, p.split(","))) for p in drawn.lines[0].raw.split()]
    right, bottom = curves.WIDTH - curves.RIGHT, curves.HEIGHT - curves.BOTTOM
    middle = curves.LEFT + (right - curves.LEFT) / 4
    assert points == [(curves.LEFT, bottom), (middle, (bottom + curves.TOP) / 2), (right, curves.TOP)]


def test_constant_metrics_and_a_single_line_can_be_drawn() -> None:
    for value in (0.0, 2e-4, 1.0):
        drawn = curves.draw([{"step": 1, "loss": value}], curves.CHARTS[3])
        assert drawn.lines[0].raw
        assert len(drawn.y_ticks) >= 2


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_the_page_without_complaint(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    written(made, out)
    shown = browse(out, tmp_path, "--dump-dom")
    assert "CONSOLE" not in shown.stderr
    page = Page(shown.stdout)
    assert "of comparisons" in shown.stdout
    assert len([t for t, _ in page.tags if t == "img"]) >= 24
    assert len([t for t, _ in page.tags if t == "polyline"]) >= 7
    browse(out, tmp_path, f"--screenshot={tmp_path / 'shot.png'}", "--window-size=1200,4000")
    picture = PIL.Image.open(tmp_path / "shot.png").convert("RGB")
    assert picture.size == (1200, 4000)
    colours = {c for _, c in picture.getcolors(maxcolors=1 << 24)}
    assert {(255, 155, 190), (150, 150, 150)} <= colours, "the pictures' backgrounds are on the page"


def browse(page: Path, tmp_path: Path, *how: str) -> subprocess.CompletedProcess:
    quiet = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
        "--disable-background-networking", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
    )  # fmt: skip
    command = [CHROMIUM, *quiet, *how, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

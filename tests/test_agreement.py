"""Agreement of scorers with judgements: numbers known beforehand, and folders that do not fit."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import worlds

from diffalign import calibration
from diffalign.records import InputError, Score, pair


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parent.parent / "scripts" / "agreement.py"
    spec = importlib.util.spec_from_file_location("agreement", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def world(place: Path) -> Path:
    """Six prompts, three images each with scores 0, 1, 2; the later image is better but for one prompt."""
    rows, scores = [], []
    for n, (prompt, drawn) in enumerate(worlds.images(place / "images").items()):
        for k, image in enumerate(drawn):
            scores.append(Score(image.id, prompt, "good", "", "", float(k)))
            scores.append(Score(image.id, prompt, "flat", "", "", 1.0))
            scores.append(Score(image.id, prompt, "bad", "", "", -float(k) if k else None))
        a, b, c = drawn
        rows.append(pair(prompt, a.id, b.id, float(n == 0), source="test"))
        rows.append(pair(prompt, c.id, b.id, 1.0, source="test"))
        rows.append(pair(prompt, a.id, c.id, 0.5, source="test", status="tie"))
    return worlds.judged(place, rows, scores)


def test_counts_known_beforehand(script: ModuleType, tmp_path: Path) -> None:
    pairs = world(tmp_path)
    found = script.agreement(tmp_path / "scores", pairs)
    good, flat, bad = (found[name] for name in ("good", "flat", "bad"))
    assert (good["pairs"], good["ties"], good["prompts"], good["left_out"]) == (18, 6, 6, 0)
    assert good["accuracy"] == pytest.approx(11 / 12)
    assert good["accuracy_low"] <= good["accuracy"] <= good["accuracy_high"] <= 1
    assert good["kendall_tau_b"] == pytest.approx((11 - 1) / math.sqrt(18 * 12))
    assert good["slope"] > 0
    assert flat["accuracy"] == 0.5
    assert math.isnan(flat["kendall_tau_b"])
    assert flat["nll"] == pytest.approx(math.log(2))
    assert (bad["pairs"], bad["left_out"], bad["accuracy"], bad["kendall_tau_b"]) == (6, 12, 0.0, -1.0)


def test_a_known_temperature_is_found_and_calibrated(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    gap, prompt = rng.normal(size=20000), np.arange(20000) // 4
    p = (rng.random(20000) < calibration.sigmoid(1.7 * gap)).astype(float)
    found = script.numbers(gap, p, prompt)
    assert found["slope"] == pytest.approx(1.7, abs=0.08)
    assert found["ece"] < 0.02
    wanted = -(p * np.log(calibration.sigmoid(1.7 * gap)) + (1 - p) * np.log(calibration.sigmoid(-1.7 * gap))).mean()
    assert calibration.nll(1.7 * gap, p) == pytest.approx(wanted)
    assert script.numbers(gap * 10, p, prompt)["nll"] == pytest.approx(found["nll"], rel=1e-6), "units do not matter"


def test_folders_that_share_nothing(script: ModuleType, tmp_path: Path) -> None:
    pairs = world(tmp_path / "a")
    worlds.images(tmp_path / "b" / "images")
    empty = worlds.judged(tmp_path / "b", []).parent / "scores"
    with pytest.raises(InputError, match="share no pair of scored images"):
        script.agreement(empty, pairs)


def test_a_dimension_that_is_not_there_and_a_scorer_without_values(script: ModuleType, tmp_path: Path) -> None:
    prompt, (a, b, _) = next(iter(worlds.images(tmp_path / "images").items()))
    scores = [Score(i.id, prompt, name, "", "", None if name == "mute" else k) for k, i in enumerate((a, b))
              for name in ("good", "mute")]  # fmt: skip
    rows = [pair(prompt, a.id, b.id, 0.0, source="test", dimension="light")]
    pairs = worlds.judged(tmp_path, rows, scores)
    with pytest.raises(InputError, match="holds no pairs of dimension taste; expected light$"):
        script.agreement(tmp_path / "scores", pairs, "taste")
    found = script.agreement(tmp_path / "scores", pairs, "light")
    assert found["good"]["accuracy"] == 1.0
    assert found["mute"] == {"pairs": 0, "left_out": 1}, "one that says nothing is not passed over in silence"


def test_a_folder_where_a_file_is_wanted_is_one_line(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = world(tmp_path)
    words = ["agreement.py", str(tmp_path / "scores"), str(pairs), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match="is a folder, expected a file"):
        script.main()
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.tmp-*"))

"""`scripts/parity.py` on the committed cases, whose values are derived again here from the numpy formulas."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import laws
import numpy as np
import pytest
from laws import LAWS
from test_objectives import OBJECTIVES

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "parity.py"
GOLDEN = Path(__file__).parent / "golden" / "objectives.json"
CASES = json.loads(GOLDEN.read_text())


def parity() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("parity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(path: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True, check=False)


def batch(case: dict[str, Any]) -> tuple[laws.Batch, np.ndarray]:
    """A case as a batch, and for each of its images the place in the case."""
    judged = case["judgement"]
    place = np.array([i for g in judged["groups"] for i in g] if "groups" in judged else range(len(case["policy"])))
    absent = [np.nan] * len(case["policy"])
    errors = [np.array(case.get(n) or absent, float)[place] for n in ("policy", "reference", "old")]
    pairwise = {k: np.array(v) for k, v in case.get("cross", {}).items() if k == "chosen_rejected"}
    single = {k: np.array(v)[place] for k, v in case.get("cross", {}).items() if k != "chosen_rejected"}
    x = laws.Batch(*errors, single | pairwise)
    if "pairs" in judged:
        chosen, rejected, p = map(np.array, zip(*judged["pairs"], strict=True))
        gap = np.array(case.get("score_gap") or [np.nan] * len(p), float)
        return replace(x, chosen=chosen, rejected=rejected, p=p.astype(float), gap=gap), place
    if "desirable" in judged:
        return replace(x, desirable=np.array(judged["desirable"], float)), place
    group = np.repeat(np.arange(len(judged["groups"])), [len(g) for g in judged["groups"]])
    if "ranking" in judged:
        return replace(x, scores=np.concatenate(judged["ranking"]).astype(float), group=group), place
    return replace(x, values=np.array(judged["advantages"], float)[place], group=group), place


def derive(case: dict[str, Any]) -> dict[str, list[float]]:
    """Loss and gradient of a case by its formula and central differences, without the objective's code."""
    x, place = batch(case)
    kind = {"chosen": "pairs", "desirable": "unpaired", "scores": "ranking", "values": "advantages"}
    kind = next(name for attribute, name in kind.items() if getattr(x, attribute) is not None)
    objective = parity().build(case["objective"], case["params"])
    alike = [law for law in LAWS if type(law.objective) is type(objective) and law.kind == kind]
    formula = next((law for law in alike if law.objective == objective), alike[0]).formula
    grad, step = np.zeros(len(case["policy"])), 1e-7
    for i in range(len(place)):
        up, down = (
            formula(objective, replace(x, policy=x.policy + s * step * (np.arange(len(place)) == i)), x).sum()
            for s in (1, -1)
        )
        grad[place[i]] += (up - down) / (2 * step)
    return {"loss": formula(objective, x, x).tolist(), "grad": grad.tolist()}


@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_the_committed_values_are_the_formulas(case: dict[str, Any]) -> None:
    derived = derive(case)
    assert derived["loss"] == pytest.approx(case["expect"]["loss"], rel=1e-9, abs=1e-12)
    assert derived["grad"] == pytest.approx(case["expect"]["grad"], rel=1e-6, abs=1e-6)


def test_the_script_agrees_with_the_committed_values() -> None:
    done = run(GOLDEN)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [r["name"] for r in results] == [c["name"] for c in CASES]
    for result, case in zip(results, CASES, strict=True):
        assert set(result) == {"name", "loss", "grad"}
        assert result["loss"] == pytest.approx(case["expect"]["loss"], rel=1e-9, abs=1e-12), case["name"]
        assert result["grad"] == pytest.approx(case["expect"]["grad"], rel=1e-6, abs=1e-6), case["name"]


def test_every_public_objective_has_a_case() -> None:
    assert {case["objective"] for case in CASES} == set(OBJECTIVES)


PAIR = {"name": "x", "params": {}, "policy": [0.1, 0.2], "reference": [0.1, 0.2], "judgement": {"pairs": [[0, 1, 1.0]]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "DPOO"}, "objective 'DPOO': expected one of AWM"),
        ({"objective": "DPO", "params": {"beta": -1}}, "beta = -1: expected a positive number"),
        ({"objective": "DPO", "reference": None}, "DPO compares with a reference, but there are no reference errors"),
        ({"objective": "DPO", "judgement": {"pairs": [[0, 1, 1.5]]}}, r"p\[0\] = 1.5: expected a number in \[0, 1\]"),
        ({"objective": "DPO", "judgement": {"desirable": [1, 0]}}, "DPO learns from Pairs, not from Unpaired"),
        ({"objective": "DPO", "judgement": {"pairs": [[0, 2, 1]]}}, "image 2: expected a whole number from 0 to 1"),
        ({"objective": "DPO", "judgement": {"pairs": [[0, -1, 1]]}}, "image -1: expected a whole number from 0 to 1"),
        ({"objective": "DPO", "judgement": {"pairs": [[0, 0.5, 1]]}}, "image 0.5: expected a whole number"),
        ({"objective": "DPO", "judgement": {}}, "judgement of nothing: expected exactly one of pairs, desirable"),
        ({"objective": "KTO", "judgement": {"desirable": [1]}}, "desirable: 1 numbers; expected 2, one per image"),
        ({"objective": "DPO", "reference": [0.1]}, "reference: 1 errors; expected 2, one per image"),
        (
            {"objective": "RankDPO", "judgement": {"ranking": [[1]], "groups": [[0, 1]]}},
            "expected one list of scores per group, as long as the group",
        ),
        ({"objective": "DSPO"}, "DSPO reads the inner products of residuals policy_reference, which are missing"),
    ],
)
def test_a_bad_case_is_named_in_one_line(changes: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([PAIR | {"objective": "DPO", "name": "good"}, PAIR | changes]))
    with pytest.raises(ValueError, match=message) as caught:
        parity().main(path)
    assert "case x" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_null_or_not_there_is_left_out() -> None:
    """Nor need a case have a name, an image a group, a group images of its own, a number a decimal point."""
    full = PAIR | {"objective": "DPO"}
    empty = {"old": None, "cross": None, "score_gap": None, "params": None, "note": "anything"}
    evaluate = parity().evaluate
    assert evaluate({k: v for k, v in full.items() if k not in ("name", "params")} | empty) == (
        evaluate(full) | {"name": None}
    )
    assert evaluate(full | {"judgement": {"pairs": [[0.0, 1.0, 1]]}}) == evaluate(full)
    assert evaluate(full | {"judgement": {"pairs": []}}) == {"name": "x", "loss": [], "grad": [0.0, 0.0]}
    case = {"name": "x", "objective": "DGPO", "policy": [1, 2, 3, 4], "reference": [2, 2, 2, 2]}
    case["judgement"] = {"advantages": [1, -1, 9, 2], "groups": [[3, 0], [0], [1, 3]]}
    found = evaluate(case)
    single = [evaluate(case | {"judgement": case["judgement"] | {"groups": [g]}}) for g in case["judgement"]["groups"]]
    assert found["loss"] == [loss for part in single for loss in part["loss"]]
    assert found["grad"] == pytest.approx(np.sum([part["grad"] for part in single], axis=0).tolist())
    assert found["grad"][2] == 0


def test_desirability_is_a_class_unless_asked_otherwise() -> None:
    case = {"name": "x", "objective": "KTO", "params": {"beta": 20}, "policy": [0.1, 0.2, 0.3], "reference": [0.2] * 3}
    soft, hard = ({"judgement": {"desirable": d}} for d in ([0.7, 0.5, 0.1], [1, 0.5, 0]))
    evaluate = parity().evaluate
    assert evaluate(case | soft) == evaluate(case | hard)
    assert evaluate(case | soft)["loss"][1] == 0.5
    mixed = evaluate(case | soft | {"params": {"beta": 20, "soft": True}})["loss"]
    good, bad = evaluate(case | hard)["loss"][0], 1 - evaluate(case | hard)["loss"][0]
    assert mixed[0] == pytest.approx(0.7 * good + 0.3 * bad)


@pytest.mark.parametrize("text", ['{"name": "x"}', "[1]", "[", '["\xff"]'])
def test_what_is_no_list_of_cases_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # InputError, and what json and codecs raise, are such
        parity().main(path)
    assert "\n" not in str(caught.value)


def test_bad_cases_end_with_status_2_and_print_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([PAIR | {"objective": "DPO"}, PAIR | {"objective": "no"}]))
    done = run(path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)

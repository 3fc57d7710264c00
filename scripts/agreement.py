"""How far scorers agree with judgements of pairs: accuracy, Kendall's tau-b, and calibration on held-out prompts.

    diffalign score IMAGES --scorer pickscore hpsv2.1 --out SCORES
    python scripts/agreement.py SCORES PAIRS [--out agreement.json]

PAIRS holds judgements of images that SCORES scores (imported, or made by `diffalign pair` or `judge`). Accuracy is over
decided pairs, P(first) = 1/2 being a tie; a tie of the scorer counts half; its interval is over resampled prompts. The
temperature is fitted on the prompts of one half (by a named stream) and calibration is measured on those of the other.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from diffalign import folders
from diffalign.intervals import bootstrap, prompt_means
from diffalign.records import InputError
from diffalign.streams import stream

RESAMPLES, BINS = 2000, 10


def agreement(scores: Path, pairs: Path) -> dict[str, dict[str, float]]:
    """Scorer -> its numbers; raises InputError where the folders share no pair."""
    values: dict[str, dict[str, float]] = {}
    prompts: dict[str, str] = {}
    for row in folders.read(scores, "scores", ["image_id", "prompt_id", "scorer", "value"]).to_pylist():
        prompts[row["image_id"]] = row["prompt_id"]
        if row["value"] is not None:
            values.setdefault(row["scorer"], {})[row["image_id"]] = row["value"]
    rows = [
        (r["images"], r["p"])
        for r in folders.read(pairs, "judgements", ["kind", "images", "p", "status"]).to_pylist()
        if r["kind"] == "pair" and r["status"] in ("decided", "tie")
    ]
    found = {}
    for scorer, known in sorted(values.items()):
        kept = [(known[a] - known[b], p, prompts[a]) for (a, b), p in rows if a in known and b in known]
        if kept:
            gap, p, prompt = map(np.array, zip(*kept, strict=True))
            found[scorer] = {"pairs": len(kept), "left_out": len(rows) - len(kept)} | numbers(gap, p, prompt)
    if not found:
        raise InputError(f"{scores}, {pairs}: share no pair of scored images")
    return found


def numbers(gap: np.ndarray, p: np.ndarray, prompt: np.ndarray) -> dict[str, float]:
    """Agreement of score differences with P(first is better), (pairs,) each; NaN where there is nothing to count."""
    decided, hit = p != 0.5, np.where(gap == 0, 0.5, (gap > 0) == (p > 0.5))
    out = {"prompts": len(np.unique(prompt)), "ties": int((~decided).sum())}
    if decided.any():
        _, place = np.unique(prompt[decided], return_inverse=True)
        means = prompt_means(hit[decided], place)
        low, high = bootstrap(means[None], RESAMPLES, stream("bootstrap", 0, "agreement"))[0]
        out |= {"accuracy": float(hit[decided].mean()), "accuracy_by_prompt": float(means.mean())}
        out |= {"accuracy_low": float(low), "accuracy_high": float(high)}
    a, b = np.sign(gap), np.sign(p - 0.5)
    norm = np.sqrt((a != 0).sum() * (b != 0).sum())
    out["kendall_tau_b"] = float((a * b).sum() / norm) if norm else float("nan")
    return out | calibration(gap, p, prompt)


def calibration(gap: np.ndarray, p: np.ndarray, prompt: np.ndarray) -> dict[str, float]:
    """Slope of P = sigmoid(slope · gap) fitted on half of the prompts; NLL, Brier and ECE on the other half."""
    names = np.unique(prompt)
    half = stream("agreement", 0).permutation(len(names)) < len(names) // 2
    fit = np.isin(prompt, names[half])
    if fit.all() or not fit.any():
        return {}
    slope = fitted(gap[fit], p[fit])
    q, y = sigmoid(slope * gap[~fit]), p[~fit]
    edge = np.minimum((q * BINS).astype(int), BINS - 1)
    error = sum(abs((q - y)[edge == k].sum()) for k in range(BINS)) / len(y)
    return {
        "slope": slope,
        "nll": nll(slope * gap[~fit], y),
        "brier": float(((q - y) ** 2).mean()),
        "ece": float(error),
    }


def fitted(gap: np.ndarray, p: np.ndarray) -> float:
    """The slope of least NLL, by Newton's method; a small ridge holds it where the pairs are separable."""
    scale = gap.std() or 1.0
    x, slope = gap / scale, 0.0
    for _ in range(100):
        q = sigmoid(slope * x)
        step = (((q - p) * x).mean() + 1e-3 * slope) / ((q * (1 - q) * x * x).mean() + 1e-3)
        slope -= np.clip(step, -1, 1)
        if abs(step) < 1e-12:
            break
    return float(slope / scale)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1 + np.tanh(x / 2))


def nll(logit: np.ndarray, p: np.ndarray) -> float:
    """Mean of -p log q - (1 - p) log(1 - q), q = sigmoid(logit), in nats."""
    return float((np.logaddexp(0, logit) - p * logit).mean())


def main() -> None:
    """Print a table; write JSON where --out names a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    try:
        found = agreement(given.scores, given.pairs)
    except InputError as error:
        sys.exit(f"agreement: {error}")
    columns = ("pairs", "accuracy", "accuracy_low", "accuracy_high", "kendall_tau_b", "slope", "nll", "brier", "ece")
    print("".join(f"{c:>16}" for c in ("scorer", *columns)))
    for scorer, n in found.items():
        print(f"{scorer:>16}" + "".join(f"{n.get(c, float('nan')):>16.5g}" for c in columns))
    if given.out:
        folders.write_atomically(given.out, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()

"""How far scorers agree with judgements of pairs: accuracy, Kendall's tau-b, and calibration on held-out prompts.

    diffalign score IMAGES --scorer pickscore hpsv2.1 --out SCORES
    python scripts/agreement.py SCORES PAIRS [--dimension NAME] [--out agreement.json]

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
from diffalign.calibration import agreement as agreed
from diffalign.calibration import calibrated, fitted
from diffalign.records import InputError
from diffalign.streams import stream


def agreement(scores: Path, pairs: Path, dimension: str = "") -> dict[str, dict[str, float]]:
    """Scorer -> its numbers, by the judgements of one dimension where it is named.

    Raises InputError where the folders are not what they should be, or share no pair.
    """
    folders.open_folder(scores, "score")
    folders.open_folder(pairs, *folders.JUDGED)
    values: dict[str, dict[str, float]] = {}
    prompts: dict[str, str] = {}
    for row in folders.read(scores, "scores", ["image_id", "prompt_id", "scorer", "value"]).to_pylist():
        prompts[row["image_id"]] = row["prompt_id"]
        known = values.setdefault(row["scorer"], {})
        if row["value"] is not None:
            known[row["image_id"]] = row["value"]
    judged = folders.read(pairs, "judgements", ["kind", "images", "p", "dimension"]).to_pylist()
    judged = [r for r in judged if r["kind"] == "pair" and r["p"] is not None]
    rows = [(r["images"], r["p"]) for r in judged if dimension in ("", r["dimension"])]
    if dimension and not rows:
        there = ", ".join(sorted({r["dimension"] for r in judged if r["dimension"]})) or "no --dimension"
        raise InputError(f"{pairs}: holds no pairs of dimension {dimension}; expected {there}")
    found: dict[str, dict[str, float]] = {}
    for scorer, known in sorted(values.items()):
        kept = [(known[a] - known[b], p, prompts[a]) for (a, b), p in rows if a in known and b in known]
        found[scorer] = {"pairs": len(kept), "left_out": len(rows) - len(kept)}
        if kept:
            gap, p, prompt = map(np.array, zip(*kept, strict=True))
            found[scorer] |= numbers(gap, p, prompt)
    if not any(n["pairs"] for n in found.values()):
        raise InputError(f"{scores}, {pairs}: share no pair of scored images")
    return found


def numbers(gap: np.ndarray, p: np.ndarray, prompt: np.ndarray) -> dict[str, float]:
    """Agreement of score differences with P(first is better), (pairs,) each, and calibration on half of the prompts.

    The slope of P = sigmoid(slope · gap) is fitted on the other half.
    """
    names = np.unique(prompt)
    half = stream("agreement", 0).permutation(len(names)) < len(names) // 2
    fit, out = np.isin(prompt, names[half]), agreed(gap, p, prompt)
    if fit.all() or not fit.any():
        return out
    slope = fitted(gap[fit], p[fit])
    return out | {"slope": slope} | calibrated(gap[~fit], p[~fit], slope)


def main() -> None:
    """Print a table; write JSON where --out names a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--dimension", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    try:
        if given.out and given.out.is_dir():
            raise InputError(f"{given.out}: is a folder, expected a file")
        found = agreement(given.scores, given.pairs, given.dimension)
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

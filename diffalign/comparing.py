"""Scores of two models -> paired win rates and score differences, with intervals clustered by prompt."""

import csv
import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffalign import folders, manifest
from diffalign.intervals import bootstrap, outcomes, prompt_means, sign_flip
from diffalign.records import InputError
from diffalign.streams import stream

Cell = tuple[str, int]
_SETTINGS = ("sampler", "seed")


@dataclass(frozen=True)
class _Side:
    """One model's images by (prompt, index), and its scores: scorer -> cell -> value, scorer -> what identifies it."""

    folder: Path
    images: dict[Cell, dict[str, Any]]
    texts: dict[str, str]
    values: dict[str, dict[Cell, float | None]]
    revisions: dict[str, tuple[str, str]]

    def drawn(self) -> dict[str, list[Any]]:
        """What the images were drawn with: the distinct values of each column."""
        columns = ("model", "adapter", *_SETTINGS)
        return {c: sorted({r[c] for r in self.images.values()}, key=str) for c in columns}


def compare(a: Path, b: Path, /, *, out: Path, resamples: int = 10_000, seed: int = 0, tolerance: float = 0.0) -> str:
    """Compare two models by their scores of images drawn from the same prompts and noises: b against a.

    Images are joined on (prompt, index). The win rate is how often b scores higher, ties counted half, averaged in a
    prompt, then over prompts; intervals are 95 % percentile bootstraps over prompts.

    Args:
        a: Record folder of scores of the first model, the one to beat.
        b: Record folder of scores of the second model.
        out: Folder to write compare.json and cells.csv to.
        resamples: Bootstrap resamples, and sign flips of the permutation test.
        seed: Names the resamples.
        tolerance: Scores that differ by no more than this are tied.
    """
    _require_free(out, a, b)
    first, second = _side(a), _side(b)
    result = _compared(first, second, resamples, seed, tolerance) | {"a": _relative(a, out), "b": _relative(b, out)}
    manifest.clear(out / "cells.csv", out / "compare.json")
    folders.write_atomically(out / "cells.csv", _cells_csv(first, second, list(result["scorers"])).encode())
    folders.write_atomically(out / "compare.json", (json.dumps(result, indent=1) + "\n").encode())
    said = [
        f"{name}: win rate {found['win_rate']:.1%} [{found['win_rate_low']:.1%}, {found['win_rate_high']:.1%}], "
        f"mean {found['mean_a']:.4g} -> {found['mean_b']:.4g} "
        f"({found['delta']:+.4g} [{found['delta_low']:+.4g}, {found['delta_high']:+.4g}])"
        for name, found in result["scorers"].items()
    ]
    lost = result["cells_only_a"] + result["cells_only_b"]
    note = f"; {lost} images on one side only ({', '.join(result['unmatched'])})" if lost else ""
    return (
        f"{out}: b against a on {result['prompts']} prompts, {result['cells']} pairs of images{note}; "
        f"{'; '.join(said)}; "
        f"next: diffalign report RUN --out report.html"
    )


def comparison(
    a: Path, b: Path, /, *, resamples: int = 10_000, seed: int = 0, tolerance: float = 0.0
) -> dict[str, Any]:
    """What `compare` finds, as data: for each scorer of both folders win rate, difference of means, p value.

    Means and their difference are averaged in a prompt first, medians and counts are over cells (images of one prompt
    and index). Raises InputError where the images were drawn with other settings, where the same scorer had other
    weights, or where fewer than two prompts are common.
    """
    return _compared(_side(a), _side(b), resamples, seed, tolerance)


def _compared(first: _Side, second: _Side, resamples: int, seed: int, tolerance: float) -> dict[str, Any]:
    if resamples < 1 or not 0 <= tolerance < math.inf:
        raise InputError(f"resamples = {resamples}, tolerance = {tolerance}: expected at least 1, and at least 0")
    _require_alike(first, second)
    cells = sorted(set(first.images) & set(second.images))
    only_a, only_b = (sorted(set(x.images) - set(y.images)) for x, y in ((first, second), (second, first)))
    names = [name for name in first.values if name in second.values]
    found = {}
    for name in sorted(names, key=lambda n: (not n.startswith("gold"), n)):
        found[name] = _statistics(first, second, name, cells, resamples, seed, tolerance)
    return {
        "a": str(first.folder),
        "b": str(second.folder),
        "prompts": len({prompt for prompt, _ in cells}),
        "cells": len(cells),
        "cells_only_a": len(only_a),
        "cells_only_b": len(only_b),
        "unmatched": [
            f"{side} {prompt}/{index}" for side, x in (("a", only_a), ("b", only_b)) for prompt, index in x[:5]
        ],
        "scorers": found,
        "scorers_left_out": sorted(set(first.values) ^ set(second.values)),
        "drawn": {"a": first.drawn(), "b": second.drawn()},
        "tolerance": tolerance,
        "resamples": resamples,
        "seed": seed,
        "versions": folders.versions(),
    }


def _side(folder: Path) -> _Side:
    folders.open_folder(folder, "score")
    images: dict[Cell, dict[str, Any]] = {}
    cells: dict[str, Cell] = {}
    for name, row in folders.image_rows(folder).items():
        if row["index"] is None:
            raise InputError(f"{folder}: image {name} has no index, so it has no counterpart")
        cells[name] = (row["prompt_id"], row["index"])
        if cells[name] in images:
            raise InputError(f"{folder}: images {images[cells[name]]['id']} and {name} have one prompt and one index")
        images[cells[name]] = row
    values: dict[str, dict[Cell, float | None]] = {}
    revisions: dict[str, tuple[str, str]] = {}
    for score in folders.records(folder, "scores"):
        values.setdefault(score.scorer, {})[cells[score.image_id]] = score.value
        revisions[score.scorer] = (score.revision, score.preprocessing)
    return _Side(folder, images, folders.texts(folder), values, revisions)


def _require_alike(a: _Side, b: _Side) -> None:
    """Raise InputError unless the common cells were drawn alike and judged alike."""
    common = sorted(set(a.images) & set(b.images))
    if len({prompt for prompt, _ in common}) < 2:
        raise InputError(f"{a.folder} and {b.folder}: fewer than two prompts in common, so there is no interval")
    for cell in common:
        for name in _SETTINGS:
            old, new = a.images[cell][name], b.images[cell][name]
            if old != new:
                raise InputError(
                    f"{a.folder} and {b.folder}: drawn with {name} {old!r} and {new!r}; only images drawn alike compare"
                )
    both = [name for name in a.values if name in b.values]
    if not both:
        raise InputError(
            f"{a.folder} and {b.folder}: no scorer in common ({', '.join(a.values)}; {', '.join(b.values)})"
        )
    other = [name for name in both if a.revisions[name] != b.revisions[name]]
    if other:
        raise InputError(
            f"{a.folder} and {b.folder}: judged by different revisions of {other[0]}; score one of them again"
        )


def _statistics(
    a: _Side, b: _Side, name: str, cells: list[Cell], resamples: int, seed: int, tolerance: float
) -> dict[str, Any]:
    """The numbers of one scorer over the cells where both sides have a value."""
    known = [c for c in cells if a.values[name].get(c) is not None and b.values[name].get(c) is not None]
    prompts, place = np.unique([prompt for prompt, _ in known], return_inverse=True)
    if len(prompts) < 2:
        raise InputError(f"{a.folder} and {b.folder}: fewer than two prompts with scores by {name} on both sides")
    old, new = (np.array([side.values[name][c] for c in known]) for side in (a, b))
    outcome = outcomes(old, new, tolerance)
    by_prompt = np.stack([prompt_means(x, place) for x in (outcome, new - old, old, new)])
    win_rate, delta, mean_a, mean_b = by_prompt.mean(axis=1)
    (win_low, win_high), (low, high) = bootstrap(by_prompt[:2], resamples, stream("bootstrap", seed))
    return {
        "win_rate": float(win_rate),
        "win_rate_low": float(win_low),
        "win_rate_high": float(win_high),
        "wins": int((outcome == 1).sum()),
        "ties": int((outcome == 0.5).sum()),
        "losses": int((outcome == 0).sum()),
        "missing": len(cells) - len(known),
        "mean_a": float(mean_a),
        "mean_b": float(mean_b),
        "median_a": float(np.median(old)),
        "median_b": float(np.median(new)),
        "delta": float(delta),
        "delta_low": float(low),
        "delta_high": float(high),
        "delta_median": float(np.median(new - old)),
        "p_value": sign_flip(by_prompt[1], resamples, stream("permutation", seed)),
    }


def _relative(folder: Path, out: Path) -> str:
    return os.path.relpath(folder.resolve(), out.resolve())


def _require_free(out: Path, a: Path, b: Path) -> None:
    """Raise InputError where `out` holds anything but this comparison, or what is left of it."""
    path = out / "compare.json"
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder or a new name")
    if not path.is_file():
        known = ("cells.csv",)
        if out.exists() and any(e.name not in known and not manifest.is_temporary(e) for e in out.iterdir()):
            raise InputError(f"{out}: is not empty and holds no comparison; choose another --out")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sides = (found["a"], found["b"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is not a comparison; choose another --out") from None
    if sides != (_relative(a, out), _relative(b, out)):
        raise InputError(f"{out}: holds the comparison of {sides[0]} and {sides[1]}; choose another --out")


def _cells_csv(a: _Side, b: _Side, names: list[str]) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["prompt_id", "index", "prompt", *(f"{n} {side}" for n in names for side in "ab")])
    for cell in sorted(set(a.images) & set(b.images)):
        row = [side.values[n].get(cell) for n in names for side in (a, b)]
        writer.writerow([*cell, a.texts.get(cell[0]), *row])
    return sink.getvalue()

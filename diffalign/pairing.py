"""Scores -> preferences: which images of a prompt are compared, by a rule that is a plain function of their scores."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from diffalign import folders
from diffalign.records import InputError, Judgement
from diffalign.records import pair as pair_record
from diffalign.scorers import MEASURES
from diffalign.streams import stream

LEFT_OUT = ("missing scores", "prompts without any score", "groups of one", "groups without spread", "tied pairs")
Rule = Callable[[np.ndarray, np.random.Generator], list[tuple[int, int]]]


def best_vs_worst(values: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(best, worst)."""
    return [(int(values.argmax()), int(values.argmin()))]


def all_pairs(values: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Every image against every one below it."""
    ranked = _ranked(values)
    return [(better, worse) for i, better in enumerate(ranked) for worse in ranked[i + 1 :]]


def neighbours(values: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Every image against the next one below it."""
    ranked = _ranked(values)
    return list(zip(ranked, ranked[1:], strict=False))


def best_vs_random(values: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The best against one of the others, drawn uniformly."""
    best, *others = _ranked(values)
    return [(best, others[rng.integers(len(others))])]


def _ranked(values: np.ndarray) -> list[int]:
    """Indices from the highest value to the lowest; equal values in their given order."""
    return np.argsort(-values, kind="stable").tolist()


RULES: dict[str, Rule] = {f.__name__: f for f in (best_vs_worst, all_pairs, neighbours, best_vs_random)}


def pair(
    scores: Path,
    /,
    *,
    out: Path,
    rule: Literal["best_vs_worst", "all_pairs", "neighbours", "best_vs_random"] = "best_vs_worst",
    scorer: str | None = None,
    min_gap: float = 0.0,
    temperature: float | None = None,
    seed: int = 0,
) -> str:
    """Make preferences of scores: P(first is better) = 1, or sigmoid(gap / temperature), for images of one prompt.

    Groups of one, groups without spread and tied pairs are left out and counted; missing scores too. The gold scores
    are refused: they measure, and nothing is trained on them.

    Args:
        scores: Record folder of scores.
        out: Record folder to write.
        rule: Which images of a prompt are compared.
        scorer: By whose scores; needed where the folder holds those of several.
        min_gap: Scores that differ by no more than this are tied.
        temperature: Scale of the scores for soft labels; none means hard ones.
        seed: Names the random choice of best_vs_random.
    """
    if rule not in RULES:
        raise InputError(f"rule {rule!r}: expected one of {', '.join(RULES)}")
    if not (0 <= min_gap < math.inf) or (temperature is not None and not (0 < temperature < math.inf)):
        raise InputError(f"min_gap = {min_gap} (at least 0), temperature = {temperature} (more than 0): out of range")
    folders.open_folder(scores, "score")
    judge = _judge(scores, scorer)
    groups, counts = _groups(scores, judge)
    rows: list[Judgement] = []
    for prompt in sorted(groups):
        images = sorted(groups[prompt])
        values = np.array([groups[prompt][image] for image in images])
        counts["groups of one"] += len(images) == 1
        if len(images) > 1 and np.ptp(values) <= min_gap:
            counts["groups without spread"] += 1
        elif len(images) > 1:
            chosen = RULES[rule](values, stream("pairing", seed, prompt))
            decided = [(b, w) for b, w in chosen if values[b] - values[w] > min_gap]
            counts["tied pairs"] += len(chosen) - len(decided)
            rows += [_record(prompt, images, values, b, w, rule, judge, temperature) for b, w in decided]
    left_out = ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "nothing"
    if not rows:
        raise InputError(f"{scores}: gives no pair by {judge}; left out: {left_out}")
    arguments = {"rule": rule, "scorer": judge, "min_gap": min_gap, "temperature": temperature, "seed": seed}
    folders.begin(out, folders.Manifest("pair", arguments, 1, (folders.parent(out, scores),)))
    folders.write_part(out, "judgements", 0, rows)
    gap = np.median([r.score_gap for r in rows])
    return (
        f"{out}: {len(rows)} pairs of {len(groups)} prompts by {judge} ({rule}), median gap {gap:.3g}; "
        f"left out: {left_out}; next: diffalign train RECIPE.py --data {out} --out …"
    )


def _judge(scores: Path, wanted: str | None) -> str:
    """The scorer to pair by; raises InputError where it measures only, is not there, or is not the only one."""
    found = sorted(set(folders.read(scores, "scores", ["scorer"])["scorer"].to_pylist()))
    usable = [name for name in found if name not in MEASURES]
    if wanted in MEASURES or (found and not usable):
        raise InputError(f"{scores}: {wanted or found[0]} is for measuring only; nothing is ever trained on it")
    if wanted is not None and wanted not in usable:
        raise InputError(f"{scores}: holds no scores by {wanted!r}, only by {', '.join(found) or 'nobody'}")
    if wanted is None and len(usable) != 1:
        raise InputError(f"{scores}: holds scores by {', '.join(usable) or 'nobody'}; choose one with --scorer")
    return wanted or usable[0]


def _groups(scores: Path, judge: str) -> tuple[dict[str, dict[str, float]], Counter[str]]:
    """Prompt id -> image id -> score, and how many are missing; raises InputError where an image is scored twice."""
    groups: dict[str, dict[str, float]] = {}
    seen: set[tuple[str, str]] = set()
    counts = Counter(dict.fromkeys(LEFT_OUT, 0))
    for row in folders.records(scores, "scores"):
        if row.scorer != judge:
            continue
        if (row.prompt_id, row.image_id) in seen:
            raise InputError(f"{scores}: image {row.image_id} has two scores by {judge}")
        seen.add((row.prompt_id, row.image_id))
        group = groups.setdefault(row.prompt_id, {})
        if row.value is None:
            counts["missing scores"] += 1
        else:
            group[row.image_id] = row.value
    counts["prompts without any score"] = sum(not group for group in groups.values())
    return groups, counts


def _record(
    prompt: str,
    images: Sequence[str],
    values: np.ndarray,
    better: int,
    worse: int,
    rule: str,
    judge: str,
    temperature: float | None,
) -> Judgement:
    gap = float(values[better] - values[worse])
    p = 1.0 if temperature is None else 1 / (1 + math.exp(-gap / temperature))
    return pair_record(prompt, images[better], images[worse], p, source=rule, rater=judge, score_gap=gap)

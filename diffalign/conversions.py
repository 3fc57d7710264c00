"""Judgements -> judgements, by named policies: pure functions that know neither files nor pictures.

A judgement says P(first is better) of a pair, scores of a list, or the desirability of one image. Nothing here depends
on the order of the judgements given, and no judgement is changed in place.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal

from diffalign.records import InputError, Judgement, digest, group_id
from diffalign.records import pair as pair_record

Lists = Literal["keep", "all", "adjacent", "best_vs_rest", "best_vs_worst"]
Ties = Literal["drop", "keep", "downweight"]
TIED = ("tie", "both_good", "both_bad")


def swap(row: Judgement) -> Judgement:
    """P(first) -> P(second): the images change places, P becomes 1 - P and the gap its negative; twice is nothing."""
    if row.kind != "pair":
        raise InputError(f"judgement {row.id}: is of kind {row.kind}, expected a pair")
    p = None if row.p is None else 1 - row.p
    gap = None if row.score_gap is None else -row.score_gap
    votes = None if row.votes is None else row.votes[::-1]
    return dataclasses.replace(row, images=row.images[::-1], p=p, score_gap=gap, votes=votes)


def to_pairs(row: Judgement, prompt: str, lists: Lists) -> list[Judgement]:
    """The pairs that a list of k images gives, better image first; equal scores give ties.

    all: k (k - 1) / 2 of them. adjacent: each against the next below. best_vs_rest: the best against each.
    best_vs_worst: one. keep: the list as it is. A pair is left as it is by all policies.
    """
    if row.kind != "ranking" or lists == "keep":
        return [row]
    ranked = sorted(zip(row.scores, row.images, strict=True), key=lambda item: (-item[0], item[1]))
    chosen = {
        "all": list(combinations(ranked, 2)),
        "adjacent": list(zip(ranked, ranked[1:], strict=False)),
        "best_vs_rest": [(ranked[0], other) for other in ranked[1:]],
        "best_vs_worst": [(ranked[0], ranked[-1])],
    }[lists]
    return [_pair_of(row, prompt, *better, *worse) for better, worse in chosen]


def _pair_of(row: Judgement, prompt: str, high: float, better: str, low: float, worse: str) -> Judgement:
    p, status = (1.0, "decided") if high > low else (0.5, "tie")
    known = {"dimension": row.dimension, "rater": row.rater, "weight": row.weight}
    return pair_record(
        prompt, better, worse, p, source=row.source or "list", status=status, score_gap=high - low, **known
    )


def to_unpaired(row: Judgement, prompt: str) -> list[Judgement]:
    """Each image of a pair by itself, desirable by P that it is the better one; both good is 1 and 1, both bad 0 and 0.

    Other kinds are left as they are.
    """
    if row.kind != "pair" or row.status in ("unlabelled", "no_preference"):
        return [row]
    by_status = {"both_good": (1.0, 1.0), "both_bad": (0.0, 0.0)}
    return [
        dataclasses.replace(
            row,
            id=digest("unpaired", row.id, image),
            group=group_id(prompt, [image]),
            kind="unpaired",
            images=(image,),
            p=p,
            status="decided",
            score_gap=None,
            votes=None,
        )
        for image, p in zip(row.images, by_status.get(row.status, (row.p, 1 - row.p)), strict=True)
    ]


def tied(row: Judgement, ties: Ties, weight: float = 0.5) -> Judgement | None:
    """A tie by policy: none (drop), P = 0.5 (keep), or P = 0.5 with its weight times `weight` (downweight)."""
    if row.status not in TIED or row.kind == "unpaired":
        return row
    if ties == "drop":
        return None
    lighter = row.weight * (weight if ties == "downweight" else 1.0)
    p = 0.5 if row.kind == "pair" else None
    return dataclasses.replace(row, p=p, status="tie", weight=lighter)


def in_dimension(rows: Sequence[Judgement], dimension: str) -> list[Judgement]:
    """What is said in one of several dimensions of the same images.

    all: everything. mean: one pair with the mean P. pareto: one pair where no two dimensions disagree about the better
    image (a tie where they do). Else the dimension of that name. mean and pareto leave lists as they are.
    """
    if dimension == "all":
        return list(rows)
    if dimension not in ("mean", "pareto"):
        return [r for r in rows if (r.dimension or "overall") == dimension]
    pairs = sorted((r for r in rows if r.kind == "pair" and r.p is not None), key=lambda r: (r.dimension or "", r.id))
    others = [r for r in rows if r.kind != "pair"]
    if not pairs:
        return others
    if dimension == "mean":
        p = math.fsum(r.p for r in pairs) / len(pairs)
    else:
        sides = {(r.p > 0.5) - (r.p < 0.5) for r in pairs} - {0}
        p = {(1,): 1.0, (-1,): 0.0}.get(tuple(sides), 0.5)
    name = digest("judgement", dimension, *(r.id for r in pairs))
    status = "tie" if p == 0.5 else "decided"
    merged_row = dataclasses.replace(pairs[0], id=name, p=p, status=status, dimension=dimension, votes=None)
    return [*others, merged_row]


def probability(first: float, second: float, temperature: float) -> float:
    """P(first is better) = sigmoid((first - second) / temperature) of two scores."""
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature = {temperature}: expected a finite number above 0")
    gap = (first - second) / temperature
    return 1 / (1 + math.exp(-gap)) if gap >= 0 else math.exp(gap) / (1 + math.exp(gap))


def merged(rows: Sequence[Judgement]) -> Judgement:
    """One judgement of what several say of the same images: p and scores are their weighted means, weights add up.

    For a loss that is linear in desirability this is the same as all of them. Pairs are never merged.
    """
    first = min(rows, key=lambda r: r.id)
    images = tuple(sorted(first.images))
    if first.kind == "pair" or any(tuple(sorted(r.images)) != images or r.kind != first.kind for r in rows):
        raise InputError(f"judgement {first.id}: others of its group are of other images; expected the same")
    total = math.fsum(r.weight for r in rows)
    shares = [r.weight / total if total else 1 / len(rows) for r in rows]
    p = None if first.p is None else math.fsum(s * r.p for s, r in zip(shares, rows, strict=True))
    scores = None
    if first.scores is not None:
        by_image = [dict(zip(r.images, r.scores, strict=True)) for r in rows]
        scores = tuple(math.fsum(s * b[i] for s, b in zip(shares, by_image, strict=True)) for i in images)
    p = None if p is None else min(1.0, max(0.0, p))
    return dataclasses.replace(first, images=images, p=p, scores=scores, weight=total, rater=None, votes=None)


def prompt_weights(rows: Iterable[Judgement], prompts: Mapping[str, str]) -> list[Judgement]:
    """Weights times 1 / (judgements of the prompt): every prompt counts alike. `prompts` maps a group to its prompt."""
    listed = list(rows)
    counts = Counter(prompts[r.group] for r in listed)
    return [dataclasses.replace(r, weight=r.weight / counts[prompts[r.group]]) for r in listed]


def agreement(rows: Sequence[Judgement]) -> float:
    """The share of decided judgements of one pair of images that name the same better one: at least one half."""
    sides = [_better(r) for r in rows if r.kind == "pair" and r.p is not None and r.p != 0.5]
    return max(Counter(sides).values()) / len(sides) if sides else 0.5


def consistent(rows: Sequence[Judgement], at_least: int) -> bool:
    """Whether at least that many judgements of one pair name the same better image, and none names the other."""
    sides = Counter(_better(r) for r in rows if r.kind == "pair" and r.p is not None and r.p != 0.5)
    return len(sides) == 1 and max(sides.values()) >= at_least


def _better(row: Judgement) -> str:
    return row.images[row.p < 0.5]


def transitive(rows: Sequence[Judgement], prompt: str) -> tuple[list[Judgement], int]:
    """(The pairs of one prompt and those they imply: a > b and b > c give a > c; how many stood in a circle, left out).

    Pickscore's loader relabels in this spirit; here a pair that was judged keeps its judgement.
    """
    edges = {(_better(r), r.images[r.p >= 0.5]) for r in rows if r.kind == "pair" and r.p not in (None, 0.5)}
    below: dict[str, set[str]] = {}
    for better, worse in edges:
        below.setdefault(better, set()).add(worse)
    reach = {image: _reach(image, below) for image in below}
    circles = {frozenset((a, b)) for a, found in reach.items() for b in found if a in reach.get(b, ())}
    circular = set().union(*circles)
    kept = [r for r in rows if r.kind != "pair" or frozenset(r.images) not in circles]
    judged = {frozenset(r.images) for r in kept if r.kind == "pair"}
    implied = [
        pair_record(prompt, better, worse, 1.0, source="transitive")
        for better in sorted(reach)
        for worse in sorted(reach[better])
        if not {better, worse} & circular and frozenset((better, worse)) not in judged
    ]
    return kept + implied, len(rows) - len(kept)


def _reach(start: str, below: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = list(below.get(start, ()))
    while todo:
        image = todo.pop()
        if image not in found:
            found.add(image)
            todo += below.get(image, ())
    return found

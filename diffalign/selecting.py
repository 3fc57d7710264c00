"""Which judgements to keep, by named rules: pure functions of judgements, prompts and scores."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from diffalign import conversions
from diffalign.records import InputError, Judgement

Rows = list[Judgement]
Scores = Mapping[str, Mapping[str, float]]


def unrepeated(rows: Sequence[Judgement]) -> Rows:
    """The first, by id, of judgements that say the same of the same images."""
    kept: dict[tuple[object, ...], str] = {}
    for row in sorted(rows, key=lambda r: r.id):
        order = sorted(range(len(row.images)), key=lambda i: row.images[i])
        images = tuple(row.images[i] for i in order)
        said = 1 - row.p if row.kind == "pair" and row.images != images else row.p
        scores = tuple(row.scores[i] for i in order) if row.scores else None
        kept.setdefault((row.kind, row.dimension, images, said, scores), row.id)
    names = set(kept.values())
    return [r for r in rows if r.id in names]


def _by_group(rows: Sequence[Judgement]) -> dict[str, Rows]:
    groups: dict[str, Rows] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    return groups


def agreed(rows: Sequence[Judgement], least: float) -> Rows:
    """Pairs of groups on which at least that share agrees: of several judgements, or of the votes behind one P."""
    groups = _by_group(rows)
    share = {
        name: max(found[0].p, 1 - found[0].p) if len(found) == 1 else conversions.agreement(found)
        for name, found in groups.items()
        if found[0].kind == "pair"
    }
    return [r for r in rows if r.kind != "pair" or share[r.group] >= least]


def judged(rows: Sequence[Judgement], scores: Scores, judges: int) -> Rows:
    """Pairs that at least so many scorers put in the order of their label."""
    return [r for r in rows if r.kind == "pair" and _agreeing(r, scores) >= judges]


def _agreeing(row: Judgement, scores: Scores) -> int:
    first, second = row.images
    known = [v for v in scores.values() if first in v and second in v]
    return sum((v[first] - v[second]) * (row.p - 0.5) > 0 for v in known)


def consistent(rows: Sequence[Judgement], raters: int) -> Rows:
    """Pairs that so many judgements decide alike and none otherwise; what is no pair stays."""
    groups = _by_group(rows)
    kept = {name for name, found in groups.items() if conversions.consistent(found, raters)}
    return [r for r in rows if r.kind != "pair" or r.group in kept]


def in_dimension(rows: Sequence[Judgement], dimension: str) -> Rows:
    """What each rater says of each group in that dimension, or in all: their mean, or where none disagrees (pareto)."""
    said: dict[tuple[str, str], Rows] = defaultdict(list)
    for row in rows:
        said[row.group, row.rater or ""].append(row)
    return [r for name in sorted(said) for r in conversions.in_dimension(said[name], dimension)]


def softened(rows: Sequence[Judgement], temperature: float) -> Rows:
    """Pairs with P = sigmoid(score gap / temperature) for their label; what is no pair stays as it is."""
    found = []
    for row in rows:
        if row.kind != "pair":
            found.append(row)
            continue
        if row.score_gap is None:
            raise InputError(f"judgement {row.id}, field score_gap: is missing; name a folder with --scores")
        p = conversions.probability(row.score_gap, 0.0, temperature)
        found.append(dataclasses.replace(row, p=p, status="tie" if p == 0.5 else "decided", votes=None))
    return found


def capped(rows: Sequence[Judgement], prompts: Mapping[str, str], most: int) -> Rows:
    """At most so many of a prompt: those of the widest gap, of equal ones those of the smallest id."""
    counts, kept = Counter(), set()
    for row in sorted(rows, key=lambda r: (-abs(r.score_gap or 0.0), r.id)):
        counts[prompts[row.group]] += 1
        if counts[prompts[row.group]] <= most:
            kept.add(row.id)
    return [r for r in rows if r.id in kept]


def completed(rows: Sequence[Judgement], prompts: Mapping[str, str]) -> Rows:
    """Prompt by prompt, the pairs and those that follow from them, without those in a circle."""
    by_prompt: dict[str, Rows] = defaultdict(list)
    for row in rows:
        by_prompt[prompts[row.group]].append(row)
    return [r for prompt in sorted(by_prompt) for r in conversions.transitive(by_prompt[prompt], prompt)[0]]

"""Which judgements to keep, by named rules: pure functions of judgements, prompts and scores."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from diffalign import conversions
from diffalign.records import Judgement

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


def agreed(rows: Sequence[Judgement], least: float) -> Rows:
    """Pairs of groups on which at least that share agrees: of several judgements, or of the votes behind one P."""
    groups: dict[str, Rows] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
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


def prompts_of(rows: Sequence[Judgement], prompts: Mapping[str, str]) -> dict[str, str]:
    """Group -> prompt; a group that was added is of the prompt its images are of."""
    by_image = {image: prompts[r.group] for r in rows if r.group in prompts for image in r.images}
    return {r.group: prompts.get(r.group) or by_image[r.images[0]] for r in rows}


def capped(rows: Sequence[Judgement], prompts: Mapping[str, str], most: int) -> Rows:
    """At most so many of a prompt: those of the widest gap, of equal ones those of the smallest id."""
    of, counts, kept = prompts_of(rows, prompts), Counter(), set()
    for row in sorted(rows, key=lambda r: (-abs(r.score_gap or 0.0), r.id)):
        counts[of[row.group]] += 1
        if counts[of[row.group]] <= most:
            kept.add(row.id)
    return [r for r in rows if r.id in kept]


def completed(rows: Sequence[Judgement], prompts: Mapping[str, str]) -> Rows:
    """Prompt by prompt, the pairs and those that follow from them, without those in a circle."""
    by_prompt: dict[str, Rows] = defaultdict(list)
    for row in rows:
        by_prompt[prompts[row.group]].append(row)
    return [r for prompt in sorted(by_prompt) for r in conversions.transitive(by_prompt[prompt], prompt)[0]]

"""Preferences -> fewer and better ones; every judgement left out is counted by its reason."""

import csv
import dataclasses
import functools
import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from diffalign import conversions, fifa, folders, selecting
from diffalign.records import InputError, Judgement, digest
from diffalign.scorers import MEASURES, whole

Rows = list[Judgement]
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class _Data:
    """The judgements of a folder, how many say nothing and why, the prompt of each image, the prompts' texts, and
    scores by scorer and image.
    """

    rows: Rows
    silent: Mapping[str, int]
    prompts: Mapping[str, str]
    texts: Mapping[str, str]
    scores: Scores

    @property
    def total(self) -> int:
        return len(self.rows) + sum(self.silent.values())

    def prompts_of(self, rows: Rows) -> dict[str, str]:
        """Group -> prompt."""
        return {r.group: self.prompts[r.images[0]] for r in rows}


def filter(
    data: Path,
    /,
    *,
    out: Path,
    dimension: str = "all",
    lists: conversions.Lists = "keep",
    ties: conversions.Ties = "keep",
    min_gap: float = 0.0,
    min_agreement: float = 0.0,
    raters: int = 0,
    scores: Path | None = None,
    scorer: str | None = None,
    judges: int = 0,
    repeated: Literal["keep", "drop"] = "keep",
    transitive: bool = False,
    per_prompt: int | None = None,
    best: int | None = None,
    selection: Literal["per_item", "greedy"] = "per_item",
    quality: Path | None = None,
    alpha: float = 1.0,
    gamma: float = 1.0,
    temperature: float | None = None,
    unpaired: bool = False,
    weights: Literal["as_given", "per_prompt"] = "as_given",
) -> str:
    """Keep the judgements that are worth training on: by repetition, circles, agreement, judges, gap, prompt, and FiFA.

    `best` chooses by FiFA: the standardised margin plus alpha times the quality of the text plus gamma times the
    logarithm of the distance to neighbouring prompts.

    Args:
        data: Record folder of judgements (of import, pair or filter).
        out: Record folder to write.
        dimension: Which of several judgements to take: all, one by name, or one for all of them, mean or pareto.
        lists: Keep rankings as lists, or make pairs of them.
        ties: Keep ties, leave them out, or halve their weight.
        min_gap: Leave out judgements whose scores differ by less.
        min_agreement: Leave out pairs of which fewer judgements agree than this share (votes count as their share).
        raters: Leave out pairs that fewer judgements than this decide alike, or that any decides otherwise.
        scores: Record folder of scores of the same images: gaps are taken from it.
        scorer: By whose scores; needed where the folder holds those of several and a gap is asked for. The gaps are
            written too, so that a curriculum can go by them.
        judges: Leave out pairs where fewer of the scorers than this agree with the label.
        repeated: Keep or drop judgements that say again what one said of the same images.
        transitive: Add the pairs that follow (a over b, b over c: a over c); leave out pairs in a circle.
        per_prompt: Most judgements of one prompt, widest gaps first.
        best: How many judgements to choose by margin, quality and diversity.
        selection: Each by itself, or one after the other, each as far from those chosen before as it can be.
        quality: CSV of prompt and value: the quality of texts, say by a language model.
        alpha: Weight of that quality.
        gamma: Weight of the diversity.
        temperature: P = sigmoid(score gap / temperature) in place of the labels of pairs.
        unpaired: Take pairs apart into liked and disliked images.
        weights: Leave weights as they are, or let every prompt count alike.
    """
    for name, value in (("per_prompt", per_prompt), ("best", best)):
        if value is not None and value < 1:
            raise InputError(f"{name} = {value}: expected at least 1")
    if not (0 <= min_gap < math.inf) or not (0 <= min_agreement <= 1) or min(judges, raters) < 0:
        raise InputError(
            f"min_gap = {min_gap}, min_agreement = {min_agreement}, judges = {judges}, raters = {raters}: "
            "expected at least 0, a number from 0 to 1, and at least 0"
        )
    if temperature is not None and not 0 < temperature < math.inf:
        raise InputError(f"temperature = {temperature}: expected a finite number above 0")
    found, texts_quality = _load(data, scores, scorer), _quality(quality) if quality else {}
    # a part of a judge is no judge beside the whole
    jury = {name: found.scores[name] for name in whole(found.scores)}
    if judges > len(jury):
        raise InputError(f"judges = {judges}: the folder of --scores holds those of {len(jury)} scorers")
    choose = functools.partial(_best, data, found, selection, texts_quality, alpha, gamma)
    gaps = scores is not None and bool(scorer or min_gap or best or per_prompt or len(found.scores) == 1)
    of = found.prompts_of
    steps: list[tuple[str, bool, Callable[[Rows], Rows]]] = [
        (f"not in dimension {dimension}", dimension != "all", lambda rows: selecting.in_dimension(rows, dimension)),
        ("turned into pairs", lists != "keep", lambda rows: _each(rows, of(rows), conversions.to_pairs, lists)),
        ("tie", ties != "keep", lambda rows: [r for r in (conversions.tied(r, ties) for r in rows) if r]),
        ("repeated", repeated == "drop", selecting.unrepeated),
        ("in a circle", transitive, lambda rows: selecting.completed(rows, of(rows))),
        ("", gaps, lambda rows: _with_gaps(rows, found.scores, scorer)),
        ("raters disagree", min_agreement > 0, lambda rows: selecting.agreed(rows, min_agreement)),
        ("too few raters agree", raters > 0, lambda rows: selecting.consistent(rows, raters)),
        ("scorers disagree", judges > 0, lambda rows: selecting.judged(rows, jury, judges)),
        (f"gap below {min_gap:g}", min_gap > 0, lambda rows: [r for r in rows if _gap(data, r) >= min_gap]),
        ("over the prompt's share", per_prompt is not None, lambda r: selecting.capped(r, of(r), per_prompt)),
        ("not among the best", best is not None, lambda rows: choose(rows, best)),
        ("", temperature is not None, lambda rows: selecting.softened(rows, temperature)),
        ("taken apart", unpaired, lambda rows: _each(rows, of(rows), conversions.to_unpaired)),
    ]
    rows, counts = _apply(data, found, steps)
    if weights == "per_prompt":
        rows = conversions.prompt_weights(rows, of(rows))
    arguments = {
        "dimension": dimension, "lists": lists, "ties": ties, "min_gap": min_gap, "min_agreement": min_agreement,
        "raters": raters, "scorer": scorer, "judges": judges, "repeated": repeated, "transitive": transitive,
        "per_prompt": per_prompt, "best": best, "selection": selection, "alpha": alpha, "gamma": gamma,
        "temperature": temperature, "unpaired": unpaired, "weights": weights,
        "quality": digest(*map(str, sorted(texts_quality.items()))),
    }  # fmt: skip
    parents = (folders.parent(out, data), *((folders.parent(out, scores),) if scores else ()))
    folders.begin(out, folders.Manifest("filter", arguments, 1, parents, counts=counts))
    folders.write_part(out, "judgements", 0, rows)
    added = f", {counts['added']} added" if counts["added"] else ""
    return (
        f"{out}: {counts['kept']} of {found.total} judgements kept{added}; left out: {_said(counts['dropped'])}; "
        f"next: diffalign train RECIPE --data {out} --out …"
    )


def _apply(data: Path, found: _Data, steps: Sequence[tuple[str, bool, Callable[[Rows], Rows]]]) -> tuple[Rows, dict]:
    """What the wanted steps leave, and its counts: judgements + made = kept + added + dropped."""
    rows, dropped, made = found.rows, Counter(found.silent), 0
    for reason, wanted, step in steps:
        left = step(rows) if wanted else rows
        known, kept = {r.id for r in rows}, {r.id for r in left}
        dropped[reason] += len(known - kept)
        made += len(kept - known)
        rows = left
    if not rows:
        raise InputError(f"{data}: nothing is left; left out: {_said(dropped)}")
    before = {r.id for r in found.rows}
    first = sum(r.id in before for r in rows)
    counts = {"judgements": found.total, "made": made, "kept": first, "added": len(rows) - first}
    return rows, counts | {"dropped": {reason: n for reason, n in dropped.items() if n}}


def _each(rows: Rows, prompts: Mapping[str, str], convert: Callable[..., Rows], *policy: str) -> Rows:
    return [made for row in rows for made in convert(row, prompts[row.group], *policy)]


def _said(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in dropped.items() if n) or "nothing"


def _load(data: Path, scores: Path | None, scorer: str | None) -> _Data:
    folders.open_folder(data, *folders.JUDGED)
    every = folders.records(data, "judgements")
    rows = [r for r in every if r.status in ("decided", "tie")]
    silent = Counter(r.status for r in every if r.status not in ("decided", "tie"))
    if not rows:
        raise InputError(f"{data}: holds no decided judgement")
    images, texts = folders.image_rows(data), folders.texts(data)
    prompts = {name: image["prompt_id"] for name, image in images.items()}
    lost = [r for r in rows if r.images[0] not in prompts]
    if lost:
        name = lost[0].images[0]
        raise InputError(f"{data}: judgement {lost[0].id} names image {name}, which is in no parent folder")
    values: Scores = defaultdict(dict)
    if scores is not None:
        folders.open_folder(scores, "score")
        for row in folders.read(scores, "scores", ["image_id", "scorer", "value"]).to_pylist():
            if row["value"] is not None and row["scorer"] not in MEASURES:
                values[row["scorer"]][row["image_id"]] = row["value"]
        if not values:
            raise InputError(f"{scores}: holds no scores that may be trained on")
    counted = {name: values[name] for name in (*whole(values), scorer) if name in values}
    return _Data(rows, silent, prompts, texts, counted)


def _with_gaps(rows: Rows, scores: Scores, scorer: str | None) -> Rows:
    """The judgements with the score gaps of one scorer; pairs that it did not score have none, as units differ."""
    if scorer in MEASURES:
        raise InputError(f"scorer = {scorer}: is for measuring only; nothing is ever chosen by it")
    if scorer is None and len(scores) != 1:
        raise InputError(f"scorer: scores by {', '.join(sorted(scores))} are there; choose one with --scorer")
    name = scorer or next(iter(scores))
    if name not in scores:
        raise InputError(f"scorer = {name}: expected one of {', '.join(sorted(scores))}")
    found = []
    for row in rows:
        if row.kind == "pair":
            known = [scores[name].get(i) for i in row.images]
            row = dataclasses.replace(row, score_gap=None if None in known else known[0] - known[1])
        found.append(row)
    return found


def _gap(data: Path, row: Judgement) -> float:
    """How far apart the best and the worst image of a judgement are, by scores."""
    if row.kind in ("ranking", "advantages"):
        return max(row.scores) - min(row.scores)
    if row.score_gap is None:
        raise InputError(
            f"{data}: judgement {row.id}, field score_gap: is missing; name a folder with --scores that has its images"
        )
    return abs(row.score_gap)


def _best(
    place: Path,
    data: _Data,
    selection: str,
    quality: Mapping[str, float],
    alpha: float,
    gamma: float,
    rows: Rows,
    size: int,
) -> Rows:
    """FiFA's choice."""
    if not rows:
        return rows
    of = data.prompts_of(rows)
    listed = sorted(rows, key=lambda r: r.id)
    texts = [data.texts[of[r.group]] for r in listed]
    unknown = [t for t in texts if quality and t not in quality]
    if unknown:
        raise InputError(f"quality: has no value for the prompt {unknown[0][:60]!r}")
    values = fifa.standard(np.array([_gap(place, r) for r in listed]))
    if quality:
        values = values + alpha * fifa.standard(np.array([quality[t] for t in texts]))
    vectors = fifa.embed(texts)
    each = selection == "per_item"
    taken = fifa.per_item(values, vectors, size, gamma) if each else fifa.greedy(values, vectors, size, gamma)
    names = {listed[i].id for i in taken}
    return [r for r in rows if r.id in names]


def _quality(path: Path) -> dict[str, float]:
    """prompt -> value of a CSV."""
    if not path.is_file():
        raise InputError(f"quality = {path}: no such file")
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
    absent = [c for c in ("prompt", "value") if c not in (reader.fieldnames or ())]
    if absent:
        raise InputError(f"{path}, line 1: column {absent[0]} is missing; expected prompt, value")
    found: dict[str, float] = {}
    for row in reader:
        try:
            found[row["prompt"]] = float(row["value"])
        except (TypeError, ValueError):
            found[row["prompt"]] = math.nan
        if not math.isfinite(found[row["prompt"]]):
            raise InputError(f"{path}, line {reader.line_num}, field value: is {row['value']!r}, expected a number")
    return found

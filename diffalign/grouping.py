"""Scores or comparisons -> the images of each prompt with their values, by whom they may be judged; gaps counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffalign import folders, rules
from diffalign.records import InputError, Judgement
from diffalign.scorers import MEASURES, whole


@dataclass(frozen=True)
class Group:
    """The images of a prompt, sorted by id, and their values, (scorers, images)."""

    prompt: str
    images: tuple[str, ...]
    values: np.ndarray


def judges(scores: Path, wanted: Sequence[str], *, several: bool) -> tuple[str, ...]:
    """The scorers to judge by; raises InputError where one measures only, is not there, or the number is wrong."""
    found = sorted(set(folders.read(scores, "scores", ["scorer"])["scorer"].to_pylist()))
    usable = [name for name in found if name not in MEASURES]
    measuring = next((name for name in wanted if name in MEASURES), None)
    if measuring or (found and not usable):
        raise InputError(f"{scores}: {measuring or found[0]} is for measuring only; nothing is ever trained on it")
    absent = next((name for name in wanted if name not in usable), None)
    if absent is not None:
        raise InputError(f"{scores}: holds no scores by {absent!r}, only by {', '.join(found) or 'nobody'}")
    chosen = tuple(wanted) or tuple(whole(usable))
    if several and len(set(chosen)) < 2:
        raise InputError(f"{scores}: scores by {', '.join(chosen) or 'nobody'}; this rule needs those of several")
    if not several and not wanted and len(chosen) != 1:
        raise InputError(f"{scores}: holds scores by {', '.join(usable) or 'nobody'}; choose one with --scorer")
    if not several and len(chosen) != 1:
        raise InputError(
            f"scorer = {', '.join(chosen)}: scores of different scorers have no common unit, so their raw sum means "
            "nothing; choose one, or --rule agreement or frontier"
        )
    return chosen


def scored(scores: Path, judges: Sequence[str], counts: Counter[str]) -> list[Group]:
    """The groups by prompt id, of images that all judges scored; raises InputError where one scored an image twice."""
    values: dict[tuple[str, str], dict[str, float | None]] = {}
    for row in folders.records(scores, "scores"):
        if row.scorer in judges:
            of = values.setdefault((row.prompt_id, row.image_id), {})
            if row.scorer in of:
                raise InputError(f"{scores}: image {row.image_id} has two scores by {row.scorer}")
            of[row.scorer] = row.value
    whole = {key: [of[j] for j in judges] for key, of in values.items() if None not in map(of.get, judges)}
    counts["missing scores"] += len(values) - len(whole)
    return _grouped({prompt for prompt, _ in values}, whole, counts)


def compared(data: Path, counts: Counter[str]) -> list[Group]:
    """The groups by prompt id of compared images, by their win rates; what was not answered is counted."""
    prompts = {name: row["prompt_id"] for name, row in folders.image_rows(data).items()}
    duels: dict[str, list[Judgement]] = {}
    for row in folders.records(data, "judgements"):
        if row.kind != "pair":
            raise InputError(f"{data}: judgement {row.id} is of kind {row.kind}, expected pairs, or scores")
        counts["comparisons without an answer"] += row.p is None
        if row.p is not None:
            duels.setdefault(prompts[row.images[0]], []).append(row)
    rates: dict[tuple[str, str], list[float]] = {}
    for prompt, rows in duels.items():
        images = sorted({image for row in rows for image in row.images})
        place = {image: i for i, image in enumerate(images)}
        met = [(place[row.images[0]], place[row.images[1]], row.p) for row in rows]
        rates |= {(prompt, i): [r] for i, r in zip(images, rules.win_rates(len(images), met).tolist(), strict=True)}
    return _grouped(set(duels), rates, counts)


def _grouped(prompts: set[str], values: dict[tuple[str, str], Any], counts: Counter[str]) -> list[Group]:
    images: dict[str, list[str]] = {prompt: [] for prompt in sorted(prompts)}
    for prompt, image in sorted(values):
        images[prompt].append(image)
    counts["prompts without any score"] += sum(not of for of in images.values())
    return [Group(p, tuple(of), np.array([values[p, i] for i in of]).T) for p, of in images.items()]

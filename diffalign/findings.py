"""What `compare` found between base and policy of a run."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign import entries, folders, pictures
from diffalign.pictures import Cell
from diffalign.records import InputError
from diffalign.scorers import judge_of

LABELS = {"gold": "gold score", "gold_right": "all attributes right", "shapes_clip": "CLIP proxy"}
NUMBERS = (
    "win_rate", "win_rate_low", "win_rate_high", "wins", "ties", "losses",
    "mean_a", "mean_b", "delta", "delta_low", "delta_high", "p_value",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What one scorer says of base and policy. `trained`: whether it judged the training pairs (None: not known).

    `share`: whether all its scores are 0 or 1, so that means are shares. `numbers` is its entry in compare.json.
    """

    name: str
    numbers: dict[str, float]
    trained: bool | None
    share: bool

    @property
    def label(self) -> str:
        """Its name in words."""
        return LABELS.get(self.name, self.name)


@dataclass(frozen=True)
class Evaluation:
    """What `compare` found. `note` says why there are no pictures, where there are none."""

    prompts: int
    verdicts: tuple[Verdict, ...]
    cells: tuple[Cell, ...]
    folders: tuple[Path, Path]
    note: str | None

    @property
    def head(self) -> Verdict:
        """The scorer of the headline: one that did not judge the training pairs, the gold score before others."""
        return min(self.verdicts, key=lambda v: (v.trained is True, v.name != "gold", v.share))


def evaluation(run: Path, settings: dict[str, Any]) -> Evaluation | None:
    """What RUN/compare holds, None where nothing was compared; `settings` is the resolved run.

    Pictures or scores that are gone are noted, not refused: the numbers are in compare.json. Raises InputError naming
    the field of compare.json that is missing or no number.
    """
    path = run / "compare" / "compare.json"
    if not path.is_file():
        return None
    data = entries.whole(path)
    for name, kind in (("a", str), ("b", str), ("prompts", int), ("scorers", dict)):
        entries.expect(isinstance(data.get(name), kind), path, name, f"a value of type {kind.__name__}")
    entries.expect(bool(data["scorers"]), path, "scorers", "at least one scorer")
    for scorer, numbers in data["scorers"].items():
        for name in NUMBERS:
            good = isinstance(numbers, dict) and isinstance(numbers.get(name), int | float)
            entries.expect(good, path, f"scorers.{scorer}.{name}", "a number")
    before, after = (Path(os.path.normpath(path.parent / data[name])) for name in ("a", "b"))
    try:
        cells, note = pictures.cells(before, after), None
    except InputError as error:
        cells, note = [], str(error)
    trained = training_judges(run, settings)
    verdicts = tuple(
        Verdict(name, numbers, judge_of(name) in trained if trained else None, _is_share(cells, name))
        for name, numbers in data["scorers"].items()
    )
    return Evaluation(data["prompts"], verdicts, tuple(cells), (before, after), note)


def _is_share(cells: list[Cell], scorer: str) -> bool:
    values = {shot.scores[scorer] for c in cells for shot in (c.before, c.after) if scorer in shot.scores}
    return bool(values) and values <= {0.0, 1.0}


def training_judges(run: Path, settings: dict[str, Any]) -> frozenset[str]:
    """The scorers that judged the training pairs, where their folder is still there (also if it moved with the run).

    Who judged by a part of a scorer is named as the scorer; none where it is not known.
    """
    data, out = Path(settings.get("data") or "."), settings.get("out") or "."
    for place in (Path(os.path.normpath(run / os.path.relpath(data, out))), data):
        if (place / "diffalign.json").is_file() and (manifest := folders.load(place)).stage == "pair":
            if named := manifest.arguments.get("scorer"):
                return frozenset(map(judge_of, named.split(" + ")))  # as `pair` writes several
            known = frozenset(map(judge_of, _scorers(place)))
            return known if len(known) == 1 else frozenset()
    return frozenset()


def _scorers(place: Path) -> set[str]:
    try:
        return {s for f in folders.lineage(place) for s in folders.read(f, "scores", ["scorer"])["scorer"].to_pylist()}
    except InputError:
        return set()

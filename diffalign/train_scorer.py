"""Preferences -> a scorer of one's own: towers of the CLIP family, whole or with heads only, by Bradley and Terry."""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch

from diffalign import calibration, checkpoint, choices, folders, learning, scorers
from diffalign.choices import Choices
from diffalign.fitting import Learner, Plan, fit, gaps, slopes
from diffalign.manifest import clear, is_temporary, write_atomically
from diffalign.records import InputError
from diffalign.scorers import trained
from diffalign.scorers.checkpoints import revision
from diffalign.scorers.dimensions import Tower, open_tower, write_tower

ARGUMENTS, MEASURES = "training.json", "measures.json"


def train_scorer(
    pairs: Path,
    /,
    *,
    tower: str,
    out: Path,
    mode: Literal["full", "head"] = "full",
    dimensions: tuple[str, ...] = (),
    name: str = "",
    hidden: int = 256,
    steps: int = 1000,
    batch: int = 64,
    micro_batch: int = 0,
    lr: float = 1e-5,
    head_lr: float = 1e-3,
    weight_decay: float = 0.01,
    every: int = 100,
    tune: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    precision: Literal["float32", "bfloat16"] = "float32",
    cache: Path | None = None,
) -> str:
    """Train a scorer on preferences; the same command again goes on where it was, and says what came of it.

    Prompts are held out to tune (which step is best, the temperature) and to test; a pair that shows one of their
    pictures is not trained on. Ties count as such. `measures.json` has accuracy, Kendall's tau, NLL and calibration on
    the pairs that test, of the tower as it was and of the scorer. `diffalign score --scorer trained=OUT` loads it.

    Args:
        pairs: Record folder of judgements, with their images in it or in its parents.
        tower: A CLIP or SigLIP: folder in open_clip's or transformers' layout, hub id, or the embedded shapes/clip.
        out: Folder to write.
        mode: full trains towers and heads; head trains heads on embeddings that are computed once.
        dimensions: Dimensions of the judgements to learn, a head each; all of them where none is named.
        name: What scores call it; the folder's name where empty.
        hidden: Width of the heads' common layer; 0 for linear heads.
        steps: Optimizer steps.
        batch: Pairs a step.
        micro_batch: Of which so many are computed at once, to spare memory; 0 for all.
        lr: Learning rate of the towers.
        head_lr: Learning rate of the heads.
        weight_decay: AdamW's.
        every: Steps between checkpoints, which look at the pairs that tune.
        tune: Share of the prompts that tune.
        test: Share of the prompts that test.
        seed: Names the shares and the order.
        precision: In which the towers compute (autocast), for `measures.json` too; what is learnt, and the heads, are
            float32, and so is what `score` loads.
        cache: Where prepared pictures or embeddings are kept for other runs; in OUT, until it is done, where not given.
    """
    plan = Plan(steps, batch, micro_batch, lr, head_lr, weight_decay, every, seed)
    _check(plan, hidden, tune, test)
    place = trained.find_tower(tower)
    folders.open_folder(pairs, *folders.JUDGED)
    hashed, name = revision(place), _named(name, out)
    arguments = {
        "pairs": folders.load(pairs).fingerprint, "tower": hashed, "mode": mode, "dimensions": list(dimensions),
        "name": name, "hidden": hidden, "tune": tune, "test": test, "precision": precision, **dataclasses.asdict(plan),
    }  # fmt: skip
    _require_same(out, arguments)
    clear(*(out / file for file in (ARGUMENTS, MEASURES, trained.HEAD, trained.CARD)))
    if (out / trained.CARD).is_file():
        _tidy(out)
        return _summary(out)
    known = choices.load(pairs, dimensions, tune, test, seed)
    choices.require(pairs, known)
    opened = open_tower(place)
    write_atomically(out / ARGUMENTS, _text(arguments))
    opened = learning.lowered(opened) if precision == "bfloat16" else opened
    # pictures are prepared alike for any precision, their embeddings are not
    key = {"tower": hashed} | ({"precision": precision} if mode == "head" else {})
    known, learner = learning.learner(pairs, known, opened, key, mode, hidden, cache or out / "cache")
    choices.require(pairs, known)
    first = slopes(learner, known)
    before = _measured(learner, known, first[0])
    seen = fit(learner, known, plan, out, first)
    found, _ = slopes(learner, known)
    measures = {
        "tower": before, "scorer": _measured(learner, known, found), "best_step": seen["best_step"],
        "curve": seen["curve"], "left_out": dict(known.left_out),
    }  # fmt: skip
    kept = trained.TOWER if mode == "full" else _relative(tower, out)
    card = trained.Card(name, known.dimensions, tuple(found), kept, "" if mode == "full" else hashed, hidden)
    _write(out, card, learner, opened, place, measures)
    return _summary(out)


def _check(plan: Plan, hidden: int, tune: float, test: float) -> None:
    for what in ("steps", "batch", "every"):
        if getattr(plan, what) < 1:
            raise InputError(f"{what} = {getattr(plan, what)}: expected at least 1")
    for what, value in (("micro_batch", plan.micro_batch), ("hidden", hidden), ("weight_decay", plan.weight_decay)):
        if value < 0:
            raise InputError(f"{what} = {value}: expected at least 0")
    for what in ("lr", "head_lr"):
        if not 0 < getattr(plan, what) < 1:
            raise InputError(f"{what} = {getattr(plan, what)}: expected a number between 0 and 1")
    if not (tune > 0 and test > 0 and tune + test < 1):
        raise InputError(f"tune = {tune}, test = {test}: expected shares above 0 that leave something to train on")


def _named(name: str, out: Path) -> str:
    """What scores call it, the folder's name where none is given; raises InputError where another scorer is meant."""
    found = name or out.resolve().name
    if "/" in found:
        raise InputError(f"name = {found}: is that of a scorer's part; expected another --name")
    # scores are told apart by name alone; "trained" itself names none
    if found in scorers.NAMES and found != "trained":
        raise InputError(f"name = {found}: is a scorer's of diffalign; expected another --name")
    return found


def _text(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({type(error).__name__}: {error}); choose another --out") from None


def _require_same(out: Path, arguments: dict[str, Any]) -> None:
    """Raise InputError where `out` is the folder of other arguments, or of something else."""
    path = out / ARGUMENTS
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder or a new name")
    if not path.is_file():
        if out.exists() and any(not is_temporary(entry) for entry in out.iterdir()):
            raise InputError(f"{out}: is not empty and holds no training of a scorer; choose another --out")
        return
    before, now = _read(path), json.loads(json.dumps(arguments))
    for name in now:
        if before.get(name) != now[name]:
            raise folders.changed(out, name, before.get(name), now[name])


def _relative(tower: str, out: Path) -> str:
    """A tower that was not trained, as the card names it: relative to the card where it is a folder here."""
    return os.path.relpath(Path(tower).resolve(), out.resolve()) if Path(tower).exists() else tower


def _measured(learner: Learner, known: Choices, found: list[float]) -> dict[str, dict[str, float]]:
    """Dimension -> numbers of the pairs that test: with the slope of the pairs that tune, and `_before` with 1."""
    rows, gap = gaps(learner, known, choices.TEST)
    said = {}
    for number, name in enumerate(known.dimensions):
        mine = known.dimension[rows] == number
        differences, p = gap[mine], known.p[rows][mine]
        before = calibration.calibrated(differences, p, 1.0)
        said[name] = {"pairs": int(mine.sum()), "slope": found[number]}
        said[name] |= calibration.agreement(differences, p, known.prompt[rows][mine])
        said[name] |= calibration.calibrated(differences, p, found[number])
        said[name] |= {f"{what}_before": value for what, value in before.items()}
    return said


def _write(
    out: Path, card: trained.Card, learner: Learner, tower: Tower, place: Path, measures: Mapping[str, Any]
) -> None:
    """Everything, the card last: without it there is no scorer."""
    if card.tower == trained.TOWER:
        with checkpoint.written(out / trained.TOWER) as folder:
            write_tower(folder, tower, place)
    state = {n: v.detach().cpu().contiguous() for n, v in learner.heads.state_dict().items()}
    write_atomically(out / trained.HEAD, safetensors.torch.save(state))
    write_atomically(out / MEASURES, _text(measures))
    write_atomically(out / trained.CARD, _text(dataclasses.asdict(card)))
    _tidy(out)


def _tidy(out: Path) -> None:
    """Remove what an unfinished training alone needs, also where a kill came between the card and this."""
    for left in (*checkpoint.found(out), out / "cache"):
        if left.exists():
            shutil.rmtree(left)


def _summary(out: Path) -> str:
    found = _read(out / MEASURES)
    said = []
    for name, now in found["scorer"].items():
        tower = found["tower"][name]
        said.append(
            f"{name}: {now['accuracy']:.1%} [{now['accuracy_low']:.1%}, {now['accuracy_high']:.1%}] of {now['pairs']} "
            f"held-out pairs right (the tower {tower['accuracy']:.1%}), calibration error {now['ece_before']:.3f}, "
            f"by the fitted temperature {now['ece']:.3f}"
        )
    lost = "".join(f"; left out: {count} {reason}" for reason, count in sorted(found["left_out"].items()))
    return f"{out}: {'; '.join(said)}{lost}; next: diffalign score IMAGES --scorer trained={out} --out …"

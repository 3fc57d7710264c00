"""The policy while it trains: fixed prompts with fixed noise, drawn beside the base, scored, and shown."""

import io
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from diffalign import checkpoint, pictures, scorers, weights
from diffalign.backbones.base import Backbone
from diffalign.drawing import Artist, Sampler, to_png
from diffalign.intervals import bootstrap, outcomes, prompt_means
from diffalign.pictures import Cell, Shot
from diffalign.prompts import read_prompts
from diffalign.records import InputError, Prompt, digest
from diffalign.run import Run
from diffalign.scorers import Scorer
from diffalign.streams import stream

RESAMPLES = 2000
CAPTION = "Left: base. Right: policy at step {step}. Same prompt, same noise; the prompts were not chosen by result."
Draw = Callable[[Sequence[tuple[str, int]]], np.ndarray]


@dataclass(frozen=True)
class Exhibition:
    """What is drawn again and again: (prompt id, index) with their texts; the base's pictures of them, and its scores.

    `judges` may be none. `best`: the scorer by whose win rate the best checkpoint is kept, "" for none.
    """

    work: tuple[tuple[str, int], ...]
    texts: dict[str, str]
    base: np.ndarray
    judges: tuple[Scorer, ...]
    scores: dict[str, np.ndarray]
    shown: int
    best: str


def judges(run: Run, trained: Collection[str]) -> tuple[tuple[Scorer, ...], str]:
    """The scorers of a run's evaluation, and the one by which the best checkpoint is kept.

    That is the one named, or the first that did not judge the training pairs (`trained`). Raises InputError where the
    one named is not among them.
    """
    asked = run.evaluate
    found = tuple(scorers.load(name) for name in asked.scorers)
    names = [j.name for j in found]
    if asked.best and asked.best not in names:
        raise InputError(
            f"evaluate.best = {asked.best}: expected one of evaluate.scorers ({', '.join(names) or 'none'})"
        )
    return found, asked.best or next((n for n in names if n not in trained), names[0] if names else "")


def expect(run: Run) -> None:
    """Raise InputError where a run cannot be evaluated as it asks: no such prompts or scorer, or a prompt, by file and
    line, that a scorer cannot judge by. Loads nothing.
    """
    found, _ = judges(run, ())
    if not run.evaluate.prompts:
        return
    listed = read_prompts(Path(run.evaluate.prompts))
    for judge in (j for j in found if j.understands):
        for prompt in listed.prompts:
            try:
                judge.understands(prompt.text)
            except InputError as error:
                place = f"{run.evaluate.prompts}, line {listed.lines[prompt.id]}"
                raise InputError(f"{place}: {judge.name} cannot judge by it: {error}") from None


def prompts(run: Run, texts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that are drawn: those of the file `evaluate.prompts`, else the first few of the data, `texts`."""
    if run.evaluate.prompts:
        return list(read_prompts(Path(run.evaluate.prompts)).prompts)
    return sorted(texts, key=lambda p: digest("preview", p.id))[: run.evaluate.previews]


def artist(run: Run, backbone: Backbone, listed: Sequence[Prompt]) -> Artist:
    """Who draws: the run's model with `evaluate`'s sampler, at the run's resolution; the prompts are encoded."""
    asked = run.evaluate
    found = Artist(backbone, Sampler(asked.steps, asked.guidance, run.resolution, run.resolution), asked.seed)
    found.encode(listed)
    return found


def exhibition(run: Run, listed: Sequence[Prompt], draw: Draw, trained: Collection[str], main: bool) -> Exhibition:
    """Draw and score the base, or read its pictures where they lie in the run's folder, drawn by the same sampler."""
    asked, folder = run.evaluate, Path(run.out) / "cache" / "base"
    found, best = judges(run, trained)
    work = tuple((p.id, index) for index in range(asked.noises if found else 1) for p in listed)
    model = weights.fingerprint(weights.locate(run.model, run.config))
    sampler = [asked.steps, asked.guidance, run.resolution, asked.seed, run.init_lora]
    start = run.policy.start if "start" in type(run.policy).__dataclass_fields__ else ""
    key = digest(model, *sampler, start, *(str(w) for w in work))
    base = _kept(folder, key, len(work))
    if base is None:
        base = draw(work)
        if main:
            with checkpoint.written(folder) as temporary:
                for number, picture in enumerate(base):
                    (temporary / f"{number:05d}.png").write_bytes(to_png(picture))
                (temporary / "key.json").write_text(json.dumps(key))
    texts = {p.id: p.text for p in listed}
    values = {j.name: _scores(j, base, work, texts) for j in found} if main else {}
    return Exhibition(work, texts, base, found, values, asked.previews, best)


def _kept(folder: Path, key: str, count: int) -> np.ndarray | None:
    """The pictures in `folder` where they are of this key and whole."""
    try:
        if json.loads((folder / "key.json").read_text()) != key:
            return None
        files = [folder / f"{number:05d}.png" for number in range(count)]
        return np.stack([np.asarray(PIL.Image.open(io.BytesIO(f.read_bytes()))) for f in files])
    except (OSError, ValueError):
        return None


def _scores(judge: Scorer, drawn: np.ndarray, work: Sequence[tuple[str, int]], texts: dict[str, str]) -> np.ndarray:
    found = [PIL.Image.fromarray(p) for p in drawn]
    parts = [slice(i, i + 32) for i in range(0, len(found), 32)]
    told = [texts[p] for p, _ in work]
    return np.concatenate([judge(found[p], told[p]) for p in parts])


def judged(shown: Exhibition, drawn: np.ndarray, step: int) -> dict[str, Any]:
    """One line of `evaluations.jsonl`: the pictures' saturation and contrast as multiples of the base's, and of each
    scorer the win rate against the base with its 95 % interval over prompts, ties counted half.

    drawn: uint8, (images, height, width, 3), in the order of the work.
    """
    row: dict[str, Any] = {"step": step, "pictures": len(drawn)}
    for name, measure in (("saturation", saturation), ("contrast", contrast)):
        row[name] = float(measure(drawn) / max(float(measure(shown.base[: len(drawn)])), 1e-6))
    if len(drawn) < len(shown.work) or not shown.judges:
        return row
    _, place = np.unique([prompt for prompt, _ in shown.work], return_inverse=True)
    row["scorers"] = {}
    for judge in shown.judges:
        old, new = shown.scores[judge.name], _scores(judge, drawn, shown.work, shown.texts)
        known = np.isfinite(old) & np.isfinite(new)
        _, where = np.unique(place[known], return_inverse=True)
        means = prompt_means(outcomes(old[known], new[known]), where)[None]
        low, high = bootstrap(means, RESAMPLES, stream("bootstrap", 0))[0]
        row["scorers"][judge.name] = {
            "win_rate": float(means.mean()), "win_rate_low": float(low), "win_rate_high": float(high),
            "mean": float(new[known].mean()), "mean_base": float(old[known].mean()), "missing": int((~known).sum()),
        }  # fmt: skip
    return row


def saturation(drawn: np.ndarray) -> float:
    """Mean of (largest - smallest channel) / 255 over pixels."""
    return float((drawn.max(-1).astype(np.float64) - drawn.min(-1)).mean() / 255)


def contrast(drawn: np.ndarray) -> float:
    """Mean over pictures of the standard deviation of their brightness, in [0, 1]."""
    return float((drawn.astype(np.float64).mean(-1) / 255).std((1, 2)).mean())


def sheet(shown: Exhibition, drawn: np.ndarray, step: int) -> bytes:
    """PNG of the first prompts: base beside policy."""
    cells, images = [], {}
    for n in range(min(shown.shown, len(drawn), len(shown.texts))):
        prompt, index = shown.work[n]
        images |= {f"base {n}": to_png(shown.base[n]), f"policy {n}": to_png(drawn[n])}
        cells.append(Cell(prompt, shown.texts[prompt], index, Shot(f"base {n}", {}), Shot(f"policy {n}", {})))
    return pictures.grid(cells, images, ("base", f"step {step}"), CAPTION.format(step=step))

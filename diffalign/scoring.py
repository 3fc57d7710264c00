"""Images -> scores: batches of files in a fixed order, one part of the folder each, judged by all scorers at once."""

import csv
import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image

from diffalign import decoding, folders, inputs, processes, scorers, verdicts
from diffalign.inputs import Item, Source
from diffalign.progress import track
from diffalign.records import InputError
from diffalign.scorers import Scorer, Spent

_LOG = logging.getLogger(__name__)
# Files that are no pictures, each named in a line; the summary counts all of them.
_NAMED = 20


def score(
    images: Path,
    /,
    *,
    scorer: tuple[str, ...],
    out: Path,
    batch: int = 32,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> str:
    """Judge images with one or more scorers; the same command again judges only what is missing, as does one that names
    more of them. One that names fewer deletes nothing.

    Each picture is decoded once for all scorers, and seen once however many prompts it has. One that cannot be read or
    judged gets no value, but a reason; the others are kept. An animated one is its first frame. Beside the records lies
    `scores.csv`, one line an image with its file; of tables one line a row: its file, and its number from 0, or its key
    in a webdataset. A folder of pictures also leaves `files.json`, by which a second run knows without reading them
    that they are as they were.
    Started by torchrun or `accelerate launch`, the processes share the work.

    Args:
        images: Record folder; folder of images with metadata.csv or metadata.jsonl (file_name, prompt), with texts of
            the same names, or without prompts; or Parquet, webdataset tars, CSV or JSON lines with images and prompts.
        scorer: Names of scorers: say pickscore, hpsv2.1, imagereward, gold, clip=FOLDER, judge=QUESTION,URL,MODEL, or
            file.py:function.
        out: Record folder to write.
        batch: Images per call of a scorer.
        precision: Of the towers of scorers in this process, and of judges' models; what comes after them is computed in
            float32. A server computes as it was started.
    """
    if batch < 1:
        raise InputError(f"batch = {batch}: expected at least 1")
    return judged(images, opened(scorer, precision), out, batch)


def judged(images: Path, judges: Sequence[Scorer], out: Path, batch: int) -> str:
    """What `score` does, by scorers that are there; its summary line."""
    source = inputs.find(images, out)
    made = manifest(out, source.arguments, source.parents, judges, batch)
    with processes.together() as wait:
        counts = _stored(source, out, made, judges)
        wait()
        items = source.items(out)
        _require_prompts(images, items, judges)
        cuts = _cuts(items, batch)
        todo = [n for n in _mine(len(cuts)) if not verdicts.is_whole(out, n, cuts[n], judges)]
        for judge in judges if todo else ():
            _ = judge.function  # a scorer that cannot be loaded ends the command before anything is written
        if processes.place()[0] == 0:
            made = replace(made, batches=len(cuts))
            folders.begin(out, replace(made, counts=counts | unfinished(out, made)))
            if not source.tables:
                inputs.store(source, out)
            folders.keep_parts(out, "scores", len(cuts))
        wait()
        _judge(out, cuts, todo, judges)
        wait()
        costs = _costs(judges)
        rank, world = processes.place()
        if rank:
            return f"process {rank + 1} of {world}: {len(todo)} batches done"
        return costs + _finish(out, cuts, made, counts, source.rows(out))


def manifest(
    out: Path, arguments: dict[str, Any], parents: tuple[dict[str, str], ...], judges: Sequence[Scorer], batch: int
) -> folders.Manifest:
    """What `diffalign.json` says of scores by these judges beside those in `out`, but for how many batches there are.

    Who came later is `added`, which no child of the folder minds, and forgotten where it has judged nothing and is not
    named again. Raises InputError where a scorer is another one now.
    """
    named = {j.name: [j.revision, j.preprocessing] for j in judges}
    first, added = named, {}
    if (out / "diffalign.json").exists() and folders.load(out).stage == "score":
        before = folders.load(out).arguments
        first, added = before["scorers"], before.get("added", {})
    if away := (first | added).keys() - named.keys():
        heard = folders.read(out, "scores", ["scorer"])["scorer"].unique().to_pylist()
        away -= set(map(scorers.judge_of, heard))
    if away & first.keys():
        raise folders.changed(out, "scorers", ", ".join(first), ", ".join(named))
    for name, now in named.items():
        for field, old, new in zip(("revision", "preprocessing"), (first | added).get(name, now), now, strict=True):
            if old != new:
                raise folders.changed(out, f"{field} of {name}", old, new)
    added = {name: old for name, old in added.items() if name not in away}
    added |= {name: now for name, now in named.items() if name not in first}
    asked = arguments | {"scorers": first, "batch": batch} | ({"added": added} if added else {})
    return folders.Manifest("score", asked, 1, parents, extends=("images", "added"))


def unfinished(out: Path, made: folders.Manifest) -> dict[str, Any]:
    """Which scorers not every image of a begun folder has a score by, those added now included, for its counts."""
    if not (out / "diffalign.json").exists():
        return {}
    before = folders.load(out)
    added = made.arguments.get("added", {}).keys()
    begun = set(before.counts.get("lacking", ())) & (made.arguments["scorers"].keys() | added)
    lacking = sorted(begun | (added - before.arguments.get("added", {}).keys()))
    return {"lacking": lacking} if lacking else {}


def _stored(source: Source, out: Path, made: folders.Manifest, judges: Sequence[Scorer]) -> dict[str, Any]:
    """Store the pictures of tables in `out`, once, by the first process; what was counted then."""
    folders.check(out, made)
    if not source.tables:
        lost = {"left_out": len(source.broken), "first_left_out": source.broken[0]} if source.broken else {}
        for line in source.broken[:_NAMED] if processes.place()[0] == 0 else ():
            _LOG.warning(line)
        return lost
    known = folders.load(out).counts if (out / "diffalign.json").exists() else {}
    known = {name: count for name, count in known.items() if name != "lacking"}
    if processes.place()[0]:
        return known
    if "rows" in known:
        if not (out / inputs.ROWS).is_file():
            inputs.store(source, out)
        return known
    for judge in judges:
        _ = judge.function
    folders.begin(out, made)
    counts = inputs.store(source, out)
    folders.begin(out, replace(made, counts=counts))
    return counts


def _mine(batches: int) -> range:
    """Which batches are this process's."""
    rank, world = processes.place()
    return range(rank, batches, world)


def _cuts(items: Sequence[Item], batch: int) -> list[list[Item]]:
    """Batches of `batch` pictures each, with all the items of a picture."""
    cuts: list[list[Item]] = []
    last, room = "", 0
    for item in items:
        if item.picture != last:
            if not room:
                cuts.append([])
                room = batch
            last, room = item.picture, room - 1
        cuts[-1].append(item)
    return cuts


def _costs(judges: Sequence[Scorer]) -> str:
    """What the answers have cost that any process asked for, in words."""
    asked = [judge for judge in judges if judge.spent is not None]
    # those that were loaded, here or by the jury; to look is to load
    here = [judge.spent(judge.function) if "function" in vars(judge) else None for judge in asked]
    summed = processes.total([[found is not None, *astuple(found or Spent())] for found in here])
    costs = [(judge, Spent(*numbers)) for judge, (loaded, *numbers) in zip(asked, summed, strict=True) if loaded]
    return "".join(f"{judge.name}: {spent.said(judge.prices)}; " for judge, spent in costs)


def _require_prompts(images: Path, items: Sequence[Item], judges: Sequence[Scorer]) -> None:
    """A folder or table may lack prompts; a record folder's empty prompt is one."""
    needy = [judge.name for judge in judges if not judge.blind]
    bare = (
        [item.file or item.image for item in items if not item.text] if not (images / "diffalign.json").exists() else []
    )
    if needy and bare:
        raise InputError(f"{images}: image {bare[0]} has no prompt, which {needy[0]} needs ({len(bare)} such images)")


def _judge(out: Path, cuts: Sequence[Sequence[Item]], todo: Sequence[int], judges: Sequence[Scorer]) -> None:
    """Write the scores of the batches `todo`; while one is judged, the pictures of the next are decoded."""
    known = {n: verdicts.begun(out, n, cuts[n], judges) for n in todo}
    pictures = _decoded(out, [left for _, left in known.values()])
    for n, found in zip(track(todo, "score", len(todo)), pictures, strict=True):
        verdicts.write(out, n, *known[n], found, judges)


def _decoded(out: Path, batches: Sequence[Sequence[Item]]) -> Iterator[list[PIL.Image.Image | str]]:
    """The picture of each item, batch by batch, decoded one batch ahead; items of one file have the same object."""
    firsts = [{item.picture: item.image for item in reversed(batch)} for batch in batches]
    stored = folders.image_bytes(out, [image for first in firsts for image in first.values()])
    read: dict[str, bytes] = {}

    def ready(batch: Sequence[Item], futures: dict[str, Future]) -> list[PIL.Image.Image | str]:
        found = {picture: future.result() for picture, future in futures.items()}
        return [found[item.picture] for item in batch]

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        before: tuple[Sequence[Item], dict[str, Future]] | None = None
        for batch, first in zip(batches, firsts, strict=True):
            while not read.keys() >= set(first.values()):
                read.update([next(stored)])
            futures = {picture: pool.submit(_decode, read.pop(image)) for picture, image in first.items()}
            if before is not None:
                yield ready(*before)
            before = batch, futures
        if before is not None:
            yield ready(*before)


def opened(names: Sequence[str], precision: str) -> list[Scorer]:
    """The scorers named; raises InputError where there is none, or where two have one name."""
    judges = [scorers.load(name) for name in names]
    judges = [judge.lowered() for judge in judges] if precision == "bfloat16" else judges
    if not judges:
        raise InputError("scorer: none is named; expected at least one")
    doubled = [j.name for i, j in enumerate(judges) if j.name in {k.name for k in judges[:i]}]
    if doubled:
        raise InputError(f"scorer {doubled[0]}: is named twice; scores are told apart by the scorer's name")
    return judges


def _decode(data: bytes) -> PIL.Image.Image | str:
    """The picture, RGB, or why there is none."""
    try:
        return decoding.rgb(data)
    except PIL.UnidentifiedImageError:
        return "is no picture"
    except decoding.ERRORS as error:
        return verdicts.said(error)


def _why(reasons: Mapping[str, str | None]) -> str | None:
    """Why scores of one image are missing, of those by all names. Who gave a reason is said of several, but where all
    of them say the same, as of a picture that cannot be read.
    """
    if len(set(reasons.values())) == 1:
        return next(iter(reasons.values()))
    said = {scorers.judge_of(name): reason for name, reason in reasons.items() if reason}
    return "; ".join(f"{name}: {reason}" for name, reason in said.items()) or None


def _finish(
    out: Path, cuts: Sequence[Sequence[Item]], made: folders.Manifest, counts: dict[str, Any],
    places: Mapping[str, Sequence[tuple[str, str]]],
) -> str:  # fmt: skip
    """Write `scores.csv` of all scorers of the folder, named now or before, a line for each of the `places` of an
    image, its (file, row) in tables; the summary line.
    """
    table = folders.read(out, "scores", ["image_id", "scorer", "value", "reason"])
    known: dict[str, list[float]] = {name: [] for name in table["scorer"].unique().to_pylist()}
    missing, first, lacking = 0, "", set()
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["prompt", "index", "file", "row", "image_id", *known, "reason"])
    rows: Iterable[tuple[str, str, float | None, str | None]]
    rows = zip(*(c.to_pylist() for c in table.columns), strict=True)
    groups = groupby(rows, lambda row: row[0])
    for item, (_, group) in zip((item for cut in cuts for item in cut), groups, strict=True):
        found = {name: (value, reason) for _, name, value, reason in group}
        why = _why({name: reason for name, (_, reason) in found.items()})
        values = {name: value for name, (value, _) in found.items()}
        for place in places.get(item.image, [(item.file, "")]):
            writer.writerow([item.text, item.index, *place, item.image, *map(values.get, known), why])
        for name, value in values.items():
            if value is not None:
                known[name].append(value)
        missing, first = missing + sum(value is None for value in values.values()), first or why or ""
        lacking |= known.keys() - values.keys()
    lacking |= (made.arguments["scorers"] | made.arguments.get("added", {})).keys() - known.keys()
    without = sorted({scorers.judge_of(name) for name in lacking})
    counts = counts | ({"lacking": without} if without else {})
    if folders.load(out).counts != counts:
        folders.begin(out, replace(made, counts=counts))
    folders.write_atomically(out / "scores.csv", sink.getvalue().encode())
    said = [f"{n} (mean {np.mean(v):.4g})" if v else f"{n} (no value)" for n, v in known.items()]
    note = f"; {missing} values missing (first: {first})" if missing else ""
    note += f"; not all have scores by {', '.join(without)}, name it again" if without else ""
    lost = counts.get("left_out", 0)
    note += (
        f"; {lost} {'rows' if 'rows' in counts else 'files'} left out (first: {counts['first_left_out']})"
        if lost
        else ""
    )
    verb = "pair" if any(n not in scorers.MEASURES for n in known) else "compare OTHER_SCORES"
    images = sum(map(len, cuts))
    return f"{out}: {images} images scored by {', '.join(said)}{note}; next: diffalign {verb} {out} --out …"

"""Preference data of any kind -> a record folder: prompts, pictures, judgements; what is left out is counted."""

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffalign import conversions, folders, readers
from diffalign.progress import track
from diffalign.readers import shelf
from diffalign.readers.base import Entry, Reader, RowError
from diffalign.readers.files import Cells, File, fingerprint
from diffalign.readers.judging import Policy
from diffalign.records import Image, InputError, Judgement, Prompt, digest, prompt_id

COLUMNS = ("where", "field", "reason", "detail")


@dataclass(frozen=True)
class _Plan:
    """What pass one found: labels only, no picture read; `said` is a hash of all that the rows say."""

    reader: Reader
    files: list[File]
    policy: Policy
    said: str
    rows: int
    kept: int
    prompts: Counter[str]
    dropped: Counter[str]
    refused: list[RowError]

    def entries(self) -> Iterator[tuple[File, Entry]]:
        """The entries whose labels are kept, in order."""
        for file in self.files:
            for entry in readers.read(self.reader, file):
                if isinstance(entry, Entry) and self.policy.judgements(entry, _stand_ins(entry), "")[0]:
                    yield file, entry


def _stand_ins(entry: Entry) -> list[str]:
    return [str(n) for n in range(len(entry.slots))]


def import_(
    source: Path,
    /,
    *,
    out: Path,
    reader: str | None = None,
    columns: tuple[str, ...] = (),
    images: Path | None = None,
    dimension: str = "overall",
    lists: conversions.Lists = "keep",
    ties: conversions.Ties = "drop",
    unpaired: bool = False,
    bad: Literal["skip", "refuse"] = "skip",
    batch: int = 256,
) -> str:
    """Read preference data of any known kind into a record folder that `train`, `score`, `inspect` and `filter` read.

    Known by their columns: Pick-a-Pic, HPDv2, HPDv3, ImageRewardDB, open-image-preferences, Rapidata,
    Pick-Double-Caption, and plain tables: prompt, chosen, rejected; prompt, image_0, image_1, preferred (or p_first);
    prompt, images, ranks (or scores); prompt, image, desirable. Files may be Parquet, CSV, JSON, JSON lines or
    webdataset tars, or folders chosen/ and rejected/, liked/ and disliked/, NAME_w and NAME_l, NAME_0 … (best first),
    with prompts in NAME.txt or in metadata.csv (file_name, prompt).
    Labels are read before any picture. What is left out is counted by reason in diffalign.json, and rows that could not
    be used are named in refused.csv.

    Args:
        source: File or folder of files.
        out: Record folder to write.
        reader: Which kind of data it is, where the columns do not say.
        columns: NEW=OLD, say prompt=text: the column OLD is to be read as NEW.
        images: Folder that names of picture files start from; by default that of the file that names them.
        dimension: Which of several judgements to take: overall, another by name, all, mean or pareto.
        lists: What rankings become: kept as lists, or pairs.
        ties: Leave ties out, keep them as P = 1/2, or keep them with half the weight.
        unpaired: Take pairs apart into liked and disliked images.
        bad: Whether a row that cannot be used is left out and counted, or ends the import.
        batch: Rows per part.
    """
    if batch < 1:
        raise InputError(f"batch = {batch}: expected at least 1")
    policy = Policy(dimension, lists, ties, unpaired)
    mapping = readers.parse_columns(columns)
    chosen, files, others = readers.find(source, reader, mapping)
    places = {file.path: readers.roots(source, images, file) for file in files}
    plan = _plan(chosen, files, policy, bad)
    settings = {"dimension": dimension, "lists": lists, "ties": ties, "unpaired": unpaired, "bad": bad, "batch": batch}
    arguments = settings | {"reader": chosen.name, "columns": mapping}
    arguments |= {"source": digest(fingerprint(files), plan.said), "images": _beside(source, images)}
    batches = math.ceil(plan.kept / batch)
    fresh = not out.exists()
    manifest = folders.Manifest("import", arguments, batches)
    before = folders.load(out).counts if (out / "diffalign.json").exists() else {}
    folders.begin(out, dataclasses.replace(manifest, counts=before))
    try:
        tally = _write(out, plan, places, batch, batches, bad)
        _require_some(plan, tally)
    except InputError:
        if fresh:
            shutil.rmtree(out)
        raise
    counts = _count(out, plan, tally) | {"files_not_read": len(others)}
    folders.begin(out, dataclasses.replace(manifest, counts=counts))
    return _summary(out, chosen, counts, plan.refused + tally.errors)


def _beside(source: Path, images: Path | None) -> str | None:
    """The folder of pictures as seen from the source, so that both may move together."""
    return None if images is None else os.path.relpath(images.resolve(), source.resolve())


def _plan(reader: Reader, files: list[File], policy: Policy, bad: str) -> _Plan:
    rows, kept, refused = 0, 0, []
    said = hashlib.blake2b(digest_size=16)
    prompts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    dimensions: set[str] = set()
    for entry in (e for file in files for e in readers.read(reader, file)):
        rows += 1
        error = isinstance(entry, RowError)
        own = (entry.number, entry.field, entry.detail) if error else (entry.prompt, entry.slots, entry.verdicts)
        said.update(repr(own).encode())
        if isinstance(entry, RowError):
            refused.append(_refuse(entry, bad))
            continue
        dimensions |= {v.dimension for v in entry.verdicts if v.status != "unlabelled"}
        judgements, why = policy.judgements(entry, _stand_ins(entry), "")
        if judgements:
            kept += 1
            prompts[entry.prompt] += 1
        else:
            dropped[why] += 1
    if policy.dimension not in dimensions | {"all", "mean", "pareto"} and dimensions:
        raise InputError(f"dimension = {policy.dimension}: the data speak of {', '.join(sorted(dimensions))}")
    if not kept:
        raise _unusable(files[0].path, rows, dropped + Counter(e.reason for e in refused), refused)
    return _Plan(reader, files, policy, said.hexdigest(), rows, kept, prompts, dropped, refused)


def _refuse(error: RowError, bad: str) -> RowError:
    if bad == "refuse":
        raise error
    return error


@dataclass(frozen=True)
class _Tally:
    """What was wrong with pictures, and by what reasons rows were lost."""

    errors: list[RowError]
    lost: Counter[str]

    def add(self, other: "_Tally") -> None:
        self.errors.extend(other.errors)
        self.lost.update(other.lost)


def _require_some(plan: _Plan, tally: _Tally) -> None:
    if tally.lost.total() == plan.kept:
        counted = plan.dropped + Counter(e.reason for e in plan.refused) + tally.lost
        raise _unusable(plan.files[0].path, plan.rows, counted, tally.errors)


def _unusable(path: Path, rows: int, counted: Counter[str], errors: Sequence[RowError]) -> InputError:
    first = f" (first: {errors[0]})" if errors else ""
    unsaid = path.is_dir() and "no prompt" in counted
    remedy = "; prompts are in NAME.txt beside the pictures, or in metadata.csv (file_name, prompt)" if unsaid else ""
    return InputError(f"{path}: no row of {rows} can be used: {shelf.known(counted) or 'there is none'}{first}{remedy}")


def _write(out: Path, plan: _Plan, places: Mapping[Path, Sequence[Path]], batch: int, batches: int, bad: str) -> _Tally:
    """Prompts, then part by part refusals, judgements and images (which say that a part is whole)."""
    prompts = [Prompt(prompt_id(text), text, plan.prompts[text]) for text in sorted(plan.prompts)]
    folders.write_part(out, "prompts", 0, prompts)
    entries, stored, total = plan.entries(), shelf.Shelf(), _Tally([], Counter())
    cells: dict[Path, Callable[[int], Cells]] = {}
    for number in track(range(batches), "import", batches):
        taken = list(itertools.islice(entries, batch))
        notes = out / "refused" / f"part-{number:05d}.json"
        known = _noted(notes) if folders.is_whole(out, "images", number, {}) else None
        if known is not None:
            stored.remember(folders.leading(out, "images", number, {}))
            stored.name(folders.leading(out, "judgements", number, {}))
            total.add(known)
            continue
        rows: list[Judgement] = []
        images: list[Image] = []
        tally = _Tally([], Counter())
        for file, entry in taken:
            if file.path not in cells:
                cells = {file.path: file.cells(plan.reader.columns(file.columns)[1])}
            looked = shelf.look(entry, cells[file.path], places[file.path])
            said, new, found = _one(entry, looked, plan, stored)
            errors = [_refuse(error, bad) for error in found]
            lost = [] if said else [e.reason for e in errors][:1] or ["tie"]
            rows, images = rows + said, images + new
            tally.add(_Tally(errors, Counter(lost)))
        lines = [[getattr(e, c) for c in COLUMNS] for e in tally.errors]
        folders.write_atomically(notes, json.dumps({"errors": lines, "lost": tally.lost}).encode())
        folders.write_part(out, "judgements", number, rows)
        folders.write_part(out, "images", number, images)
        total.add(tally)
    return total


def _noted(path: Path) -> _Tally | None:
    """What was noted of a part when it was written; None where that is not there, or damaged."""
    try:
        found = json.loads(path.read_bytes())
        return _Tally([RowError(*row) for row in found["errors"]], Counter(dict(found["lost"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _one(
    entry: Entry, looked: tuple[list[shelf.Found], list[RowError]], plan: _Plan, stored: shelf.Shelf
) -> tuple[list[Judgement], list[Image], list[RowError]]:
    """(judgements, new images, what was wrong) of one entry; a pair is left out where one picture is no good."""
    found, double = shelf.different(entry, looked[0])
    errors = looked[1] + double
    kept = shelf.reduced(entry, [number for number, _, _ in found])
    if kept is None or not plan.policy.judgements(kept, _stand_ins(kept), "")[0]:
        return [], [], errors
    names, images = [], []
    for slot, (_, picture, data) in zip(kept.slots, found, strict=True):
        name, new = stored.add(kept.prompt, slot, picture, data)
        names.append(name)
        images += new
    rows, _ = plan.policy.judgements(kept, names, plan.reader.name)
    return stored.name(rows), images, errors


def _count(out: Path, plan: _Plan, tally: _Tally) -> dict[str, Any]:
    """What was kept and what was not; `refused.csv` beside it names the rows that could not be used."""
    errors = [*plan.refused, *tally.errors]
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(e, c) for c in COLUMNS] for e in errors)
    folders.write_atomically(out / "refused.csv", sink.getvalue().encode())
    dropped = plan.dropped + Counter(e.reason for e in plan.refused) + tally.lost
    return {
        "rows": plan.rows,
        "rows_kept": plan.rows - dropped.total(),
        "judgements": len(folders.read(out, "judgements", ["id"])),
        "images": len(folders.read(out, "images", ["id"])),
        "prompts": len(set(folders.read(out, "images", ["prompt_id"])["prompt_id"].to_pylist())),
        "dropped": dict(sorted(dropped.items())),
        "pictures_left_out": dict(sorted(Counter(e.reason for e in tally.errors).items())),
    }


def _summary(out: Path, reader: Reader, counts: dict[str, Any], errors: Sequence[RowError]) -> str:
    terms = f"; licence of the set: {reader.licence}" if reader.licence else ""
    images = shelf.known(counts["pictures_left_out"])
    broken = f"; of pictures: {images}" if images else ""
    first = f" (first: {errors[0]})" if errors else ""
    unread = f"; {counts['files_not_read']} files of another kind were not read" if counts["files_not_read"] else ""
    return (
        f"{out}: {counts['rows_kept']} of {counts['rows']} rows kept as {reader.name}: "
        f"{counts['judgements']} judgements of {counts['images']} images and {counts['prompts']} prompts; left out: "
        f"{shelf.known(counts['dropped']) or 'nothing'}{broken}{first}{unread}{terms}; "
        f"next: diffalign inspect {out}, then diffalign train RECIPE --data {out} --out …"
    )

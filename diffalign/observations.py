"""What data show before anybody trains on them: rows with their pictures decoded, from any source or record folder."""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffalign import folders, readers
from diffalign.readers import pictures
from diffalign.readers.base import Entry, Reader, RowError, Slot, Verdict
from diffalign.readers.files import File
from diffalign.readers.judging import SILENT
from diffalign.readers.pictures import Picture
from diffalign.records import Judgement
from diffalign.streams import stream

_LISTS = ("images", "image", "file_path", "image_path")
_SPLIT = re.compile(r"(?<![a-z])(train|validation|valid|val|test|dev|eval)(?![a-z])")


@dataclass(frozen=True)
class Side:
    """One image of a row: the sha256 of its file and what is in it, or why it cannot be read.

    `data` is the file itself, only where the row is to be shown.
    """

    field: str
    sha256: str | None
    picture: Picture | None
    model: str | None = None
    error: str | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class Seen:
    """One row. `values` are higher where an image is better: a pair's P and 1 - P, averaged over those who judged it.

    `votes` are P(first is better) by each of them. `error` says why the row is refused.
    """

    where: str
    split: str
    prompt: str
    sides: tuple[Side, ...]
    status: str
    values: tuple[float, ...] = ()
    votes: tuple[float, ...] = ()
    gap: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Survey:
    """The rows of a source or folder, seen one by one; `columns` are those of the files."""

    rows: int
    columns: tuple[str, ...]
    kind: str
    seen: Iterator[Seen]


def survey(
    data: Path, reader: str | None, columns: Sequence[str], images: Path | None, shown: int, seed: int
) -> Survey:
    """The rows of `data`, with the files of `shown` rows drawn at random."""
    if (data / "diffalign.json").exists():
        folders.open_folder(data, *folders.JUDGED)
        rows = folders.records(data, "judgements")
        return Survey(len(rows), (), "records", _records(data, rows, _draw(len(rows), shown, seed)))
    chosen, files, _ = readers.find(data, reader, readers.parse_columns(columns))
    total, main = _count(chosen, files)
    names = tuple(dict.fromkeys(name for file in files for name in file.columns))
    places = {file.path: readers.roots(data, images, file) for file in files}
    seen = _source(chosen, files, data, places, _draw(total, shown, seed), main)
    return Survey(total, names, chosen.name, seen)


def _count(reader: Reader, files: Sequence[File]) -> tuple[int, str]:
    """(rows, the dimension that says which image is better: overall, or the first where nobody speaks of that)."""
    total, dimensions = 0, {}
    for file in files:
        for entry in readers.read(reader, file):
            total += 1
            if isinstance(entry, Entry):
                dimensions |= {v.dimension: None for v in entry.verdicts if v.status not in SILENT}
    return total, "overall" if "overall" in dimensions else next(iter(dimensions), "overall")


def _draw(rows: int, shown: int, seed: int) -> Collection[int]:
    return set(stream("inspect", seed).choice(rows, min(rows, shown), replace=False).tolist())


def split_of(path: Path, root: Path) -> str:
    """train, validation or test, by the last such word in the file's name or folders; "" where there is none."""
    words = _SPLIT.findall(str(path.relative_to(root) if path.is_relative_to(root) else path.name).lower())
    return _split(words[-1] if words else "")


def _split(word: str) -> str:
    return {"valid": "validation", "val": "validation", "dev": "validation", "eval": "test"}.get(word, word)


def _splits(file: File) -> dict[int, str]:
    """The split of each row, of a file that has a column for it."""
    rows = file.rows(["split"]) if "split" in file.columns else ()
    return {row.number: _split((row.optional("split") or "").strip().lower()) for row in rows}


def _source(
    reader: Reader,
    files: Sequence[File],
    root: Path,
    places: Mapping[Path, Sequence[Path]],
    shown: Collection[int],
    main: str,
) -> Iterator[Seen]:
    known: dict[str, Picture | str] = {}
    number = -1
    for file in files:
        cells = file.cells(reader.columns(file.columns)[1])
        split, splits = split_of(file.path, root if root.is_dir() else root.parent), _splits(file)
        for found in readers.read(reader, file):
            number += 1
            entry = _remains(reader, file, found) if isinstance(found, RowError) else found
            at = {slot.row: cells(slot.row) for slot in entry.slots}
            sides = []
            for slot in entry.slots:
                try:
                    data = pictures.data(entry, slot, at[slot.row], places[file.path])
                    side = _side(slot.field, data, known)
                except (RowError, pictures.Outside) as error:
                    side, data = Side(slot.field, None, None, error=error.detail), None
                sides.append(dataclasses.replace(side, model=slot.model, data=data if number in shown else None))
            own = splits.get(entry.slots[0].row, split) if entry.slots else split
            seen = _seen(entry, own, tuple(sides), main)
            refused = isinstance(found, RowError)
            yield dataclasses.replace(seen, status="refused", error=str(found)) if refused else seen


def _remains(reader: Reader, file: File, error: RowError) -> Entry:
    """What can be looked at of a row whose label is refused: its prompt, and pictures that have a column each."""
    plain = [] if error.number is None else [n for n in reader.pictures if n in file.columns]
    slots = tuple(Slot(error.number, name) for name in plain if name not in _LISTS)
    return Entry(error.where, error.prompt or "", slots, ())


def _side(field: str, data: bytes, known: dict[str, Picture | str]) -> Side:
    name = hashlib.sha256(data).hexdigest()
    if name not in known:
        known[name] = pictures.measure(data)
    found = known[name]
    return Side(field, name, None, error=found) if isinstance(found, str) else Side(field, name, found)


def _seen(entry: Entry, split: str, sides: tuple[Side, ...], main: str) -> Seen:
    """The row in its main dimension, the mean over those who judged it."""
    said = [v for v in entry.verdicts if v.status not in SILENT and v.dimension == main]
    values, votes = _values(said)
    status = {v.status for v in said}
    common = status.pop() if len(status) == 1 else "decided" if len(set(values)) > 1 else "tie"
    if common in ("decided", "tie") and said and said[0].kind != "unpaired":
        common = "decided" if len(set(values)) > 1 else "tie"
    return Seen(entry.where, split, entry.prompt, sides, common if said else "unlabelled", values, votes)


def _values(said: Sequence[Verdict]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(one value an image, the votes); rankings by their mean scores."""
    if not said:
        return (), ()
    if said[0].kind == "ranking":
        lists = [v.scores for v in said if v.scores]
        return tuple(sum(column) / len(lists) for column in zip(*lists, strict=True)), ()
    votes = tuple(v.p for v in said if v.p is not None)
    p = sum(votes) / len(votes)
    return ((p, 1 - p) if said[0].kind == "pair" else (p,)), votes


def _records(folder: Path, rows: Sequence[Judgement], shown: Collection[int]) -> Iterator[Seen]:
    """The judgements of a record folder; each picture is decoded once."""
    images, texts = folders.image_rows(folder), folders.texts(folder)
    wanted = {name for row in rows for name in row.images}
    kept = {name for number in shown for name in rows[number].images}
    known: dict[str, Side] = {}
    for name, data in folders.image_bytes(folder, wanted):
        side = _side(f"image {name}", data, {})
        model = images[name]["adapter"] or images[name]["model"]
        known[name] = dataclasses.replace(side, model=model, data=data if name in kept else None)
    for number, row in enumerate(rows):
        where = f"{folder}/judgements, row {number}"
        prompt = texts.get(images[row.images[0]]["prompt_id"], "")
        plain = [dataclasses.replace(known[n], data=known[n].data if number in shown else None) for n in row.images]
        verdict = Verdict(row.kind, row.status, row.p, row.scores)
        values, votes = ((), ()) if row.status in SILENT else _values([verdict])
        yield Seen(where, "", prompt, tuple(plain), row.status, values, votes, row.score_gap)

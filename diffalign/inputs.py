"""What is scored: a record folder, a folder of pictures, or tables of pictures and prompts -> images in their order."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffalign import folders, readers
from diffalign.readers import folder, seen, shelf
from diffalign.readers.base import Entry, Row, RowError, Slot
from diffalign.readers.files import File, fingerprint
from diffalign.readers.seen import Seen
from diffalign.records import Image, InputError, Prompt, prompt_id

# columns by their usual names; the first that is there counts
PROMPTS = ("prompt", "caption", "text", "txt", "json")
IMAGES = ("image", "file_name", "jpg", "jpeg", "png", "webp", "image_path", "path")
PART = 256
# which row of a table shows which image
ROWS = "rows.csv"
# what a folder of pictures tells of them; their other columns are empty
_TOLD = {
    "prompts": ("id", "text", "count"),
    "images": ("id", "prompt_id", "image", "sha256", "width", "height", "index"),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One image to judge, under its prompt; `picture` is the hash of its file, `file` its name where that has one."""

    image: str
    prompt: str
    text: str
    index: int | None
    picture: str
    file: str = ""


@dataclass(frozen=True)
class Source:
    """What was named: record folders are `parents`; other images come with the records that the output has to hold.

    Attributes:
        arguments: Say, in the output's manifest, what it was made from.
        tables: Files of rows, whose pictures are stored in the output, part by part.
        prompts, images: Of a folder of pictures, which stay where they are; broken: its files that are none, and why.
        seen: What those pictures held, by path from the output, for the next run.
    """

    place: Path
    arguments: dict[str, Any]
    parents: tuple[dict[str, str], ...] = ()
    tables: tuple[File, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    images: tuple[Image, ...] = ()
    broken: tuple[str, ...] = ()
    seen: Mapping[str, Seen] = field(default_factory=dict)

    def rows(self, out: Path) -> dict[str, list[tuple[str, str]]]:
        """Of tables that are stored in `out`, image id -> (file, number from 0 or key) of each row that shows it."""
        found: dict[str, list[tuple[str, str]]] = {}
        if self.tables:
            with (out / ROWS).open(encoding="utf-8", newline="") as file:
                for image, name, row in list(csv.reader(file))[1:]:
                    found.setdefault(image, []).append((name, row))
        return found

    def items(self, out: Path) -> list[Item]:
        """The images in their order, but those of one file next to the first of them; tables are asked when stored."""
        place = self.place if self.parents else out
        if self.images:
            texts = {p.id: p.text for p in self.prompts}
            base, start = self.place.resolve(), out.resolve()
            names = [os.path.relpath(start / i.image["path"], base) for i in self.images]
            rows = [(i.id, i.prompt_id, i.index, i.sha256, n) for i, n in zip(self.images, names, strict=True)]
        else:
            texts = folders.texts(place)
            table = folders.read(place, "images", ["id", "prompt_id", "index", "sha256"])
            rows = [(*row, "") for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]
        found: dict[str, list[Item]] = {}
        for name, prompt, index, picture, file in rows:
            if prompt not in texts:
                raise InputError(f"{self.place}: image {name} is of no known prompt ({prompt})")
            found.setdefault(picture, []).append(Item(name, prompt, texts[prompt], index, picture, file))
        if len({name for name, *_ in rows}) < len(rows):
            raise InputError(f"{self.place}: two images have one id")
        return [item for same in found.values() for item in same]


def find(place: Path, out: Path) -> Source:
    """What `place` is; raises InputError where it is nothing that can be scored."""
    if (place / "diffalign.json").exists():
        folders.open_folder(place, "sample", "import")
        return Source(place, {}, (folders.parent(out, place),))
    tables = _tables(place)
    if tables:
        return Source(place, {"source": fingerprint(tables, whole=True)}, tables=tables)
    prompts, found, broken, files = folder.read(place, out, seen.load(out))
    _require_same(place, out, found)
    arguments = {"images": len(found), "first": found[0].id}
    return Source(place, arguments, prompts=tuple(prompts), images=tuple(found), broken=tuple(broken), seen=files)


def _require_same(place: Path, out: Path, found: Sequence[Image]) -> None:
    """Rows may be added at the end of a folder of pictures; others may not change."""
    if not (out / "diffalign.json").exists():
        return
    before = folders.load(out)
    if before.stage != "score" or before.parents or "source" in before.arguments:
        return
    table = folders.read(out, "images", ["id", "prompt_id"])
    for number, row in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True)):
        if number >= len(found) or row != (found[number].id, found[number].prompt_id):
            raise InputError(
                f"{place}: row {number + 1} is not the one {out} was made from; restore it or choose another --out"
            )


def _tables(place: Path) -> tuple[File, ...]:
    """The tables at `place`: a file of rows, or the Parquet, Arrow and tar files of a folder without metadata, but none
    of the record folders in it, of which the output may be one.
    """
    if place.is_dir() and folder.metadata(place) is None:
        found = sorted(p for kind in ("parquet", "arrow", "tar") for p in place.rglob(f"*.{kind}") if p.is_file())
        made = {p.parent for p in place.rglob("diffalign.json")} if found else set()
        found = [p for p in found if made.isdisjoint(p.parents)]
    else:
        found = [place] if place.is_file() else []
    opened = [(path, readers.opened(path)) for path in found]
    for path, file in opened:
        if file is None:
            raise InputError(f"{path}: expected a list of objects, one a row")
        if not set(IMAGES) & set(file.columns):
            raise InputError(f"{path}: has no column {' or '.join(IMAGES)}, only {', '.join(file.columns)}")
    return tuple(file for _, file in opened if file is not None)


def store(source: Source, out: Path) -> dict[str, Any]:
    """Write into `out` what lies in no record folder yet; how many rows of tables there are, and were left out."""
    if not source.tables:
        for table, rows in (("prompts", source.prompts), ("images", source.images)):
            if rows and not folders.is_whole(out, table, 0, {n: [getattr(r, n) for r in rows] for n in _TOLD[table]}):
                folders.write_part(out, table, 0, rows)
        if source.images:
            seen.keep(out, source.seen)
        return {}
    prompts: Counter[str] = Counter()
    refused: list[str] = []
    kept, part, number = shelf.Shelf(), [], 0
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["image_id", "file", "row"])
    for place, text, shown, errors in _looked(source, kept):
        refused += map(str, errors)
        prompts[text] += 1 - len(errors)
        for name, images in shown:
            writer.writerow([name, *place])
            part += images
        if len(part) >= PART:
            folders.write_part(out, "images", number, part)
            part, number = [], number + 1
    if part or not number:
        folders.write_part(out, "images", number, part)
    folders.write_part(out, "prompts", 0, [Prompt(prompt_id(t), t, n) for t, n in prompts.items() if n])
    folders.write_atomically(out / ROWS, sink.getvalue().encode())
    if not prompts.total():
        raise InputError(f"{source.place}: no row can be used{f' (first: {refused[0]})' if refused else ''}")
    return {"rows": prompts.total() + len(refused), "left_out": len(refused), "first_left_out": (refused or [None])[0]}


def _looked(
    source: Source, kept: shelf.Shelf
) -> Iterator[tuple[tuple[str, str], str, list[tuple[str, list[Image]]], list[RowError]]]:
    """((file, row), prompt, its picture as its id and what is new of it, why there is none) of each row."""
    for file in source.tables:
        name = file.path.relative_to(source.place).as_posix() if source.place.is_dir() else file.path.name
        image = next(column for column in IMAGES if column in file.columns)
        said = next((column for column in PROMPTS if column in file.columns), None)
        cells = file.cells([image])
        # a column has to be asked for, so that there are rows
        for row in file.rows([said or next((c for c in file.columns if c != image), image)]):
            text = _text(row, said)
            slot = Slot(row.number, image)
            found, errors = shelf.look(Entry(row.where, text, (slot,), ()), cells, [file.path.parent])
            shown = [kept.add(text, slot, picture, data) for _, picture, data in found]
            yield (name, row.key or str(row.number)), text, shown, errors


def _text(row: Row, column: str | None) -> str:
    """The prompt of a row, "" where there is none; webdataset's JSON members hold it below one of the usual names."""
    if column is None or row.get(column) is None:
        return ""
    text = row.text(column)
    if column != "json":
        return text
    try:
        found = json.loads(text)
    except ValueError as error:
        raise row.error("json", "wrong type", f"is not JSON ({error})") from None
    known = [found[name] for name in PROMPTS if name in found] if isinstance(found, dict) else []
    return next((value for value in known if isinstance(value, str)), "")

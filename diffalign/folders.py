"""Record folders: parts written whole or not at all, a manifest that says what made them, and images found by id.

A folder is `{prompts,images,scores,judgements}/part-*.parquet` (whatever its stage makes), `diffalign.json` and a
`README.md` by which `datasets.load_dataset(FOLDER, "images")` finds the tables. A stage cuts its work list into batches
before it skips anything; batch i is part i, and it is whole on disk or made again whole.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffalign.manifest import Manifest, is_temporary, load, versions, write_atomically
from diffalign.records import TABLES, InputError, Record, optional, schema

__all__ = [
    "JUDGED", "MAIN", "Manifest", "begin", "cells", "changed", "check", "image_bytes", "image_rows", "is_whole",
    "keep_parts", "leading", "lineage", "load", "open_folder", "parent", "part", "part_with", "read", "records",
    "texts", "verify", "versions", "write_atomically", "write_part",
]  # fmt: skip

# Which table of a stage has one part a batch.
MAIN = {
    "import": "images", "sample": "images", "score": "scores", "pair": "judgements", "filter": "judgements",
    "caption": "captions",
}  # fmt: skip
# The stages whose folders hold judgements.
JUDGED = ("pair", "import", "filter", "caption")


def check(folder: Path, manifest: Manifest) -> None:
    """Raise InputError where `folder` holds something else than `manifest` says, naming the difference."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, expected a folder or a new name")
    if (folder / "diffalign.json").exists():
        _require_same(folder, load(folder), manifest)
    elif folder.exists() and any(not is_temporary(entry) for entry in folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no record folder; choose another --out")


def begin(folder: Path, manifest: Manifest) -> None:
    """Make `folder` that of `manifest`, or go on in it; raises InputError as `check` does."""
    check(folder, manifest)
    path = folder / "diffalign.json"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in [entry for entry in folder.glob("**/.*") if is_temporary(entry)]:
        stale.unlink()
    write_atomically(path, (json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True) + "\n").encode())
    configs = "".join(f"- config_name: {t}\n  data_files: {t}/*.parquet\n" for t in _tables(manifest))
    text = f"---\nconfigs:\n{configs}---\n\nMade by `diffalign {manifest.stage}`; see `diffalign.json`.\n"
    write_atomically(folder / "README.md", text.encode())


def _require_same(folder: Path, found: Manifest, manifest: Manifest) -> None:
    if found.stage != manifest.stage:
        raise InputError(
            f"{folder}: holds the output of `{found.stage}`, expected that of `{manifest.stage}` or a new folder"
        )
    before, now = found.arguments, json.loads(json.dumps(manifest.arguments))
    for name in sorted(set(before) | set(now)):
        old, new = before.get(name), now.get(name)
        if old != new and not (name in manifest.extends and _is_grown(old, new)):
            raise changed(folder, name, old, new)
    if len(found.parents) != len(manifest.parents):
        raise InputError(f"{folder}: was made from {len(found.parents)} folders, not {len(manifest.parents)}")
    for old, new in zip(found.parents, manifest.parents, strict=True):
        if old["fingerprint"] != new["fingerprint"]:
            raise InputError(f"{folder}: was made from another {old['path']}; choose another --out")


def _is_grown(old: object, new: object) -> bool:
    """Whether a number is larger; what comes to a table, and what leaves it, its stage has looked at."""
    if isinstance(old, dict | None) and isinstance(new, dict | None):
        return True
    return isinstance(old, int) and isinstance(new, int) and new > old


def changed(folder: Path, name: str, old: object, new: object) -> InputError:
    """Why a folder is refused that was made with another argument."""
    return InputError(f"{folder}: was made with {name} = {old!r}, not {new!r}; choose another --out or the old value")


def _tables(manifest: Manifest) -> tuple[str, ...]:
    """The tables of a folder; scores of a plain image folder come with its prompts and images."""
    if manifest.stage == "import":
        scored = ("scores",) if manifest.arguments.get("scores") else ()
        return ("prompts", "images", "judgements", *scored)
    if manifest.stage == "sample":
        return ("prompts", "images")
    if manifest.stage == "score":
        return ("scores",) if manifest.parents else ("prompts", "images", "scores")
    return ("judgements", "captions") if manifest.stage == "caption" else (MAIN[manifest.stage],)


def parent(child: Path, folder: Path) -> dict[str, str]:
    """How `child` remembers `folder`: relative path and fingerprint."""
    return {"path": os.path.relpath(folder.resolve(), child.resolve()), "fingerprint": load(folder).fingerprint}


def open_folder(folder: Path, *stages: str) -> Manifest:
    """The manifest of a whole record folder made by one of `stages`; raises InputError naming what is wrong with it."""
    manifest = load(folder)
    if manifest.stage not in stages:
        wanted = " or ".join(f"`{s}`" for s in stages)
        raise InputError(f"{folder}: holds the output of `{manifest.stage}`, expected that of {wanted}")
    missing = [i for i in range(manifest.batches) if not part(folder, MAIN[manifest.stage], i).exists()]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {manifest.batches} parts are missing; run its `{manifest.stage}` again"
        )
    if lacking := manifest.counts.get("lacking"):
        raise InputError(f"{folder}: scores by {', '.join(lacking)} are missing; run its `{manifest.stage}` again")
    return manifest


def part(folder: Path, table: str, index: int) -> Path:
    """Where batch `index` of a table lies."""
    return folder / table / f"part-{index:05d}.parquet"


def write_part(folder: Path, table: str, index: int, records: Sequence[Record]) -> None:
    """Write one batch of records, atomically."""
    columns = pa.Table.from_pylist([r.row() for r in records], schema=schema(table))
    sink = pa.BufferOutputStream()
    # pictures are large: what is read at once is a row group
    pq.write_table(columns, sink, compression="zstd", row_group_size=16 if table == "images" else 256)
    write_atomically(part(folder, table, index), sink.getvalue().to_pybytes())


def keep_parts(folder: Path, table: str, count: int) -> None:
    """Remove the parts of a table from number `count` on."""
    for path in _parts(folder, table):
        if int(path.stem.removeprefix("part-")) >= count:
            path.unlink()


def is_whole(folder: Path, table: str, index: int, expected: Mapping[str, Sequence[Any]]) -> bool:
    """Whether batch `index` is on disk, readable, and holds exactly the `expected` values in the columns named."""
    try:
        found = _read_part(part(folder, table, index), table, list(expected))
    except (InputError, FileNotFoundError):
        return False
    return all(found.column(name).to_pylist() == list(values) for name, values in expected.items())


def cells(folder: Path, table: str, index: int, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """The rows of batch `index` in the columns named; none where it is not on disk or not readable."""
    try:
        found = _read_part(part(folder, table, index), table, columns)
    except (InputError, FileNotFoundError):
        return []
    return list(zip(*(column.to_pylist() for column in found.columns), strict=True))


def leading(folder: Path, table: str, index: int, expected: Mapping[str, Sequence[Any]]) -> list[Record]:
    """The records of batch `index` where they are the first of the `expected` ones, else none."""
    try:
        rows = _read_part(part(folder, table, index), table, None).to_pylist()
        if any([row[name] for row in rows] != list(values)[: len(rows)] for name, values in expected.items()):
            return []
        return [TABLES[table].of(row) for row in rows]
    except (InputError, FileNotFoundError):
        return []


def read(folder: Path, table: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a table, in the order of the parts; raises InputError naming the file that cannot be read."""
    names = list(columns) if columns else schema(table).names
    found = [_read_part(path, table, names) for path in _parts(folder, table)]
    return pa.concat_tables(found) if found else _target(table, names).empty_table()


def part_with(folder: Path, table: str, key: str) -> tuple[int, list[Record]]:
    """(number, records) of the part that holds the record of this id; raises InputError where there is none."""
    for path in _parts(folder, table):
        if key in _read_part(path, table, ["id"])["id"].to_pylist():
            rows = _read_part(path, table, None).to_pylist()
            return int(path.stem.removeprefix("part-")), [TABLES[table].of(row) for row in rows]
    raise InputError(f"{folder}: {table} holds no {key!r}")


def _parts(folder: Path, table: str) -> list[Path]:
    """The parts on disk in the order of their numbers, of which names have at least five digits."""
    return sorted((folder / table).glob("part-*.parquet"), key=lambda path: (len(path.name), path.name))


def _broken(path: Path, error: BaseException) -> InputError:
    first = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
    return InputError(f"{path}: is not a whole Parquet file ({first}); run its stage again")


def _read_part(path: Path, table: str, columns: Sequence[str] | None) -> pa.Table:
    """The columns of one part in the types of the schema."""
    wanted = schema(table)
    try:
        with pq.ParquetFile(path) as file:
            there = set(file.schema_arrow.names)
            odd = sorted((there ^ set(wanted.names)) - (optional(TABLES[table]) - there))
            if odd:
                kind = "unknown" if odd[0] in file.schema_arrow.names else "missing"
                raise InputError(f"{path}, row 0: field {odd[0]!r} is {kind}, expected {', '.join(wanted.names)}")
            names = list(columns) if columns else wanted.names
            found = file.read(columns=[n for n in names if n in there])
            for name in [n for n in names if n not in there]:  # a column that may be empty may be missing
                found = found.append_column(name, pa.nulls(file.metadata.num_rows, wanted.field(name).type))
            found = found.select(names)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from None
    target = _target(table, names)
    if found.schema.equals(target, check_metadata=True):  # to cast loads pandas, which takes longer than to read
        return found
    for name in names:
        try:
            found.column(name).cast(target.field(name).type)
        except pa.ArrowException:
            kind = found.column(name).type
            raise InputError(f"{path}: field {name!r} is {kind}, expected {target.field(name).type}") from None
    return found.cast(target)


def _target(table: str, names: Sequence[str]) -> pa.Schema:
    return pa.schema([schema(table).field(name) for name in names], schema(table).metadata)


def records(folder: Path, table: str) -> list[Record]:
    """All records of a table, each checked; raises InputError naming file, row and field."""
    return list(_checked(folder, table))


def verify(folder: Path, table: str) -> None:
    """Raise InputError as `records` does; no more than some rows are in memory."""
    for _ in _checked(folder, table):
        continue


def _checked(folder: Path, table: str) -> Iterator[Record]:
    for path in _parts(folder, table):
        number = 0
        for batch in _read_part(path, table, None).to_batches(1024):
            for row in batch.to_pylist():
                try:
                    yield TABLES[table].of(row)
                except (InputError, TypeError) as error:
                    raise InputError(f"{path}, row {number}: {error}") from None
                number += 1


def lineage(folder: Path) -> Iterator[Path]:
    """The folder and its ancestors, nearest first; raises InputError where one has moved or is another one now."""
    yield folder
    for entry in load(folder).parents:
        ancestor = Path(os.path.normpath(folder.resolve() / entry["path"]))
        if not ancestor.exists():
            raise InputError(f"{folder}: its parent {ancestor} is not there; keep record folders side by side")
        if load(ancestor).fingerprint != entry["fingerprint"]:
            raise InputError(f"{folder}: its parent {ancestor} is not the folder it was made from")
        yield from lineage(ancestor)


def texts(folder: Path) -> dict[str, str]:
    """Prompt id -> text, over the folder and its ancestors."""
    found: dict[str, str] = {}
    for place in lineage(folder):
        rows = read(place, "prompts", ["id", "text"])
        found |= dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))
    return found


def image_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Image id -> its row without the bytes, over the folder and its ancestors."""
    columns = [n for n in schema("images").names if n != "image"]
    found: dict[str, dict[str, Any]] = {}
    for place in lineage(folder):
        found |= {row["id"]: row for row in read(place, "images", columns).to_pylist()}
    return found


def image_bytes(folder: Path, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """(image id, file bytes) of the wanted images, in the order in which they lie in the folder and its ancestors.

    Memory holds one row group. Raises InputError naming an image that is nowhere, or a file that is gone.
    """
    missing = set(wanted)
    for place in lineage(folder):
        for path in _parts(place, "images"):
            for row in _image_rows(path, missing):
                missing.discard(row["id"])
                yield row["id"], _bytes(place, row)
            if not missing:
                return
    if missing:
        raise InputError(f"{folder}: image {min(missing)} is in no parent folder ({len(missing)} such images)")


def _image_rows(path: Path, wanted: set[str]) -> Iterator[dict[str, Any]]:
    """The rows of one part whose ids are wanted; row groups without any are not read."""
    ids, start = _read_part(path, "images", ["id"])["id"].to_pylist(), 0
    if wanted.isdisjoint(ids):
        return
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                rows = [n - start for n in range(start, end) if ids[n] in wanted]
                start = end
                if rows:
                    yield from file.read_row_group(group, columns=["id", "image"]).take(rows).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from None


def _bytes(place: Path, row: dict[str, Any]) -> bytes:
    image = row["image"] or {"bytes": None, "path": None}
    if image["bytes"] is not None:
        return image["bytes"]
    if image["path"] is None:
        raise InputError(f"{place}: image {row['id']} has neither bytes nor path")
    path = place / image["path"]
    if not path.is_file():
        raise InputError(f"{path}: image {row['id']} of {place} is not there")
    return path.read_bytes()

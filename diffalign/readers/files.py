"""Files of rows: Parquet, Arrow, CSV, JSON, JSON lines. Labels are read first, of all rows; pictures later, of some."""

import csv
import hashlib
import io
import itertools
import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from diffalign.readers.base import Row
from diffalign.records import InputError, digest

Cells = Mapping[str, Any]
Opened = Callable[[], pq.ParquetFile]
Numbered = Callable[[Path], Iterable[tuple[int, Cells]]]


@dataclass(frozen=True)
class File:
    """A file of rows. `rows(columns)` gives them in order, without the pictures; `cells(columns)` gives a function from
    the number of a row to its cells, to be asked in ascending order. `stamp` is the name of a remote file's content.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[Row]]
    cells: Callable[[Sequence[str]], Callable[[int], Cells]]
    stamp: str = ""


def renamed(file: File, names: Mapping[str, str]) -> File:
    """The file with its column names[new] called `new`; raises InputError where it has no such column."""
    absent = [old for old in names.values() if old not in file.columns]
    if absent:
        raise InputError(f"{file.path}: has no column {absent[0]!r}, only {', '.join(file.columns)}")
    new = {old: name for name, old in names.items()}
    columns = tuple(new.get(c, c) for c in file.columns if c in new or c not in names)

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        for row in file.rows([names.get(c, c) for c in wanted]):
            shown = {new.get(k, k): v for k, v in row.values.items() if k in new or k not in names}
            yield Row(row.where, row.number, shown, row.key)

    def cells(wanted: Sequence[str]) -> Callable[[int], Cells]:
        inner = file.cells([names.get(c, c) for c in wanted])
        return lambda number: {new.get(k, k): v for k, v in inner(number).items()}

    return File(file.path, columns, rows, cells, file.stamp)


def parquet(path: Path, remote: Callable[[], BinaryIO] | None = None, stamp: str = "") -> File:
    """A Parquet file; raises InputError where it is not whole. `remote` opens one that lies elsewhere."""
    opened = partial(_parquet, path, remote)
    with opened() as file:
        names = tuple(file.schema_arrow.names)
    return File(path, names, partial(_parquet_rows, path, opened), partial(_parquet_cells, path, opened), stamp)


def _parquet(path: Path, remote: Callable[[], BinaryIO] | None) -> pq.ParquetFile:
    try:
        # A buffered stream keeps one page of a column in memory rather than all of its row group.
        return pq.ParquetFile(remote() if remote else path, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: BaseException) -> InputError:
    return InputError(f"{path}: is not a whole Parquet file ({str(error).splitlines()[0][:80]}); fetch it again")


def _parquet_rows(path: Path, opened: Opened, columns: Sequence[str]) -> Iterator[Row]:
    number = 0
    try:
        with opened() as file:
            for batch in file.iter_batches(1024, columns=list(columns)):
                for values in batch.to_pylist():
                    yield Row(f"{path}, row {number}", number, values)
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _broken(path, error) from None


def arrow(path: Path) -> File:
    """A file of Arrow record batches, as `Dataset.save_to_disk` leaves them; it is mapped, not read."""
    try:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
            table = stream.read_all()
    except (pa.ArrowException, OSError) as error:
        said = str(error).splitlines()[0][:80]
        raise InputError(f"{path}: is not a whole Arrow file ({said}); save it again") from None

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        values = itertools.chain.from_iterable(b.to_pylist() for b in table.select(list(columns)).to_batches(1024))
        return (Row(f"{path}, row {n}", n, found) for n, found in enumerate(values))

    def cells(columns: Sequence[str]) -> Callable[[int], Cells]:
        chosen = table.select(list(columns))
        return lambda number: chosen.slice(number, 1).to_pylist()[0]

    return File(path, tuple(table.column_names), rows, cells)


def _parquet_cells(path: Path, opened: Opened, columns: Sequence[str]) -> Callable[[int], Cells]:
    walk = _walk_groups(path, opened, list(columns))
    next(walk)
    return walk.send


def _walk_groups(path: Path, opened: Opened, columns: list[str]) -> Generator[Cells, int, None]:
    """Answers row numbers, sent in ascending order, with the cells; row groups without a wanted row are never read."""
    try:
        with opened() as file:
            wanted, end = (yield {}), 0
            for group in range(file.num_row_groups):
                start, end = end, end + file.metadata.row_group(group).num_rows
                if wanted >= end:
                    continue
                for batch in file.iter_batches(16, row_groups=[group], columns=columns):
                    while start <= wanted < start + batch.num_rows:
                        wanted = yield batch.slice(wanted - start, 1).to_pylist()[0]
                    start += batch.num_rows
                    if wanted >= end:
                        break
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _broken(path, error) from None


def table(path: Path) -> File | None:
    """A CSV, JSON or JSON-lines file; None where JSON holds something else than a list of objects."""
    if path.suffix == ".json":
        found = _json(path)
        if found is None:
            return None
        return in_memory(path, found, "row")
    read = _csv if path.suffix == ".csv" else _lines
    named = _header(path) if path.suffix == ".csv" else (name for _, values in read(path) for name in values)
    columns = tuple(dict.fromkeys(named))
    return File(path, columns, partial(_read_rows, path, read), partial(_read_cells, path, read))


def in_memory(path: Path, found: Sequence[Cells], word: str) -> File:
    """Rows that are in memory already."""

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        return (Row(f"{path}, {word} {n}", n, values) for n, values in enumerate(found))

    columns = tuple(dict.fromkeys(name for values in found for name in values))
    return File(path, columns, rows, lambda columns: found.__getitem__)


def _read_rows(path: Path, read: Numbered, columns: Sequence[str]) -> Iterator[Row]:
    for number, (line, values) in enumerate(read(path)):
        yield Row(f"{path}, line {line}", number, values)


def _read_cells(path: Path, read: Numbered, columns: Sequence[str]) -> Callable[[int], Cells]:
    walk = _walk(values for _, values in read(path))
    next(walk)
    return walk.send


def _walk(rows: Iterable[Cells]) -> Generator[Cells, int, None]:
    """Answers row numbers, sent in ascending order, with the cells."""
    wanted = yield {}
    for number, values in enumerate(rows):
        while wanted == number:
            wanted = yield values


def _text(path: Path) -> io.StringIO:
    try:
        return io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: is not UTF-8 (byte {error.start})") from None


def _header(path: Path) -> list[str]:
    """The columns of a CSV, which may have no row."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            names = csv.DictReader(file, strict=True).fieldnames or []
        except csv.Error as error:
            raise InputError(f"{path}, line 1: is not CSV ({error})") from None
    doubled = [n for n in names if names.count(n) > 1]
    if doubled:
        raise InputError(f"{path}, line 1: column {doubled[0]!r} stands twice")
    return list(names)


def _csv(path: Path) -> Iterator[tuple[int, Cells]]:
    reader = csv.DictReader(_text(path), strict=True)
    try:
        for row in reader:
            if None in row:
                raise InputError(f"{path}, line {reader.line_num}: more cells than columns; quote texts with commas")
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: is not CSV ({error})") from None


def _lines(path: Path) -> Iterator[tuple[int, Cells]]:
    for number, line in enumerate(_text(path), start=1):
        if line.strip():
            yield number, _object(f"{path}, line {number}", _parse(f"{path}, line {number}", line))


def _json(path: Path) -> list[Cells] | None:
    found = _parse(str(path), _text(path).read())
    if not isinstance(found, list) or not found or not isinstance(found[0], dict):
        return None
    return [_object(f"{path}, row {n}", row) for n, row in enumerate(found)]


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=lambda name: math.nan if name == "NaN" else math.inf)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not JSON ({str(error)[:80]})") from None


def _object(where: str, found: Any) -> Cells:
    if not isinstance(found, dict):
        raise InputError(f"{where}: is {type(found).__name__}, expected an object with one key a column")
    return found


def fingerprint(files: Sequence[File], *, whole: bool = False) -> str:
    """Hash of the files' names, lengths and bytes: of a text all, else the last (where Parquet has its index).

    `whole`: all bytes of all files, at a second a GB or less: a picture may change and leave length and end alone.
    """
    parts: list[str | int | bytes] = []
    for file in files:
        parts.append(file.path.name)
        if file.stamp:
            parts.append(file.stamp)
        elif file.path.is_file():
            with file.path.open("rb") as handle:
                size = file.path.stat().st_size
                if whole:
                    parts += [size, hashlib.file_digest(handle, "sha256").digest()]
                    continue
                handle.seek(0 if file.path.suffix in (".csv", ".json", ".jsonl") else max(0, size - 65536))
                parts += [size, handle.read()]
        else:
            parts += [str(row.values) for row in file.rows(file.columns)]
    return digest("source", *parts)

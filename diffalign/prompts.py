"""What is to be drawn: prompt lists as people have them, read strictly; what is odd about them is said, not mended."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffalign.records import InputError, Prompt, digest, prompt_id

TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
EXTRA = ("id", "height", "width")


@dataclass(frozen=True)
class PromptList:
    """Unique prompts in their order, the (height, width) of those that ask for one, how many lines were empty, and the
    first line of each.
    """

    prompts: tuple[Prompt, ...]
    sizes: Mapping[str, tuple[int, int]]
    empty: int = 0
    lines: Mapping[str, int] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of ids, texts and sizes."""
        sized = [(p.id, p.text, *self.sizes.get(p.id, ())) for p in self.prompts]
        return digest(*(part for row in sized for part in row))

    @property
    def odd(self) -> str:
        """What is odd about the list, in words; "" where nothing is."""
        doubled = sum(p.count > 1 for p in self.prompts)
        said = [f"{doubled} of them listed more than once"] if doubled else []
        said += [f"{self.empty} empty lines left out"] if self.empty else []
        return f" ({', '.join(said)})" if said else ""


def read_prompts(path: Path, column: str = "text") -> PromptList:
    """The prompts of a text file (one a line), or of the field `column` of a JSON-lines, CSV, TSV or Parquet file,
    which may also have "id", and "height" and "width" in pixels. Equal texts are one prompt, counted.

    Raises InputError naming file, line and field for a file that is missing, empty or not UTF-8, a field that is
    missing or of another kind, a blank text, or an id that stands for two texts or sizes.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such prompt file")
    found: dict[str, Prompt] = {}
    sizes: dict[str, tuple[int, int] | None] = {}
    lines: dict[str, int] = {}
    empty = 0
    for number, row in _rows(path, column):
        text = row[column]
        if text is None:
            empty += 1
            continue
        where = f"{path}, line {number}"
        if not text:
            raise InputError(f"{where}, field {column}: is empty")
        key = row.get("id") or prompt_id(text)
        size = (row["height"], row["width"]) if row.get("height") and row.get("width") else None
        known = found.get(key)
        if known and known.text != text:
            raise InputError(f"{where}, field id: {key!r} already stands for {known.text!r}")
        if known and sizes[key] != size:
            raise InputError(f"{where}: {key!r} is listed before in another size; expected one size a prompt")
        found[key] = Prompt(key, text, known.count + 1 if known else 1)
        sizes[key] = size
        lines.setdefault(key, number)
    if not found:
        raise InputError(f"{path}: holds no prompt")
    return PromptList(tuple(found.values()), {k: v for k, v in sizes.items() if v}, empty, lines)


def _rows(path: Path, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, its checked fields) of a prompt file; the text is None where a line is blank."""
    if path.suffix not in TABLES:
        if column != "text":
            raise InputError(f"column = {column!r}: {path} has no columns; expected a {', '.join(TABLES)} file")
        for number, line in enumerate(_text(path).splitlines(), 1):
            yield number, {"text": line.strip() or None}
        return
    rows = {".jsonl": _json, ".parquet": _parquet}.get(path.suffix, _csv)(path, column)
    for number, row in rows:
        if row is None:
            yield number, {column: None}
            continue
        where = f"{path}, line {number}"
        if column not in row:
            raise InputError(f"{where}: has no field {column!r}, but {', '.join(map(repr, row))}; choose a --column")
        checked = {name: _field(where, name, row[name]) for name in dict.fromkeys((column, *EXTRA)) if name in row}
        if (checked.get("height") is None) != (checked.get("width") is None):
            raise InputError(f"{where}: expected both height and width, or neither")
        yield number, checked


def _field(where: str, name: str, value: Any) -> Any:
    """The value of a field, checked."""
    if name in ("height", "width"):
        if value in (None, ""):
            return None
        if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{where}, field {name}: {value!r}, expected a number of pixels")
        return value
    if name == "id" and value in (None, ""):
        return None
    if not isinstance(value, str):
        raise InputError(f"{where}, field {name}: {value!r}, expected a text")
    return value.strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        row = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {row}: is not UTF-8 (byte {error.start})") from None


def _json(path: Path, column: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            row = ()
        if not isinstance(row, dict | None):
            raise InputError(f'{path}, line {number}: expected {{"{column}": "…"}}, optionally with "id"')
        yield number, row


def _csv(path: Path, column: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    lines = _text(path).splitlines(keepends=True)
    reader = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} fields")
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from None


def _parquet(path: Path, column: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise InputError(
                    f"{path}: has no field {column!r}, but {', '.join(map(repr, names))}; choose a --column"
                )
            rows = file.read(columns=[n for n in dict.fromkeys((column, *EXTRA)) if n in names]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: is not a whole Parquet file ({str(error).splitlines()[0][:80]})") from None
    yield from enumerate(rows, 1)

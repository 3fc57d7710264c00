"""Whose data: a public schema or a folder layout -> entries. A set is known by its columns, never by its name."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffalign.readers import columns, hpd, hub, imagereward_db, open_image_preferences, pickapic, rapidata
from diffalign.readers.base import Entry, Reader, RowError
from diffalign.readers.files import File, arrow, parquet, renamed, table
from diffalign.readers.folder import LISTS, PICTURES
from diffalign.readers.layouts import layout
from diffalign.readers.tars import tar
from diffalign.records import InputError

READERS: tuple[Reader, ...] = (
    *pickapic.READERS, *hpd.READERS, *imagereward_db.READERS, *open_image_preferences.READERS, *rapidata.READERS,
    *columns.READERS,
)  # fmt: skip
_TARS = (".tar", ".tar.gz", ".tgz")
_TABLES = (".csv", ".json", ".jsonl")


def opened(path: Path) -> File | None:
    """The rows of one file; None where it holds no rows (a JSON file of something else)."""
    if path.name.endswith(_TARS):
        return tar(path)
    if path.suffix in (".parquet", ".arrow"):
        return parquet(path) if path.suffix == ".parquet" else arrow(path)
    if path.suffix in _TABLES:
        return table(path)
    raise InputError(f"{path}: expected Parquet, Arrow, CSV, JSON, JSON lines (.jsonl) or a tar; or a folder")


def _files(source: Path) -> list[Path]:
    """The files of rows in a folder, by name; hidden ones and record folders left out."""
    kinds = (".parquet", ".arrow", *_TABLES, *_TARS)
    ours = {p.parent for p in source.rglob("diffalign.json")}
    found = [p for p in source.rglob("*") if p.name.endswith(kinds) and p.is_file() and not ours & set(p.parents)]
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(source).parts))


def find(source: Path, reader: str | None, mapping: Mapping[str, str]) -> tuple[Reader, list[File], list[Path]]:
    """(the reader, the files it reads, those of another kind) of a file, a folder, or a set on the hub.

    `mapping` says which column stands for which. Raises InputError where the columns are of no known set, or of two.
    """
    if not source.exists():
        return _remote(source, reader, mapping)
    if (source / "diffalign.json").exists():
        raise InputError(f"{source}: is a record folder already")
    if source.is_file():
        file = opened(source)
        if file is None:
            raise InputError(f"{source}: expected a list of objects, one a row")
        file = renamed(file, mapping)
        return recognise(file, reader), [file], []
    paths = _files(source)
    known, refusals = _known([f for f in map(opened, paths) if f], reader, mapping)
    pictures = None if known else layout(source)
    if pictures:
        paths = [p for p in paths if p.name not in LISTS]
        known, refusals = _known([pictures], reader, mapping)
    if not known:
        nothing = (
            f"{source}: holds no rows (Parquet, CSV, JSON, tar), no chosen/ and rejected/, and no pictures "
            f"({', '.join(PICTURES[:4])}) named …_w and …_l or …_0, …_1"
        )
        raise refusals[0] if refusals else InputError(nothing)
    return _only(source, known, paths)


def _remote(source: Path, reader: str | None, mapping: Mapping[str, str]) -> tuple[Reader, list[File], list[Path]]:
    there = hub.named(source)
    # a folder that is here is meant by its name, so nobody is asked about what may be private
    if there is None or source.parent.is_dir():
        raise InputError(f"{source}: no such file or folder; a set on the hub is named owner/name (or hf://datasets/…)")
    files = hub.files(*there)
    known, refusals = _known(files, reader, mapping)
    if not known:
        raise refusals[0]
    return _only(source, known, [f.path for f in files])


def _only(
    source: Path, known: Mapping[str, list[File]], paths: Sequence[Path]
) -> tuple[Reader, list[File], list[Path]]:
    """The one reader that knows files of a source; raises InputError where there are several."""
    if len(known) > 1:
        what = ", ".join(f"{name} ({files[0].path.name})" for name, files in known.items())
        raise InputError(f"{source}: holds sets of several kinds: {what}; name one file or --reader")
    name, kept = next(iter(known.items()))
    return named(name), kept, [p for p in paths if p not in {f.path for f in kept}]


def _known(
    files: Sequence[File], reader: str | None, mapping: Mapping[str, str]
) -> tuple[dict[str, list[File]], list[InputError]]:
    """Files by the name of their reader, and why the others have none."""
    known: dict[str, list[File]] = {}
    refusals = []
    for file in files:
        try:
            file = renamed(file, mapping)
            known.setdefault(recognise(file, reader).name, []).append(file)
        except InputError as error:
            refusals.append(error)
    return known, refusals


def named(name: str) -> Reader:
    """The reader of that name."""
    found = {r.name: r for r in READERS}
    if name not in found:
        near = difflib.get_close_matches(name, found, 1)
        raise InputError(f"reader {name!r}: expected {f'{near[0]!r} or ' if near else ''}one of {', '.join(found)}")
    return found[name]


def recognise(file: File, wanted: str | None) -> Reader:
    """The reader whose needed columns are all there, the most of them; raises InputError naming what is missing."""
    if wanted:
        reader = named(wanted)
        missing = reader.missing(file.columns)
        if missing:
            raise InputError(f"{file.path}: {_absent(missing, file.columns)}, which {reader.name} needs")
        return reader
    fitting = [r for r in READERS if not r.missing(file.columns)]
    if fitting:
        return max(fitting, key=lambda r: len(r.needs))
    nearest = max(READERS, key=lambda r: _nearness(r, file.columns))
    known = {name for need in (*nearest.needs, *nearest.labels) for name in need.split("|")}
    absent = _absent(nearest.missing(file.columns), [c for c in file.columns if c not in known])
    raise InputError(
        f"{file.path}: columns {', '.join(file.columns) or '(none)'} are of no known set; nearest is {nearest.name}: "
        f"{absent}; --columns NEW=OLD says which column is which"
    )


def _nearness(reader: Reader, there: Sequence[str]) -> tuple[float, bool]:
    """The share of the needed columns that are there; of equal ones the table that most others can be read as."""
    return 1 - len(reader.missing(there)) / len(reader.needs), reader.name == "chosen_rejected"


def _absent(missing: Sequence[str], there: Sequence[str]) -> str:
    """Which columns are missing, and which present ones look like them."""
    said = []
    for need in missing:
        near = [n for name in need.split("|") for n in difflib.get_close_matches(name, there, 1)]
        said.append(f"{need.replace('|', ' or ')}{f' (did you mean {near[0]!r}?)' if near else ''}")
    return f"column {', '.join(said)} is missing"


def read(reader: Reader, file: File) -> Iterator[Entry | RowError]:
    """The entries of a file and the rows that were refused, by labels alone."""
    return reader.entries(file.rows(reader.columns(file.columns)[0]))


def parse_columns(columns: Sequence[str]) -> dict[str, str]:
    """{"prompt": "text"} of ("prompt=text",)."""
    wrong = [c for c in columns if not all(c.partition("=")[::2])]
    if wrong:
        raise InputError(f"columns {wrong[0]!r}: expected NEW=OLD, say prompt=text")
    return {new: old for new, _, old in (c.partition("=") for c in columns)}


def roots(source: Path, images: Path | None, file: File) -> tuple[Path, ...]:
    """The folders that names of pictures in a file may start from: `images` alone, or the file's own and the source."""
    if images is not None and not images.is_dir():
        raise InputError(f"images = {images}: no such folder")
    if images is not None:
        return (images,)
    own = file.path if file.path.is_dir() else file.path.parent
    # HPDv2 keeps the pictures of train.json in train/.
    near = (own, file.path.with_suffix(""), own / "images", source if source.is_dir() else source.parent)
    return tuple(dict.fromkeys(place for place in near if place.is_dir()))

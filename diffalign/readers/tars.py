"""Webdataset tars: members `KEY.COLUMN.EXTENSION`, read in place and never unpacked."""

import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path, PurePosixPath

from diffalign.readers.base import Row
from diffalign.readers.files import Cells, File
from diffalign.records import InputError

_TEXTS, _PICTURES = (".txt", ".cls", ".text"), (".jpg", ".jpeg", ".png", ".webp")
LARGEST_TEXT = 1 << 20
_BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error)


def tar(path: Path) -> File:
    """A tar of samples. Raises InputError where a member is absolute, climbs out or is a link, or it is cut short."""
    samples = _samples(path)
    columns = tuple(dict.fromkeys(name for sample in samples.values() for name in sample))

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        with _open(path) as file:
            for number, (key, sample) in enumerate(samples.items()):
                texts = [name for name in wanted if name in sample and not sample[name].name.endswith(_PICTURES)]
                values = {name: _text(path, file, sample[name]) for name in texts}
                yield Row(f"{path}, sample {key}", number, values, key)

    def cells(wanted: Sequence[str]) -> Callable[[int], Cells]:
        walk = _walk(path, list(samples.values()), wanted)
        next(walk)
        return walk.send

    return File(path, columns, rows, cells)


def _walk(path: Path, samples: list[dict[str, tarfile.TarInfo]], wanted: Sequence[str]) -> Generator[Cells, int, None]:
    """Answers the numbers of samples with their members' bytes."""
    number = yield {}
    with _open(path) as file:
        while True:
            sample = samples[number]
            number = yield {name: _read(path, file, sample[name]) for name in wanted if name in sample}


def _open(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:*")
    except _BROKEN as error:
        raise InputError(f"{path}: is not a whole tar ({str(error).splitlines()[0].rstrip(':')})") from None


def _samples(path: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Key -> column -> member, after looking at every member's name."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    plain = path.suffix == ".tar"
    with _open(path) as file:
        try:
            members = file.getmembers()
        except _BROKEN as error:
            raise InputError(f"{path}: is not a whole tar ({error})") from None
    for member in members:
        name = PurePosixPath(member.name)
        if member.name.startswith(("/", "\\")) or ".." in name.parts or "\\" in member.name:
            raise InputError(f"{path}, member {member.name!r}: lies outside the tar; nothing of it is read")
        if member.isdir():
            continue
        if not member.isreg():
            raise InputError(f"{path}, member {member.name!r}: is no plain file; nothing of the tar is read")
        if plain and member.offset_data + member.size > path.stat().st_size:
            raise InputError(f"{path}: is not a whole tar (member {member.name!r} is cut short)")
        stem, _, column = name.name.partition(".")
        sample = samples.setdefault(str(name.with_name(stem)), {})
        column = column.rsplit(".", 1)[0] if PurePosixPath(f".{column}").suffix in _TEXTS + _PICTURES else column
        if column in sample:
            raise InputError(f"{path}, member {member.name!r}: column {column!r} stands twice in one sample")
        sample[column] = member
    return samples


def _read(path: Path, file: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        handle = file.extractfile(member)
        return handle.read() if handle else b""
    except _BROKEN as error:
        raise InputError(f"{path}, member {member.name!r}: cannot be read ({error})") from None


def _text(path: Path, file: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    where = f"{path}, member {member.name!r}"
    if member.size > LARGEST_TEXT:
        raise InputError(f"{where}: {member.size} bytes, expected a text of at most {LARGEST_TEXT}")
    try:
        return _read(path, file, member).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where}: is not UTF-8") from None

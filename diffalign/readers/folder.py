"""An image folder -> prompts and images records: `metadata.csv` or `metadata.jsonl` (file_name, prompt) beside the
pictures, or a text of the same name beside each, or no prompts at all.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from diffalign.readers import seen
from diffalign.readers.seen import Seen
from diffalign.records import Image, InputError, Prompt, digest, prompt_id

LISTS = METADATA, LINES = "metadata.csv", "metadata.jsonl"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_FIELDS = ("file_name", "prompt")


def read(
    folder: Path, out: Path, known: Mapping[str, Seen]
) -> tuple[list[Prompt], list[Image], list[str], dict[str, Seen]]:
    """The folder's prompts (equal texts once, counted) and images, in the order of its metadata, or by name; of each
    file that is no picture where it is named and why; and by path what was seen of each that is one.

    Paths start at `out`. A file that is as `known` says is not read.

    An image's id is the sha256 of its file (of a copy of that file, or of the file under another prompt, a hash of its
    name and prompt too), its index its place among the images of its prompt. Raises InputError naming file, line and
    field: a column that is missing, an empty prompt, a file that is missing or lies outside the folder, one line twice;
    and where no file is a picture.
    """
    prompts: dict[str, Prompt] = {}
    images: dict[str, tuple[str, Image]] = {}
    broken: list[str] = []
    files: dict[str, Seen] = {}
    base, parents = out.resolve(), dict[Path, str]()
    for where, name, text in _rows(folder):
        path = _inside(folder, name, where)
        place = _place(path, base, parents)
        found = files.get(place) or seen.measure(path, known.get(place))
        if isinstance(found, str):
            broken.append(f"{where}, field file_name: {path} is not a picture that can be read ({found})")
            continue
        files[place] = found
        sha256, key = found.sha256, prompt_id(text)
        own = sha256 if sha256 not in images else digest("image", sha256, name, key)
        first = images[sha256][1] if own != sha256 else None
        if own in images or (first is not None and first.prompt_id == key and first.image["path"] == place):
            before = images[own if own in images else sha256][0].removeprefix(f"{metadata(folder)}, ")
            raise InputError(f"{where}, field file_name: {name} is the picture of {before} again")
        index = prompts[key].count if key in prompts else 0
        prompts[key] = Prompt(key, text, index + 1)
        row = Image(own, key, {"bytes": None, "path": place}, sha256, found.width, found.height, index=index)
        images[own] = where, row
    if broken and not images:
        raise InputError(broken[0])
    if not images and metadata(folder) is None:
        raise InputError(
            f"{folder / METADATA}: no such file, and no pictures beside; expected a record folder, one of images, or "
            "Parquet, tar, CSV or JSON lines with images and prompts"
        )
    if not images:
        raise InputError(f"{metadata(folder)}: holds no row")
    return list(prompts.values()), [image for _, image in images.values()], broken, files


def _place(path: Path, base: Path, parents: dict[Path, str]) -> str:
    """The path of a file, links followed, from `base`; `parents` holds those of its folders, each asked for once."""
    if path.is_symlink():
        return os.path.relpath(path.resolve(), base)
    if path.parent not in parents:
        parents[path.parent] = os.path.relpath(path.parent.resolve(), base)
    return os.path.normpath(f"{parents[path.parent]}/{path.name}")


def metadata(folder: Path) -> Path | None:
    """The file that says what is in the folder, where there is one."""
    return next((folder / name for name in LISTS if (folder / name).is_file()), None)


def _rows(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(where it says so, file name, prompt) of each picture; a prompt is "" only in a folder without metadata."""
    path = metadata(folder)
    if path is not None:
        yield from _csv(path) if path.name == METADATA else _lines(path)
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    for picture in sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and p.is_file()):
        text = picture.with_suffix(".txt")
        name = picture.relative_to(folder).as_posix()
        yield str(picture), name, _decoded(text).strip() if text.is_file() else ""


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {number}: is not UTF-8 (byte {error.start})") from None


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(_decoded(path).splitlines(), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: is not JSON ({error})") from None
        for field in _FIELDS:
            if not isinstance(found, dict) or not isinstance(found.get(field), str) or not found[field].strip():
                raise InputError(f"{where}, field {field}: expected a text")
        yield where, found["file_name"].strip(), found["prompt"].strip()


def _csv(path: Path) -> Iterator[tuple[str, str, str]]:
    """(file and line, file name, prompt) of each row."""
    try:
        reader = csv.DictReader(io.StringIO(_decoded(path), newline=""), strict=True)
        missing = [f for f in _FIELDS if f not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path}, line 1: column {missing[0]} is missing; expected {', '.join(_FIELDS)}")
        for row in reader:
            for field in _FIELDS:
                if not (row[field] or "").strip():
                    raise InputError(f"{path}, line {reader.line_num}, field {field}: is empty")
            if None in row:
                raise InputError(f"{path}, line {reader.line_num}: more cells than columns; quote texts with commas")
            yield f"{path}, line {reader.line_num}", row["file_name"].strip(), row["prompt"].strip()
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: is not CSV ({error})") from None


def _inside(folder: Path, name: str, where: str) -> Path:
    """The file `name` of the folder; links are followed only where the folder itself has them."""
    parts, path = Path(os.path.normpath(name)).parts, folder / name
    if "\0" in name or Path(name).is_absolute() or not parts or parts[0] == "..":
        raise InputError(f"{where}, field file_name: {name!r} lies outside {folder}")
    if not path.is_file():
        raise InputError(f"{where}, field file_name: {path} is not there")
    return path

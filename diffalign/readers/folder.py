"""An image folder with `metadata.csv` (columns file_name, prompt) -> prompts and images records."""

import csv
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import PIL.Image

from diffalign.records import Image, InputError, Prompt, prompt_id

METADATA = "metadata.csv"
_FIELDS = ("file_name", "prompt")


def read(folder: Path, out: Path) -> tuple[list[Prompt], list[Image]]:
    """The folder's prompts (equal texts once, counted) and images, in the order of metadata.csv; paths start at `out`.

    An image's id is the sha256 of its file, its index its place among the images of its prompt. Raises InputError
    naming file, line and field: a column that is missing, an empty prompt, a file that is missing, lies outside the
    folder or is no picture, and two lines with one picture.
    """
    prompts: dict[str, Prompt] = {}
    images: dict[str, tuple[int, Image]] = {}
    for line, name, text in _rows(folder / METADATA):
        where = f"{folder / METADATA}, line {line}"
        path = _inside(folder, name, where)
        sha256, width, height = _measure(path, where)
        if sha256 in images:
            raise InputError(f"{where}, field file_name: {name} is the picture of line {images[sha256][0]} again")
        key = prompt_id(text)
        index = prompts[key].count if key in prompts else 0
        prompts[key] = Prompt(key, text, index + 1)
        place = {"bytes": None, "path": os.path.relpath(path.resolve(), out.resolve())}
        images[sha256] = line, Image(sha256, key, place, sha256, width, height, index=index)
    if not images:
        raise InputError(f"{folder / METADATA}: holds no row")
    return list(prompts.values()), [image for _, image in images.values()]


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, file name, prompt) of each row."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a record folder, or one of images with {METADATA}")
    try:
        text = path.read_bytes().decode().removeprefix("\ufeff")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        missing = [f for f in _FIELDS if f not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path}, line 1: column {missing[0]} is missing; expected {', '.join(_FIELDS)}")
        for row in reader:
            for field in _FIELDS:
                if not (row[field] or "").strip():
                    raise InputError(f"{path}, line {reader.line_num}, field {field}: is empty")
            if None in row:
                raise InputError(f"{path}, line {reader.line_num}: more cells than columns; quote texts with commas")
            yield reader.line_num, row["file_name"].strip(), row["prompt"].strip()
    except UnicodeDecodeError as error:
        number = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {number}: is not UTF-8 (byte {error.start})") from None
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: is not CSV ({error})") from None


def _inside(folder: Path, name: str, where: str) -> Path:
    """The file `name` of the folder; links are followed only where the folder itself has them."""
    parts = Path(os.path.normpath(name)).parts
    if "\0" in name or Path(name).is_absolute() or not parts or parts[0] == "..":
        raise InputError(f"{where}, field file_name: {name!r} lies outside {folder}")
    if not (folder / name).is_file():
        raise InputError(f"{where}, field file_name: {folder / name} is not there")
    return folder / name


def _measure(path: Path, where: str) -> tuple[str, int, int]:
    """sha256 of the file, width and height of the picture."""
    data = path.read_bytes()
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            picture.verify()
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        reason = type(error).__name__
        raise InputError(f"{where}, field file_name: {path} is not a picture that can be read ({reason})") from None
    return hashlib.sha256(data).hexdigest(), width, height

"""Cells -> bytes of picture files -> what is in them. Nothing outside the data folder is opened, nothing is fetched."""

import hashlib
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from diffalign.readers.base import Entry, RowError, Slot
from diffalign.records import InputError

PIXELS = 1 << 26
# The formats that data sets use; others that Pillow knows start programs or are no pictures of ours.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_UNREADABLE = (OSError, ValueError, SyntaxError, ArithmeticError, IndexError)
_HUB = "/resolve/"


@dataclass(frozen=True)
class Picture:
    """A picture that was decoded whole: its size as its camera was held. `look` is 64 bits that change little when the
    picture does (rows of an 8×9 thumbnail: darker or lighter than the neighbour).
    """

    sha256: str
    width: int
    height: int
    mode: str
    look: int


class Outside(InputError):
    """A file name that leaves the data folder; `detail` is that without the place where it stands."""

    def __init__(self, where: str, detail: str) -> None:
        super().__init__(f"{where}: {detail}")
        self.detail = detail


def data(entry: Entry, slot: Slot, cells: Mapping[str, Any], roots: Sequence[Path]) -> bytes:
    """The bytes of the file in a slot. Raises RowError where there is none, Outside where it leaves the data folder."""
    value = cells.get(slot.column)
    for step in slot.steps:
        value = _step(entry, slot, value, step)
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray)) and value:
        return bytes(value)
    if isinstance(value, str) and value.strip():
        return _file(entry, slot, value.strip(), roots)
    kind = "is empty" if not value else f"is {type(value).__name__}, expected bytes or the name of a file"
    raise RowError(entry.where, slot.field, "missing image", kind)


def _step(entry: Entry, slot: Slot, value: Any, step: str | int) -> Any:
    if isinstance(step, str):
        return value.get(step) if isinstance(value, Mapping) else None
    listed = sum(s.row == slot.row and s.column == slot.column for s in entry.slots)
    if not isinstance(value, list) or len(value) != listed:
        n = f"{len(value)} items" if isinstance(value, list) else type(value).__name__
        raise RowError(entry.where, slot.column, "lengths differ", f"{n}, expected a list of {listed} images")
    return value[step]


def _file(entry: Entry, slot: Slot, name: str, roots: Sequence[Path]) -> bytes:
    if "://" in name:
        # An address on the hub ends in the file's place in the repository, which may have been downloaded.
        name = name.split(_HUB, 1)[1].split("/", 1)[-1] if _HUB in name else ""
        if not name:
            raise RowError(entry.where, slot.field, "image not downloaded", "is an address; nothing is fetched")
    parts = Path(os.path.normpath(name)).parts
    if "\0" in name or Path(name).is_absolute() or not parts or parts[0] == "..":
        where = f" {roots[0]}" if roots else ""
        raise Outside(f"{entry.where}, field {slot.field}", f"{name!r} lies outside the data folder{where}")
    if not roots:
        raise RowError(entry.where, slot.field, "image not downloaded", f"{name} is a file beside the set on the hub")
    for known in (name, parts[-1]) if slot.moved else (name,):
        for root in roots:
            if (root / known).is_file():
                return (root / known).read_bytes()
    raise RowError(entry.where, slot.field, "missing image", f"{roots[0] / name} is not there")


def measure(found: bytes) -> Picture | str:
    """The picture, decoded whole, or why it cannot be used: too many pixels, or not a whole picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(found), formats=FORMATS) as picture:
                if picture.width * picture.height > PIXELS:
                    return f"{picture.width}x{picture.height} pixels, at most {PIXELS} are decoded"
                picture.load()
                small = picture.convert("L").resize((9, 8), PIL.Image.Resampling.BOX)
                bits = np.diff(np.asarray(small, np.int16), axis=1).ravel() > 0
                look = int("".join("1" if b else "0" for b in bits), 2)
                name = hashlib.sha256(found).hexdigest()
                lying = picture.getexif().get(0x0112) in (5, 6, 7, 8)
                width, height = picture.size[::-1] if lying else picture.size
                return Picture(name, width, height, picture.mode, look)
    except PIL.UnidentifiedImageError:
        return "is no picture"
    except PIL.Image.DecompressionBombError:
        return f"more than {PIXELS} pixels, which are not decoded"
    except _UNREADABLE as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:120]

"""What files held when they were read, kept beside what was made of them: one that is as it was is not read again."""

import dataclasses
import hashlib
import io
import json
import operator
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from diffalign import decoding, folders

FORMAT = 1
NAME = "files.json"
# the coarsest clock of a file system in use (FAT's): within it a file may change twice and bear one time
MARGIN = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Seen:
    """A file's size and times (of its bytes; of anything about it, a rename too), when it was read, its sha256, and
    width and height of the picture. Times are in ns since 1970.
    """

    size: int
    written: int
    changed: int
    read: int
    sha256: str
    width: int
    height: int

    @property
    def settled(self) -> bool:
        """Whether any change after it was read shows in the times: not where it was written just before."""
        return max(self.written, self.changed) < self.read - MARGIN

    def is_of(self, stat: os.stat_result) -> bool:
        """Whether the file of this stat is the one that was read, and has not changed since."""
        return self.settled and (self.size, self.written, self.changed) == _stamp(stat)


# not `dataclasses.astuple`, which copies every value of every file
_values = operator.attrgetter(*(f.name for f in dataclasses.fields(Seen)))


def measure(path: Path, before: Seen | None) -> Seen | str:
    """What is in the file, or why it is no picture; `before` where that is still so, and then the file is not read."""
    # looked at first, so that a change while it is read makes it another file than the one looked at
    now, stat = time.time_ns(), path.stat()
    if before is not None and before.is_of(stat):
        return before
    data = path.read_bytes()
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            picture.verify()
    except decoding.ERRORS as error:
        return type(error).__name__
    return Seen(*_stamp(stat), now, hashlib.sha256(data).hexdigest(), width, height)


def load(out: Path) -> dict[str, Seen]:
    """Path from `out` -> what was read there; empty where nothing is kept, or what is kept cannot be read."""
    try:
        found = json.loads((out / NAME).read_bytes())
        if found["format"] != FORMAT:
            return {}
        known = {name: Seen(*values) for name, values in found["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    fields = [(f.name, f.type) for f in dataclasses.fields(Seen)]
    return known if all(type(getattr(s, n)) is kind for s in known.values() for n, kind in fields) else {}


def keep(out: Path, seen: Mapping[str, Seen]) -> None:
    """Write the settled ones of `seen` beside the output, where there are any that are not there."""
    rows = {name: _values(one) for name, one in seen.items() if one.settled}
    text, place = (json.dumps({"format": FORMAT, "files": rows}) + "\n").encode(), out / NAME
    if (place.read_bytes() != text) if place.exists() else rows:
        folders.write_atomically(place, text)


def _stamp(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

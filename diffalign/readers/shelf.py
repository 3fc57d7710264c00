"""Entries -> images, each stored once, and the names of judgements, each given once."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffalign.readers import pictures
from diffalign.readers.base import Entry, RowError, Slot
from diffalign.readers.files import Cells
from diffalign.readers.pictures import Picture
from diffalign.records import Image, Judgement, digest, prompt_id

Found = tuple[int, Picture, bytes]


def look(entry: Entry, cells: Callable[[int], Cells], places: Sequence[Path]) -> tuple[list[Found], list[RowError]]:
    """The pictures of an entry that can be decoded, with their slots' numbers, and why the others cannot."""
    at = {slot.row: cells(slot.row) for slot in entry.slots}
    found, errors = [], []
    for number, slot in enumerate(entry.slots):
        try:
            data = pictures.data(entry, slot, at[slot.row], places)
            picture = pictures.measure(data)
            if isinstance(picture, str):
                raise RowError(entry.where, slot.field, "unreadable image", picture)
            found.append((number, picture, data))
        except RowError as error:
            errors.append(error)
    return found, errors


def different(entry: Entry, found: Sequence[Found]) -> tuple[list[Found], list[RowError]]:
    """The pictures without those that an entry shows twice, and a refusal for each of these."""
    seen: set[str] = set()
    kept, errors = [], []
    for number, picture, data in found:
        if picture.sha256 in seen:
            field = entry.slots[number].field
            errors.append(RowError(entry.where, field, "same image on both sides", f"sha256 {picture.sha256[:12]}…"))
        else:
            kept.append((number, picture, data))
        seen.add(picture.sha256)
    return kept, errors


def reduced(entry: Entry, numbers: Sequence[int]) -> Entry | None:
    """The entry with only those of its images; None where what is said of it needs the others."""
    if len(numbers) == len(entry.slots):
        return entry
    if len(numbers) < 2 or any(v.kind != "ranking" for v in entry.verdicts):
        return None
    verdicts = tuple(
        dataclasses.replace(v, scores=tuple(v.scores[n] for n in numbers)) if v.scores else v for v in entry.verdicts
    )
    return dataclasses.replace(entry, slots=tuple(entry.slots[n] for n in numbers), verdicts=verdicts)


def _key(*names: str | None) -> bytes:
    return bytes.fromhex(digest(*names))


class Shelf:
    """What is stored already: it lives as long as one import, which writes its parts one by one.

    An image's id is its sha256; the same picture under a second prompt, or with a second caption, is another image.
    """

    def __init__(self) -> None:
        # Sixteen bytes a picture, since there may be millions.
        self._ids: dict[bytes, str | None] = {}
        self._files: set[bytes] = set()
        self._said: Counter[str] = Counter()

    def add(self, prompt: str, slot: Slot, picture: Picture, data: bytes) -> tuple[str, list[Image]]:
        """(the id of the picture, its record where it is new)."""
        text = prompt_id(prompt)
        key = _key(picture.sha256, text, slot.caption)
        if key in self._ids:
            return self._ids[key] or picture.sha256, []
        known = _key(picture.sha256) in self._files
        name = digest("image", picture.sha256, text, slot.caption) if known else picture.sha256
        image = Image(
            name, text, {"bytes": data, "path": None}, picture.sha256, picture.width, picture.height,
            caption=slot.caption, model=slot.model,
        )  # fmt: skip
        self.remember([image])
        return name, [image]

    def remember(self, images: Iterable[Image]) -> None:
        """These images are stored."""
        for image in images:
            own = None if image.id == image.sha256 else image.id
            self._ids[_key(image.sha256, image.prompt_id, image.caption)] = own
            self._files.add(_key(image.sha256))

    def name(self, rows: Iterable[Judgement]) -> list[Judgement]:
        """The judgements, where the same thing was said before, under a name of their own."""
        named = []
        for row in rows:
            base = digest("said", row.kind, row.group, *row.images, row.source, row.rater, row.dimension)
            repeats = self._said[base]
            self._said[base] += 1
            named.append(dataclasses.replace(row, id=digest("again", base, repeats)) if repeats else row)
        return named


def known(values: Mapping[str, Any]) -> str:
    """Counts in words: "3 tie, 1 unlabelled", most first."""
    ordered = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {what}" for what, n in ordered if n)

"""What a reader of a public set gives: entries, that is a prompt, where its images are, and what is said of them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diffalign.records import InputError


class RowError(InputError):
    """A row that cannot be used: `reason` is counted, the message says which row, which field and what was expected."""

    def __init__(self, where: str, field: str, reason: str, detail: str) -> None:
        super().__init__(f"{where}, field {field}: {reason} ({detail})")
        self.where, self.field, self.reason, self.detail = where, field, reason, detail
        self.prompt: str | None = None
        self.number: int | None = None


@dataclass(frozen=True)
class Row:
    """One row of a file without its pictures: where it is in words, its number in the file, its cells, and the key by
    which a webdataset knows it.
    """

    where: str
    number: int
    values: Mapping[str, Any]
    key: str = ""

    def error(self, field: str, reason: str, detail: str) -> RowError:
        """The refusal of this row for `field`; it remembers the row's number and prompt."""
        found = RowError(self.where, field, reason, detail)
        found.number = self.number
        found.prompt = next((v for n in PROMPTS if isinstance(v := self.values.get(n), str) and v.strip()), None)
        return found

    def get(self, field: str) -> Any:
        """The cell of a column that may be absent; an empty text counts as nothing."""
        value = self.values.get(field)
        return None if isinstance(value, str) and not value.strip() else value

    def text(self, field: str, detail: str = "expected a text") -> str:
        """A text that is not empty, as it stands in the file."""
        value = self.get(field)
        if value is None:
            raise self.error(field, "no prompt" if field in PROMPTS else "missing value", "is empty")
        if not isinstance(value, str):
            raise self.error(field, "wrong type", f"is {type(value).__name__}, {detail}")
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise self.error(field, "wrong type", "is not valid Unicode")
        return value

    def optional(self, field: str) -> str | None:
        """A text or number as text, or None."""
        value = self.get(field)
        plain = isinstance(value, (str, int)) and not isinstance(value, bool)
        return str(value).encode("utf-8", "replace").decode() if plain else None

    def number_or_none(self, field: str) -> float | None:
        """A finite number (also written as text), or None where the cell is empty."""
        value = self.get(field)
        if value is None:
            return None
        return finite(self, field, value)

    def items(self, field: str, length: int | None = None) -> list[Any]:
        """A list, of the length given."""
        value = self.get(field)
        if not isinstance(value, list):
            raise self.error(field, "wrong type", f"is {type(value).__name__}, expected a list")
        if length is not None and len(value) != length:
            raise self.error(field, "lengths differ", f"has {len(value)} items, expected {length}")
        return value


PROMPTS = ("prompt", "caption", "original_prompt", "txt")


def finite(row: Row, field: str, value: Any) -> float:
    """The value as a finite number."""
    try:
        if not isinstance(value, (str, int, float)):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise row.error(field, "not a number", f"is {str(value)[:40]!r}, expected a number") from None
    if not math.isfinite(found):
        raise row.error(field, "not finite", f"is {found}, expected a finite number")
    return found


@dataclass(frozen=True)
class Slot:
    """Where one image of an entry is: row, column, and the steps into the cell; with what is known of the image.

    `moved` says that the folder in a file's name may not be there, so that its last part is looked for too.
    """

    row: int
    column: str
    steps: tuple[str | int, ...] = ()
    model: str | None = None
    caption: str | None = None
    moved: bool = False

    @property
    def field(self) -> str:
        """The column and the steps, in words."""
        return ".".join(map(str, (self.column, *self.steps)))


@dataclass(frozen=True)
class Verdict:
    """What is said of an entry's images: a pair's P(first is better), a ranking's scores, an image's desirability."""

    kind: str
    status: str
    p: float | None = None
    scores: tuple[float, ...] | None = None
    dimension: str = "overall"
    rater: str | None = None
    weight: float = 1.0
    votes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Entry:
    """A prompt, its images in the order of the file, and the verdicts on them."""

    where: str
    prompt: str
    slots: tuple[Slot, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Reader:
    """A public schema. `needs` names the columns by which it is known ("a|b": either); `pictures` are the columns its
    slots point into, read only for rows that are kept; all other needed columns and `labels` are read before that.
    `free` is whether its licence lets the pictures be passed on.
    """

    name: str
    needs: tuple[str, ...]
    labels: tuple[str, ...]
    pictures: tuple[str, ...]
    entries: Callable[[Iterable[Row]], Iterator[Entry | RowError]]
    licence: str | None = None
    free: bool = True

    def missing(self, columns: Iterable[str]) -> list[str]:
        """The needed columns that are not there."""
        there = set(columns)
        return [need for need in self.needs if not there & set(need.split("|"))]

    def columns(self, there: Iterable[str]) -> tuple[list[str], list[str]]:
        """(columns of labels, columns of pictures) that the reader reads of those there."""
        needed = [name for need in self.needs for name in need.split("|") if name not in self.pictures]
        found, labels = set(there), dict.fromkeys((*needed, *self.labels))
        return [n for n in labels if n in found], [n for n in self.pictures if n in found]


def each(read: Callable[[Row], Entry]) -> Callable[[Iterable[Row]], Iterator[Entry | RowError]]:
    """Entries row by row; a row that `read` refuses is given as its refusal."""

    def entries(rows: Iterable[Row]) -> Iterator[Entry | RowError]:
        for row in rows:
            try:
                yield read(row)
            except RowError as error:
                yield error

    return entries


def present(row: Row, names: str) -> str:
    """The first of "a|b" that the row has a column for."""
    return next((n for n in names.split("|") if n in row.values), names.split("|")[0])


UNLABELLED = Verdict("pair", "unlabelled")
UNRANKED = Verdict("ranking", "unlabelled")


def pair(p: float, dimension: str = "overall", votes: tuple[int, int] | None = None) -> Verdict:
    """P(first is better) = p; one half is a tie."""
    return Verdict("pair", "tie" if p == 0.5 else "decided", p=p, dimension=dimension, votes=votes)


def complementary(row: Row, first: str, second: str) -> Verdict:
    """The verdict of two label columns that add up to 1 (the second may be absent); unlabelled where both are empty."""
    a, b = row.number_or_none(first), row.number_or_none(second)
    if a is None and b is None:
        return UNLABELLED
    if a is None or (b is None and second in row.values):
        field = first if a is None else second
        raise row.error(field, "labels disagree", "is empty where the other label is not")
    if not 0 <= a <= 1:
        raise row.error(first, "label out of range", f"is {a}, expected a number from 0 to 1")
    if b is not None and abs(a + b - 1) > 1e-6:
        raise row.error(first, "labels disagree", f"{first} = {a}, {second} = {b}, expected a sum of 1")
    return pair(a)


def shares(row: Row, first: str, second: str, dimension: str = "overall", *, counted: bool = False) -> Verdict | None:
    """P(first is better) = a / (a + b) of two weights of votes, or counts (which are kept); None without votes."""
    a, b = row.number_or_none(first), row.number_or_none(second)
    if a is None or b is None:
        if a is not None or b is not None:
            field = first if a is None else second
            raise row.error(field, "labels disagree", "is empty where the other count is not")
        return None
    for field, value in ((first, a), (second, b)):
        if value < 0:
            raise row.error(field, "label out of range", f"is {value}, expected at least 0")
    if a + b <= 0:
        return None
    counts = (int(a), int(b)) if counted and a.is_integer() and b.is_integer() and a + b < 2**53 else None
    return pair(a / (a + b), dimension, counts)


def ranking(row: Row, field: str, scores: list[float], dimension: str = "overall") -> Verdict:
    """Higher is better; a list of one value only is a tie. Fewer than two images cannot be ranked."""
    if len(scores) < 2:
        raise row.error(field, "list of one", f"has {len(scores)} images, expected at least 2")
    status = "tie" if len(set(scores)) == 1 else "decided"
    return Verdict("ranking", status, scores=tuple(scores), dimension=dimension)

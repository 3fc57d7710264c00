"""What lies on disk: prompts, images, scores and judgements as Parquet shards that `datasets.load_dataset` opens.

One frozen dataclass a table; its fields are the columns, and its invariants are checked where it is made. How a folder
of such tables is written and read is in `folders`.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa

KINDS = ("pair", "ranking", "unpaired", "advantages")
STATUSES = ("decided", "tie", "both_good", "both_bad", "no_preference", "unlabelled")


class InputError(ValueError):
    """A user's mistake, said in one line: what was found, where, what was expected. `status` is what it exits with."""

    status: ClassVar[int] = 2


def digest(*parts: str | bytes | int | float | None) -> str:
    """blake2b-128 of the parts as 32 hexadecimal digits.

    Parts are length-prefixed, so no two lists of texts collide; a number, or None, counts as its Python text.
    """
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else _text(part).encode()
        h.update(len(data).to_bytes(8, "little") + data)
    return h.hexdigest()


def _text(part: str | int | float | None) -> str:
    if part is None or isinstance(part, str):
        return str(part)
    # NumPy's numbers print otherwise than the Python numbers they equal.
    return repr(float(part)) if isinstance(part, float) else repr(int(part))


def prompt_id(text: str) -> str:
    """blake2b-128 of the text's UTF-8 bytes: equal texts are one prompt."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def group_id(prompt: str, images: Sequence[str]) -> str:
    """The name of a set of images judged together: a hash of the prompt id and the sorted image ids, nothing else."""
    return digest("group", prompt, *sorted(images))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@dataclass(frozen=True)
class Record:
    """A row of one table. Subclasses are final; `table` names the folder they lie in."""

    table: ClassVar[str]

    def row(self) -> dict[str, Any]:
        """The row as a plain dict, in the order of the columns."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """The record in a Parquet row; raises InputError on an unknown or missing column."""
        names, required, may_be_empty = _fields(cls)
        if not (row.keys() <= names and row.keys() >= required):
            odd, lost = sorted(row.keys() - names), sorted(required - row.keys())
            what = f"unknown field {odd}, expected {sorted(names)}" if odd else f"field {lost} is missing"
            raise InputError(f"{cls.table}: {what}")
        empty = [n for n, value in row.items() if value is None and n not in may_be_empty]
        _require(not empty, f"{cls.table}: field {empty} is empty")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})


@dataclass(frozen=True)
class Prompt(Record):
    """A text to draw. `id` is the hash of its bytes unless the user gave one; `count` says how often it was listed."""

    table: ClassVar[str] = "prompts"
    id: str
    text: str
    count: int = 1


@dataclass(frozen=True)
class Image(Record):
    """A picture and where it comes from. `bytes` holds PNG, or `path` names a file relative to the record folder.

    The id of a drawn image hashes (model, adapter, sampler, prompt, seed, index), never its pixels; that of an imported
    one is its sha256. `noise` names the noise that a drawn one began with, `versions` what drew it; `nsfw` is what the
    user's own scorer of that said.
    """

    table: ClassVar[str] = "images"
    id: str
    prompt_id: str
    image: dict[str, bytes | str | None]
    sha256: str
    width: int
    height: int
    caption: str | None = None
    model: str | None = None
    adapter: str | None = None
    sampler: str | None = None
    seed: int | None = None
    index: int | None = None
    noise: str | None = None
    versions: str | None = None
    nsfw: float | None = None

    def __post_init__(self) -> None:
        sized = self.width > 0 and self.height > 0
        _require(sized, f"image {self.id}: size {self.width}x{self.height} is not positive")
        somewhere = self.image.get("bytes") is not None or self.image.get("path") is not None
        _require(somewhere, f"image {self.id}: has neither bytes nor path")


@dataclass(frozen=True)
class Score(Record):
    """What one scorer says of one image under one prompt; `value` is None where missing, and `reason` says why."""

    table: ClassVar[str] = "scores"
    image_id: str
    prompt_id: str
    scorer: str
    revision: str
    preprocessing: str
    value: float | None
    reason: str | None = None

    def __post_init__(self) -> None:
        finite = self.value is None or np.isfinite(self.value)
        _require(finite, f"score of image {self.image_id} by {self.scorer}: {self.value} is not a finite number")


@dataclass(frozen=True)
class Judgement(Record):
    """What is known about the images of one group, as one row for every kind.

    pair: two images, p = P(first is better). ranking: k images with their scores, higher is better. unpaired: one
    image, p = its desirability. advantages: k images with one advantage each in `scores`. `votes` counts those for
    each image, where several people were asked.
    """

    table: ClassVar[str] = "judgements"
    id: str
    group: str
    kind: str
    images: tuple[str, ...]
    p: float | None = None
    scores: tuple[float, ...] | None = None
    status: str = "decided"
    weight: float = 1.0
    dimension: str | None = None
    rater: str | None = None
    source: str | None = None
    score_gap: float | None = None
    votes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        wrong = self._wrong()
        if wrong:  # said only where something is, since there may be millions of rows
            raise InputError(f"judgement {self.id}: {wrong}")

    def _wrong(self) -> str | None:
        """What no judgement can be, or None."""
        count, p = len(self.images), self.p
        if self.kind not in KINDS:
            return f"kind {self.kind!r}, expected one of {', '.join(KINDS)}"
        if self.status not in STATUSES:
            return f"status {self.status!r}, expected one of {', '.join(STATUSES)}"
        if len(set(self.images)) < count:
            return "the same image stands on both sides"
        if count != {"pair": 2, "unpaired": 1}.get(self.kind, max(2, count)):
            return f"{count} images, which a judgement of kind {self.kind} cannot have"
        if p is not None and not 0 <= p <= 1:
            return f"p = {p} lies outside [0, 1]"
        if not 0 <= self.weight < np.inf:
            return f"weight {self.weight}, expected a finite number of at least 0"
        if self.score_gap is not None and not np.isfinite(self.score_gap):
            return f"score_gap {self.score_gap} is not a finite number"
        if self.votes is not None and (len(self.votes) != count or min(self.votes) < 0):
            return f"votes {self.votes}, expected a count of at least 0 for each image"
        return self._wrong_label(count)

    def _wrong_label(self, count: int) -> str | None:
        if self.kind in ("ranking", "advantages"):
            if self.scores is None or len(self.scores) != count:
                return "one score per image"
            if not np.isfinite(self.scores).all():
                return f"scores {self.scores} are not all finite numbers"
        elif self.status in ("decided", "tie") and self.p is None:
            return "p is missing"
        if self.p is not None and self.status == "unlabelled":
            return f"p = {self.p}, but it is unlabelled"
        if self.kind == "pair" and self.status == "tie" and self.p != 0.5:
            return f"p = {self.p}, but it is a tie, expected 0.5"
        return None


@dataclass(frozen=True)
class Caption(Record):
    """The text that an image is shown under; None leaves it its prompt. `source` says how it was made."""

    table: ClassVar[str] = "captions"
    image_id: str
    text: str | None
    source: str


@functools.cache
def optional(kind: type[Record]) -> frozenset[str]:
    """The fields that may be empty."""
    return frozenset(name for name, hint in get_type_hints(kind).items() if type(None) in get_args(hint))


@functools.cache
def _fields(kind: type[Record]) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """(all fields, those that must be there, those that may be empty)."""
    found = dataclasses.fields(kind)
    needed = (f.name for f in found if f.default is dataclasses.MISSING)
    return frozenset(f.name for f in found), frozenset(needed), optional(kind)


def pair(prompt: str, first: str, second: str, p: float, *, source: str, **known: Any) -> Judgement:
    """The judgement that `first` is better than `second` with probability p; ids only, no label in the group's name."""
    group = group_id(prompt, (first, second))
    name = digest("judgement", group, first, second, source, known.get("rater"), known.get("dimension"))
    return Judgement(name, group, "pair", (first, second), p=p, source=source, **known)


TABLES: dict[str, type[Record]] = {c.table: c for c in (Prompt, Image, Score, Judgement, Caption)}
_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bytes: pa.binary()}
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _arrow(hint: Any) -> pa.DataType:
    if get_origin(hint) in (Union, UnionType):
        hint = next(a for a in get_args(hint) if a is not type(None))
    if get_origin(hint) is tuple:
        return pa.list_(_arrow(get_args(hint)[0]))
    return _IMAGE if get_origin(hint) is dict else _ARROW[hint]


@functools.cache
def schema(table: str) -> pa.Schema:
    """The Arrow schema of a table; that of `images` carries the metadata by which `datasets` shows pictures."""
    hints = get_type_hints(TABLES[table])
    names = [f.name for f in dataclasses.fields(TABLES[table])]
    plain = pa.schema([(n, _arrow(hints[n])) for n in names])
    features = {n: _feature(plain.field(n).type) for n in names}
    return plain.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: pa.DataType) -> Any:
    """The description of a column by which `datasets` recognises it, made without `datasets`."""
    if kind == _IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    name = {"double": "float64"}.get(str(kind), str(kind))
    return {"dtype": name, "_type": "Value"}

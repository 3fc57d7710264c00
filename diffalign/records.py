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
        names = {f.name for f in dataclasses.fields(cls)}
        required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        _require(set(row) <= names, f"{cls.table}: unknown field {sorted(set(row) - names)}, expected {sorted(names)}")
        _require(required <= set(row), f"{cls.table}: field {sorted(required - set(row))} is missing")
        empty = [n for n in row if row[n] is None and n not in optional(cls)]
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
        name = f"judgement {self.id}"
        _require(self.kind in KINDS, f"{name}: kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        _require(self.status in STATUSES, f"{name}: status {self.status!r}, expected one of {', '.join(STATUSES)}")
        _require(len(set(self.images)) == len(self.images), f"{name}: the same image stands on both sides")
        n = {"pair": len(self.images) == 2, "unpaired": len(self.images) == 1}.get(self.kind, len(self.images) >= 2)
        _require(n, f"{name}: {len(self.images)} images, which a judgement of kind {self.kind} cannot have")
        _require(self.p is None or 0 <= self.p <= 1, f"{name}: p = {self.p} lies outside [0, 1]")
        _require(0 <= self.weight < np.inf, f"{name}: weight {self.weight}, expected a finite number of at least 0")
        gap = self.score_gap is None or np.isfinite(self.score_gap)
        _require(gap, f"{name}: score_gap {self.score_gap} is not a finite number")
        if self.kind in ("ranking", "advantages"):
            _require(self.scores is not None and len(self.scores) == len(self.images), f"{name}: one score per image")
            _require(bool(np.isfinite(self.scores).all()), f"{name}: scores {self.scores} are not all finite numbers")
        elif self.status in ("decided", "tie"):
            _require(self.p is not None, f"{name}: p is missing")
        _require(self.p is None or self.status != "unlabelled", f"{name}: p = {self.p}, but it is unlabelled")
        even = self.kind != "pair" or self.status != "tie" or self.p == 0.5
        _require(even, f"{name}: p = {self.p}, but it is a tie, expected 0.5")
        counted = self.votes is None or (len(self.votes) == len(self.images) and min(self.votes) >= 0)
        _require(counted, f"{name}: votes {self.votes}, expected a count of at least 0 for each image")


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

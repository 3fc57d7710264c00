"""What never changes is computed once: rows of arrays per id, memory-mapped, shared by runs and by processes.

A store is a folder of parts, each one safetensors file written whole or not at all: ids, arrays with a row per id, and
a checksum per row. Its folder's name hashes the key, every part carries that hash, and each row is checked when it is
read. Two processes that fill one store at once write the same rows twice at worst.
"""

import hashlib
import json
import mmap
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from diffalign.manifest import write_atomically
from diffalign.records import InputError, digest

FORMAT = 2
PART_BYTES = 1 << 25
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "U64": "<u8", "U32": "<u4"}


@dataclass(frozen=True)
class _Part:
    """One mapped file: array name -> (rows, checksums)."""

    path: Path
    ids: np.ndarray
    arrays: dict[str, tuple[np.ndarray, np.ndarray]]


class Store:
    """Named float arrays with one row per id below `folder`, under a key; `rows(ids)` reads them as tensors.

    Parts that are not whole are passed over, so their rows are missing. Raises InputError where a part or the folder
    belongs to another key.
    """

    def __init__(self, folder: Path, kind: str, key: Mapping[str, object]) -> None:
        self.key = json.dumps({"format": FORMAT, "kind": kind} | dict(key), sort_keys=True)
        self.name = digest(self.key)
        self.folder = folder / f"{kind}-{self.name[:16]}"
        label = self.folder / "key.json"
        if label.is_file() and label.read_text(encoding="utf-8") != self.key:
            raise InputError(f"{label}: is of another cache; expected {self.key}; delete {self.folder}")
        self._parts: list[_Part] = []
        self._known = np.empty(0, "<u8")
        self._places = np.empty((0, 4), "<u8")
        self._open()

    def _open(self) -> None:
        """Map the parts there are: sorted first halves of ids, and beside them (second half, part, row)."""
        found = (self._part(path) for path in sorted(self.folder.glob("part-*.safetensors")))
        self._parts = [part for part in found if part is not None]
        if not self._parts:
            return
        sizes = [len(part.ids) for part in self._parts]
        ids = np.concatenate([part.ids for part in self._parts])
        order = np.argsort(ids[:, 0], kind="stable")
        number = np.repeat(np.arange(len(sizes), dtype="<u8"), sizes)
        row = np.concatenate([np.arange(n, dtype="<u8") for n in sizes])
        self._known = ids[order, 0]
        self._places = np.stack([ids[order, 1], number[order], row[order]], axis=1)

    def _part(self, path: Path) -> _Part | None:
        """A mapped part; None where it is not whole. Raises InputError where it is of another key."""
        try:
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            size = int.from_bytes(data[:8], "little")
            entries = json.loads(data[8 : 8 + size])
            found = entries.pop("__metadata__")["key"]
            arrays = {name: _array(data, 8 + size, entry) for name, entry in entries.items()}
            ids = arrays.pop("ids")
            names = [n for n in arrays if not n.startswith("sum.")]
            part = _Part(path, ids, {n: (arrays[n], arrays[f"sum.{n}"]) for n in names})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if found != self.name:
            raise InputError(f"{path}: is of another cache (key {found}), expected {self.name}; delete it")
        return part

    def missing(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids that have no row."""
        names = list(ids)
        wanted = np.frombuffer(b"".join(map(_name, names)), "<u8").reshape(-1, 2)
        if not len(self._known):
            return set(names)
        at = np.searchsorted(self._known, wanted[:, 0]).clip(max=len(self._known) - 1)
        there = (self._known[at] == wanted[:, 0]) & (self._places[at, 0] == wanted[:, 1])
        return {names[n] for n in np.flatnonzero(~there) if self._find(names[n]) is None}

    def _find(self, name: str) -> tuple[int, int] | None:
        first, second = _halves(name)
        # a plain int would make NumPy compare as float64, which knows 53 of 64 bits
        at = int(np.searchsorted(self._known, np.uint64(first)))
        while at < len(self._known) and self._known[at] == first:
            if self._places[at, 0] == second:
                return int(self._places[at, 1]), int(self._places[at, 2])
            at += 1
        return None

    def rows(self, ids: Sequence[str]) -> dict[str, Tensor]:
        """The rows of the ids, in their order, one tensor per array: float64, else float32. Each is checked.

        Raises InputError naming the file of a row that is damaged, KeyError where there is no row.
        """
        found = [self._find(name) for name in ids]
        absent = [name for name, place in zip(ids, found, strict=True) if place is None]
        if absent:
            raise KeyError(absent[0])
        checked = [self._row(name, *place) for name, place in zip(ids, found, strict=True)]
        stacked = {n: np.stack([row[n] for row in checked]) for n in checked[0]} if checked else {}
        return {n: torch.from_numpy(v if v.dtype == np.float64 else v.astype("<f4")) for n, v in stacked.items()}

    def _row(self, name: str, number: int, row: int) -> dict[str, np.ndarray]:
        part, start = self._parts[number], zlib.crc32(_name(name))
        for values, sums in part.arrays.values():
            if zlib.crc32(values[row].data, start) != sums[row]:
                raise InputError(f"{part.path}: row {row} is damaged; delete the file and run again")
        return {n: values[row] for n, (values, _) in part.arrays.items()}

    def add(self, ids: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        """Write one part."""
        if not (self.folder / "key.json").is_file():
            write_atomically(self.folder / "key.json", self.key.encode())
        names = [_name(i) for i in ids]
        starts = [zlib.crc32(name) for name in names]
        sums = {
            f"sum.{n}": np.array([zlib.crc32(row, s) for row, s in zip(a, starts, strict=True)], "<u4")
            for n, a in arrays.items()
        }
        halves = np.frombuffer(b"".join(names), "<u8").reshape(-1, 2)
        data = safetensors.numpy.save({"ids": halves, **arrays, **sums}, metadata={"key": self.name})
        # another process may write the same rows at the same time: then they are the same bytes under the same name
        write_atomically(self.folder / f"part-{digest(*names)}.safetensors", data)

    def reopen(self) -> None:
        """Map what has been written since."""
        self._open()


def _name(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _halves(name: str) -> tuple[int, int]:
    data = _name(name)
    return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")


def _array(data: mmap.mmap, start: int, entry: Mapping[str, object]) -> np.ndarray:
    begin, end = entry["data_offsets"]
    if start + end > len(data):
        raise ValueError("is cut short")
    kind = np.dtype(_DTYPES[entry["dtype"]])
    flat = np.frombuffer(data, kind, count=(end - begin) // kind.itemsize, offset=start + begin)
    return flat.reshape(entry["shape"])


def fill(
    store: Store,
    batches: Iterable[Sequence[str]],
    compute: Callable[[Sequence[str]], Mapping[str, Tensor]],
    dtype: str = "float32",
) -> None:
    """Compute the rows of the batches and write them, a part whenever 32 MiB are together.

    `compute` gives one tensor per array for a batch of ids. A batch of one is shown as two, since alone it would be
    rounded otherwise than beside others. Rows are stored as float64 where they are that, else as `dtype`. Raises
    InputError where one does not fit into float16.
    """
    ids: list[str] = []
    parts: list[dict[str, np.ndarray]] = []
    for batch in batches:
        shown = list(batch) * 2 if len(batch) == 1 else list(batch)
        parts.append({n: _stored(v[: len(batch)], dtype, n) for n, v in compute(shown).items()})
        ids += batch
        if sum(a.nbytes for part in parts for a in part.values()) >= PART_BYTES:
            _flush(store, ids, parts)
            ids, parts = [], []
    if ids:
        _flush(store, ids, parts)
    store.reopen()


def _flush(store: Store, ids: Sequence[str], parts: Sequence[Mapping[str, np.ndarray]]) -> None:
    store.add(ids, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _stored(value: Tensor, dtype: str, name: str) -> np.ndarray:
    wide = value.detach().cpu() if value.dtype == torch.float64 else value.detach().float().cpu()
    if wide.dtype == torch.float64 or dtype == "float32":
        return np.ascontiguousarray(wide.numpy())
    narrow = wide.to(torch.float16)
    if bool((narrow.isinf() & wide.isfinite()).any()):
        raise InputError(f"{name}: values up to {wide.abs().max():g} do not fit into float16; store them as float32")
    return np.ascontiguousarray(narrow.numpy())


def cut(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """The ids in runs of `size`, never a last run of one beside others: a batch of one rounds otherwise."""
    ends = list(range(0, len(ids), size))
    if len(ids) > 1 and len(ids) - ends[-1] == 1:
        ends = ends[:-1]
    for i, start in enumerate(ends):
        yield ids[start : ends[i + 1] if i + 1 < len(ends) else len(ids)]

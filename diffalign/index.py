"""A folder of judgements as tables sorted for training, written once and then only mapped: memory does not grow."""

import bisect
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diffalign import folders
from diffalign.manifest import write_atomically
from diffalign.records import InputError, Judgement, digest

FORMAT = 1
_IMAGE = ("id", "prompt_id", "sha256", "width", "height", "caption")


class Texts(Mapping[str, str]):
    """Prompt id -> text, of a table sorted by id."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __getitem__(self, name: str) -> str:
        ids = self._table["id"]
        at = bisect.bisect_left(range(len(ids)), name, key=lambda i: ids[i].as_py())
        if at == len(ids) or ids[at].as_py() != name:
            raise KeyError(name)
        return self._table["text"][at].as_py()

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[str]:
        return (name.as_py() for name in self._table["id"])

    def of(self, ids: pa.Array) -> pa.Array:
        """The texts of many ids."""
        return self._table["text"].take(pc.index_in(ids, self._table["id"])).combine_chunks()


class Images(Mapping[str, dict[str, Any]]):
    """Image id -> its row without the bytes, of a table in the order in which they are stored."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __getitem__(self, name: str) -> dict[str, Any]:
        ids, order = self.table["id"], self.table["order"]
        at = bisect.bisect_left(range(len(ids)), name, key=lambda i: ids[order[i].as_py()].as_py())
        row = order[at].as_py() if at < len(ids) else None
        if row is None or ids[row].as_py() != name:
            raise KeyError(name)
        return self.table.slice(row, 1).to_pylist()[0]

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[str]:
        return (name.as_py() for name in self.table["id"])


@dataclass(frozen=True)
class Index:
    """What training reads of a folder.

    Attributes:
        judgements: The decided and tied ones, sorted by (group, id); `rows` says where their images stand in `images`.
        images: Those that judgements mention.
        texts: Of all prompts.
        starts: The first judgement of each group, and how many there are, (groups + 1,).
    """

    judgements: pa.Table
    images: Images
    texts: Texts
    starts: np.ndarray

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """(group, row in `images`) of every image of every group once, sorted."""
        lists = self.judgements["rows"].combine_chunks()
        owner = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        rows = pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.int64)
        joined = np.unique(np.repeat(owner, counts) * len(self.images) + rows)
        return joined // len(self.images), joined % len(self.images)


def load(folder: Path, cache: Path | None) -> Index:
    """The index of a folder of judgements: that in `cache` where it is of the same files, else made and left there.

    Raises InputError where there is nothing to train on, or a judgement names what is not there.
    """
    if cache is None:
        return _index(_tables(folder))
    kept = f"index-{folders.load(folder).fingerprint[:8]}"
    place = cache / f"{kept}-{_state(folder)}"
    found = _mapped(place)
    if found is None:
        for name, table in _tables(folder).items():
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            write_atomically(place / f"{name}.arrow", sink.getvalue())
        for old in cache.glob(f"{kept}-*"):
            if old != place:
                shutil.rmtree(old, ignore_errors=True)
        found = _mapped(place)
    return _index(found)


def _state(folder: Path) -> str:
    """A hash that changes when the folder, or one that it was made from, does."""
    parts = []
    for place in folders.lineage(folder):
        parts.append(folders.load(place).fingerprint)
        for path in sorted(place.glob("*/part-*.parquet")):
            stat = path.stat()
            parts.append(f"{path.parent.name}/{path.name} {stat.st_size} {stat.st_mtime_ns}")
    return digest(FORMAT, json.dumps(parts))[:16]


def _mapped(place: Path) -> dict[str, pa.Table] | None:
    found = {}
    for name in ("judgements", "images", "prompts"):
        try:
            found[name] = pa.ipc.open_file(pa.memory_map(str(place / f"{name}.arrow"))).read_all()
        except (OSError, pa.ArrowException):
            return None
    return found


def _index(tables: Mapping[str, pa.Table]) -> Index:
    groups = tables["judgements"]["group"].combine_chunks()
    new = pc.not_equal(groups.slice(1), groups.slice(0, len(groups) - 1)).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.flatnonzero(new) + 1, [len(groups)]])
    return Index(tables["judgements"], Images(tables["images"]), Texts(tables["prompts"]), starts)


def _tables(folder: Path) -> dict[str, pa.Table]:
    judged = _judgements(folder)
    found = [(folders.read(p, "images", list(_IMAGE)), folders.read(p, "prompts", ["id", "text"]))
             for p in folders.lineage(folder)]  # fmt: skip
    everything = pa.concat_tables([images for images, _ in found]).replace_schema_metadata()
    flat = pc.list_flatten(judged["images"].combine_chunks())
    named = pc.unique(everything["id"].filter(pc.is_in(everything["id"], pc.unique(flat))))
    images = everything.take(pc.index_in(named, everything["id"])).combine_chunks()
    rows = pc.index_in(flat, images["id"].combine_chunks())
    if rows.null_count:
        lost = pc.index(pc.is_null(rows), True).as_py()
        owner = pc.list_parent_indices(judged["images"].combine_chunks())[lost].as_py()
        raise InputError(
            f"{folder}: judgement {judged['id'][owner].as_py()} names image {flat[lost].as_py()}, "
            "which is in no parent folder"
        )
    lists = pa.ListArray.from_arrays(_offsets(judged), rows)
    judged = judged.append_column("rows", lists)
    _one_prompt(folder, judged, images, rows.to_numpy(zero_copy_only=False))
    order = pc.sort_indices(images["id"]).cast(pa.int64())
    prompts = pa.concat_tables([prompts for _, prompts in found]).replace_schema_metadata()
    named = prompts.append_column("row", pa.array(range(len(prompts)), pa.int64())).sort_by(
        [("id", "ascending"), ("row", "descending")]
    )
    images = _captioned(folder, images)
    return {
        "judgements": judged,
        "images": images.append_column("order", order),
        "prompts": named.drop_columns("row").combine_chunks(),
    }


def _captioned(folder: Path, images: pa.Table) -> pa.Table:
    """The images with the captions that `caption` wrote, the nearest first, else those they came with."""
    found = pa.concat_tables([folders.read(p, "captions", ["image_id", "text"]) for p in folders.lineage(folder)])
    found = found.filter(pc.is_valid(found["text"]))
    if not len(found):
        return images
    written = found["text"].take(pc.index_in(images["id"], found["image_id"]))
    at = images.column_names.index("caption")
    return images.set_column(at, "caption", pc.coalesce(written, images["caption"]).combine_chunks())


def _offsets(judged: pa.Table) -> pa.Array:
    lengths = pc.list_value_length(judged["images"].combine_chunks()).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _judgements(folder: Path) -> pa.Table:
    """The rows that say something, each checked, sorted by group and id."""
    table = folders.read(folder, "judgements").replace_schema_metadata()
    folders.verify(folder, "judgements")
    said = table.filter(pc.is_in(table["status"], pa.array(["decided", "tie"])))
    if not len(said):
        raise InputError(f"{folder}: holds no decided judgement, so there is nothing to train on")
    kinds = sorted(pc.unique(said["kind"]).to_pylist())
    if len(kinds) > 1:
        raise InputError(f"{folder}: judgements of kinds {', '.join(kinds)} in one folder; expected one kind")
    return said.sort_by([("group", "ascending"), ("id", "ascending")]).combine_chunks()


def _one_prompt(folder: Path, judged: pa.Table, images: pa.Table, rows: np.ndarray) -> None:
    """Raise InputError where the images of a group are of several prompts."""
    codes = pc.dictionary_encode(images["prompt_id"].combine_chunks()).indices.to_numpy(zero_copy_only=False)[rows]
    groups = pc.dictionary_encode(judged["group"].combine_chunks()).indices.to_numpy(zero_copy_only=False)
    lengths = np.diff(_offsets(judged).to_numpy(zero_copy_only=False))
    owner = np.repeat(groups, lengths)
    both = np.unique(np.stack([owner, codes]), axis=1)
    number, counts = np.unique(both[0], return_counts=True)
    if (counts > 1).any():
        worst = number[counts.argmax()]
        name = judged["id"][int(np.flatnonzero(groups == worst)[0])].as_py()
        raise InputError(f"{folder}: judgement {name} compares images of {counts.max()} prompts; expected one")


def judgement(row: dict[str, Any]) -> Judgement:
    """The record in a row of `Index.judgements`."""
    known = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k != "rows"}
    return Judgement(**known)

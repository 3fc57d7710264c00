"""Record folders: parts written whole or not at all, a manifest that says what made them, and images found by id.

A folder is `{prompts,images,scores,judgements}/part-*.parquet` (whatever its stage makes), `diffalign.json` and a `README.md`
by which `datasets.load_dataset(FOLDER, "images")` finds the tables. A stage cuts its work list into batches before it skips
anything; batch i is part i, and it is whole on disk or made again whole.
"""

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffalign.records import TABLES, InputError, Record, digest, schema

FORMAT = 1
MAIN = {"import": "images", "sample": "images", "score": "scores", "pair": "judgements"}
_PACKAGES = ("diffalign", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Manifest:
    """`diffalign.json`: what made a record folder.

    `batches` is the number of parts of a whole folder. `extends` names the arguments that may grow without making it
    another folder (they are left out of the fingerprint).
    """

    stage: str
    arguments: dict[str, Any]
    batches: int
    parents: tuple[dict[str, str], ...] = ()
    extends: tuple[str, ...] = ()
    versions: dict[str, str] = dataclasses.field(default_factory=lambda: versions())
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """Hash of stage, arguments and the parents' fingerprints; where the folders lie does not matter."""
        fixed = {k: v for k, v in self.arguments.items() if k not in self.extends}
        return digest(self.stage, json.dumps(fixed, sort_keys=True), *(p["fingerprint"] for p in self.parents))


def versions() -> dict[str, str]:
    """The installed versions of what decides the bytes of a result."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def write_atomically(path: Path, data: bytes) -> None:
    """Write, sync, rename: the file at `path` is either the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def begin(folder: Path, manifest: Manifest) -> None:
    """Make `folder` that of `manifest`, or go on in it; raises InputError where it holds something else, naming the difference."""
    path = folder / "diffalign.json"
    if path.exists():
        found = _load(folder)
        if found.stage != manifest.stage:
            raise InputError(f"{folder}: holds the output of `{found.stage}`, expected that of `{manifest.stage}` or a new folder")
        for name in sorted(set(found.arguments) | set(manifest.arguments)):
            old, new = found.arguments.get(name), manifest.arguments.get(name)
            if old != new and not (name in manifest.extends and old is not None and new >= old):
                raise InputError(f"{folder}: was made with {name} = {old!r}, not {new!r}; choose another --out or the old value")
        for old, new in zip(found.parents, manifest.parents, strict=True):
            if old["fingerprint"] != new["fingerprint"]:
                raise InputError(f"{folder}: was made from another {old['path']}; choose another --out")
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no record folder; choose another --out")
    configs = "".join(f"- config_name: {t}\n  data_files: {t}/*.parquet\n" for t in TABLES if _makes(manifest.stage, t))
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("**/.*.tmp-*"):
        stale.unlink()
    write_atomically(path, (json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True) + "\n").encode())
    text = f"---\nconfigs:\n{configs}---\n\nMade by `diffalign {manifest.stage}`; see `diffalign.json`.\n"
    write_atomically(folder / "README.md", text.encode())


def _makes(stage: str, table: str) -> bool:
    made = {"import": ("prompts", "images"), "sample": ("prompts", "images"), "score": ("scores",), "pair": ("judgements",)}
    return table in made[stage]


def parent(child: Path, folder: Path) -> dict[str, str]:
    """How `child` remembers `folder`: relative path and fingerprint."""
    return {"path": os.path.relpath(folder.resolve(), child.resolve()), "fingerprint": _load(folder).fingerprint}


def _load(folder: Path) -> Manifest:
    path = folder / "diffalign.json"
    if not path.is_file():
        what = "no such folder" if not folder.exists() else "holds no diffalign.json, so it is not a record folder"
        raise InputError(f"{folder}: {what}")
    try:
        found = json.loads(path.read_text())
        manifest = Manifest(**{**found, "parents": tuple(found["parents"]), "extends": tuple(found["extends"])})
    except (json.JSONDecodeError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not a diffalign manifest ({error})") from None
    if manifest.format != FORMAT:
        raise InputError(f"{path}: format {manifest.format}, this version reads {FORMAT}")
    return manifest


def open_folder(folder: Path, *stages: str) -> Manifest:
    """The manifest of a whole record folder made by one of `stages`; raises InputError naming what is wrong with it."""
    manifest = _load(folder)
    if manifest.stage not in stages:
        wanted = " or ".join(f"`{s}`" for s in stages)
        raise InputError(f"{folder}: holds the output of `{manifest.stage}`, expected that of {wanted}")
    missing = [i for i in range(manifest.batches) if not part(folder, MAIN[manifest.stage], i).exists()]
    if missing:
        raise InputError(f"{folder}: {len(missing)} of {manifest.batches} parts are missing; run its `{manifest.stage}` again")
    return manifest


def part(folder: Path, table: str, index: int) -> Path:
    """Where batch `index` of a table lies."""
    return folder / table / f"part-{index:05d}.parquet"


def write_part(folder: Path, table: str, index: int, records: Sequence[Record]) -> None:
    """Write one batch of records, atomically."""
    columns = pa.Table.from_pylist([r.row() for r in records], schema=schema(table))
    sink = pa.BufferOutputStream()
    pq.write_table(columns, sink, compression="zstd", row_group_size=256)
    write_atomically(part(folder, table, index), sink.getvalue().to_pybytes())


def is_whole(folder: Path, table: str, index: int, expected: Mapping[str, Sequence[Any]]) -> bool:
    """Whether batch `index` is on disk, readable, and holds exactly the `expected` values in the columns named."""
    path = part(folder, table, index)
    if not path.exists():
        return False
    try:
        found = pq.read_table(path, columns=list(expected))
    except (pa.ArrowInvalid, OSError):
        return False
    return all(found.column(name).to_pylist() == list(values) for name, values in expected.items())


def read(folder: Path, table: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a table, in the order of the parts; raises InputError naming the file that cannot be read."""
    tables = [_read_part(path, table, columns) for path in sorted((folder / table).glob("part-*.parquet"))]
    empty = schema(table).empty_table()
    return pa.concat_tables(tables) if tables else empty.select(columns) if columns else empty


def _read_part(path: Path, table: str, columns: Sequence[str] | None) -> pa.Table:
    try:
        found = pq.read_schema(path)
        if set(found.names) != set(schema(table).names):
            odd = sorted(set(found.names) ^ set(schema(table).names))
            raise InputError(f"{path}: field {odd[0]!r} is unknown or missing, expected {schema(table).names}")
        return pq.read_table(path, columns=list(columns) if columns else None)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: is not a whole Parquet file ({str(error).splitlines()[0][:80]}); run its stage again") from None


def records(folder: Path, table: str) -> list[Record]:
    """All records of a table, each checked; raises InputError naming folder, table and row."""
    out = []
    for number, row in enumerate(read(folder, table).to_pylist()):
        try:
            out.append(TABLES[table].of(row))
        except (InputError, TypeError) as error:
            raise InputError(f"{folder}/{table}, row {number}: {error}") from None
    return out


def lineage(folder: Path) -> Iterator[Path]:
    """The folder and its ancestors, nearest first; raises InputError where one has moved or is another one now."""
    yield folder
    for entry in _load(folder).parents:
        ancestor = Path(os.path.normpath(folder / entry["path"]))
        if not ancestor.exists():
            raise InputError(f"{folder}: its parent {ancestor} is not there; keep record folders side by side")
        if _load(ancestor).fingerprint != entry["fingerprint"]:
            raise InputError(f"{folder}: its parent {ancestor} is not the folder it was made from")
        yield from lineage(ancestor)


def texts(folder: Path) -> dict[str, str]:
    """Prompt id -> text, over the folder and its ancestors."""
    found: dict[str, str] = {}
    for place in lineage(folder):
        rows = read(place, "prompts", ["id", "text"])
        found |= dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))
    return found


def image_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Image id -> its row without the bytes, over the folder and its ancestors."""
    columns = [n for n in schema("images").names if n != "image"]
    found: dict[str, dict[str, Any]] = {}
    for place in lineage(folder):
        found |= {row["id"]: row for row in read(place, "images", columns).to_pylist()}
    return found


def image_bytes(folder: Path, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """(image id, file bytes) of the wanted images, part by part, over the folder and its ancestors.

    Memory holds one part. Raises InputError naming an image that is nowhere, or a file that is gone.
    """
    missing = set(wanted)
    for place in lineage(folder):
        for path in sorted((place / "images").glob("part-*.parquet")):
            ids = set(_read_part(path, "images", ["id"])["id"].to_pylist())
            if not missing & ids:
                continue
            for row in _read_part(path, "images", ["id", "image"]).to_pylist():
                if row["id"] in missing:
                    missing.discard(row["id"])
                    yield row["id"], _bytes(place, row)
    if missing:
        raise InputError(f"{folder}: image {min(missing)} is in no parent folder ({len(missing)} such images)")


def _bytes(place: Path, row: dict[str, Any]) -> bytes:
    if row["image"]["bytes"] is not None:
        return row["image"]["bytes"]
    path = place / row["image"]["path"]
    if not path.is_file():
        raise InputError(f"{path}: image {row['id']} of {place} is not there")
    return path.read_bytes()

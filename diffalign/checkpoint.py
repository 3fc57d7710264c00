"""What a resume reads, written atomically: write, sync, rename. Tensors as safetensors, numbers as JSON, no pickle."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffalign.manifest import naming
from diffalign.records import InputError

_PART = r"-(\d+)-of-\d+$"


def publish(folder: Path, temporary: Path) -> None:
    """Sync every file of a finished temporary folder and rename it to `folder`, which is replaced."""
    for path in (*temporary.rglob("*"), temporary):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        temporary.rename(folder)
        shutil.rmtree(doomed)
    else:
        temporary.rename(folder)


def scratch(folder: Path) -> Path:
    """An empty folder beside `folder` to write into before `publish`."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


@contextmanager
def spare(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into, gone when the body ends or fails.

    Raises OSError where there is no room, whichever library was writing.
    """
    temporary = scratch(folder)
    try:
        with naming(folder):
            yield temporary
    except SafetensorError as error:
        known = next((n for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) if f"os error {n})" in str(error)), None)
        if known is None:
            raise
        raise OSError(known, os.strerror(known), str(folder)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when the body ends, or is deleted where it fails; as `spare`."""
    with spare(folder) as temporary:
        yield temporary
        publish(folder, temporary)


def save(
    folder: Path,
    tensors: dict[str, dict[str, Tensor]],
    data: dict[str, Any],
    beside: Callable[[Path], None] = lambda _: None,
) -> None:
    """Write `NAME.safetensors` per entry of `tensors` and `state.json`, whole or not at all.

    `beside` writes what others read, which `load` gives as tensors too.
    `state.json` holds `data` and the hash of every file, by which `load` knows a whole checkpoint.
    """
    with written(folder) as temporary:
        for name, values in tensors.items():
            save_file({k: v.detach().contiguous().cpu() for k, v in values.items()}, temporary / f"{name}.safetensors")
        beside(temporary)
        hashes = {p.name: _hash(p) for p in sorted(temporary.iterdir())}
        (temporary / "state.json").write_text(json.dumps({"data": data, "hashes": hashes}, indent=1))


def save_part(folder: Path, tensors: dict[str, dict[str, Tensor]], rank: int, world: int) -> None:
    """Write one process's part of every tensor, cut along its first axis, beside `folder`, where `scratch` made room.

    Numbers without an axis are the first process's.
    """
    for name, values in tensors.items():
        mine = {k: v.detach().contiguous().cpu() for k, v in values.items() if v.ndim or rank == 0}
        save_file(mine, folder.with_name(f".{folder.name}.tmp") / f"{name}-{rank}-of-{world}.safetensors")


def join_parts(folder: Path, data: dict[str, Any]) -> None:
    """Make `folder` of what all processes wrote by `save_part`, whole or not at all; as `save`."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    hashes = {p.name: _hash(p) for p in sorted(temporary.iterdir())}
    (temporary / "state.json").write_text(json.dumps({"data": data, "hashes": hashes}, indent=1))
    publish(folder, temporary)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors, data) of a checkpoint; raises InputError naming the file that is missing or damaged.

    Tensors that several processes wrote in parts are whole again, and get memory of their own: mapped ones lie at
    other alignments and compute other last bits.
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        data = state["data"]
        for name, expected in state["hashes"].items():
            if _hash(folder / name) != expected:
                raise InputError(f"{folder / name}: is damaged")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{folder}: is not whole ({error})") from None
    files: dict[str, list[str]] = {}
    for name in sorted((n for n in state["hashes"] if n.endswith(".safetensors")), key=_rank):
        files.setdefault(re.sub(_PART, "", Path(name).stem), []).append(name)
    tensors = {name: _joined([load_file(folder / n) for n in parts]) for name, parts in files.items()}
    return tensors, data


def _rank(name: str) -> int:
    found = re.search(_PART, Path(name).stem)
    return int(found[1]) if found else 0


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors of the parts of all processes, in memory of their own."""
    if len(parts) == 1:
        return {n: torch.clone(v) for n, v in parts[0].items()}
    return {n: torch.cat([p[n] for p in parts]) if v.ndim else torch.clone(v) for n, v in parts[0].items()}


def found(run: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first."""
    numbered = [p for p in run.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(numbered, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True)


def prune(run: Path, keep: int, best: int | None = None) -> None:
    """Delete all but the newest `keep` checkpoints and that of step `best`, and what interrupted writes left behind."""
    old = [p for p in found(run)[keep:] if p.name != f"checkpoint-{best}"]
    for path in (*old, *run.glob(".checkpoint-*")):
        shutil.rmtree(path)


def forget(run: Path, step: int) -> None:
    """Delete the checkpoints after `step`: a damaged one would count as the newest and push out a whole one."""
    for path in found(run):
        if int(path.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(path)

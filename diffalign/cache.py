"""What never changes is computed once: latents per unique image, conditioning per unique prompt, memory-mapped."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from diffalign import checkpoint

FORMAT = 1


class Store:
    """Named float arrays with one row per id, memory-mapped from `folder`; `rows(ids)` reads them as tensors."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        self._row = {name: i for i, name in enumerate(index["ids"])}
        self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in index["arrays"]}

    def rows(self, ids: Sequence[str]) -> dict[str, Tensor]:
        """The rows of the ids, in their order, one tensor per array."""
        wanted = [self._row[name] for name in ids]
        return {name: torch.from_numpy(np.ascontiguousarray(array[wanted])) for name, array in self._arrays.items()}


def fill(
    folder: Path,
    key: Mapping[str, object],
    ids: Sequence[str],
    compute: Callable[[Sequence[str]], dict[str, Tensor]],
    batches: Callable[[Sequence[str]], Iterable[Sequence[str]]],
) -> Store:
    """The store of `ids` under `key`; computed batch by batch where it is not there, whole or not at all.

    `compute` gives one tensor per array for a batch of ids; rows are kept in the dtype it gives (float64 or float32).
    `batches` cuts the ids (and may show progress).
    """
    wanted = {"format": FORMAT, "key": dict(key), "ids": list(ids)}
    if (kept := _kept(folder, wanted)) is not None:
        return kept
    shutil.rmtree(folder, ignore_errors=True)
    with checkpoint.written(folder) as temporary:
        names = _write(temporary, len(ids), (compute(batch) for batch in batches(ids)))
        (temporary / "index.json").write_text(json.dumps(wanted | {"arrays": names}))
    return Store(folder)


def _kept(folder: Path, wanted: Mapping[str, object]) -> Store | None:
    """The store in `folder` where it is the `wanted` one and whole."""
    try:
        found = json.loads((folder / "index.json").read_text())
        return Store(folder) if {k: found.get(k) for k in wanted} == wanted else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _write(folder: Path, rows: int, parts: Iterable[dict[str, Tensor]]) -> list[str]:
    """Append the parts of each array to its .npy file, so that no more than one part is in memory; the arrays' names.

    Written, not mapped: a full disk under a mapped file kills the process, under a written one it is an error.
    """
    with contextlib.ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for part in parts:
            for name, value in part.items():
                array = np.ascontiguousarray((value if value.dtype == torch.float64 else value.float()).cpu().numpy())
                if name not in files:
                    files[name] = stack.enter_context((folder / f"{name}.npy").open("wb"))
                    shape = {"shape": (rows, *array.shape[1:]), "fortran_order": False}
                    np.lib.format.write_array_header_1_0(
                        files[name], {"descr": np.lib.format.dtype_to_descr(array.dtype), **shape}
                    )
                files[name].write(array.data)
    return sorted(files)


def cut(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """The ids in runs of `size`, never a last run of one beside others: a batch of one rounds otherwise."""
    ends = list(range(0, len(ids), size))
    if len(ids) > 1 and len(ids) - ends[-1] == 1:
        ends = ends[:-1]
    for i, start in enumerate(ends):
        yield ids[start : ends[i + 1] if i + 1 < len(ends) else len(ids)]

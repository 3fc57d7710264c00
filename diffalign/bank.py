"""The frozen reference's errors, computed once: one number per image and draw, in a file that is mapped, not read."""

import bisect
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffalign import folders, weights
from diffalign.dataset import Dataset, Visit
from diffalign.diffusion import Process, draw_noise, draw_time
from diffalign.journal import differences
from diffalign.manifest import naming
from diffalign.records import InputError, digest
from diffalign.run import Frozen, LoRA, Run, States, to_data

FORMAT = 1
# what a run may change without the reference's errors being others; a field that is not named here is in the key
FREE = (
    "objective", "policy", "old", "labels", "curriculum", "out", "push", "cache", "bank", "draws", "steps", "batch",
    "micro_batch", "chunk", "parity", "optimizer", "schedule", "ema", "compile", "gradient_checkpointing", "log_every",
    "save_every", "keep", "evaluate", "log_with", "family",
)  # fmt: skip
# these enter by what they hold, not by where it lies
CONTENT = ("model", "config", "init_lora", "reference", "data", "states")


class Bank:
    """Numbers of one float type, draw after draw and within a draw image after image of each group; 0: not computed.

    What was never written, or was lost with the power, is a hole of the file and reads as 0. It is written through the
    file, because a full disk under a map kills the process. `write` keeps what lies on an accelerator until `flush`.
    """

    def __init__(self, folder: Path, key: dict[str, Any], data: Dataset, dtype: torch.dtype) -> None:
        _claim(folder, key)
        owners, _ = data.index.places()
        self._groups = data.index.judgements["group"].take(data.index.starts[:-1])
        self._starts = np.concatenate([[0], np.bincount(owners).cumsum()]).tolist()
        self._slots, self._path = self._starts[-1], folder / f"errors.{str(dtype).removeprefix('torch.')}"
        self._dtype = np.dtype(str(dtype).removeprefix("torch."))
        self._path.touch()
        self._pending: dict[tuple[tuple[str, int], ...], tuple[Sequence[Visit], Tensor]] = {}
        self._map = np.zeros(0, self._dtype)
        self.reads = True

    def _span(self, visit: Visit) -> tuple[int, int]:
        group, known = visit.group.id, self._groups
        at = bisect.bisect_left(range(len(known)), group, key=lambda i: known[i].as_py())
        start = visit.draw * self._slots + self._starts[at]
        return start, start + len(visit.group.images)

    def read(self, visits: Sequence[Visit]) -> Tensor | None:
        """The errors of the visits' images, in their order, or None where one is not known, or with `reads` off."""
        if not self.reads:
            return None
        if (kept := self._pending.get(_names(visits))) is not None:
            return kept[1]
        spans = [self._span(v) for v in visits]
        if max(end for _, end in spans) > len(self._map):
            size = self._path.stat().st_size // self._dtype.itemsize
            self._map = np.memmap(self._path, self._dtype, "r", shape=(size,)) if size else self._map
        parts = [self._map[start:end] for start, end in spans]
        found = np.concatenate(parts)
        return torch.from_numpy(found) if len(found) == sum(e - s for s, e in spans) and found.all() else None

    def covers(self, steps: Iterable[Sequence[Visit]]) -> bool:
        """Whether the errors of all visits are known."""
        return all(self.read(visits) is not None for visits in steps)

    def write(self, visits: Sequence[Visit], values: Tensor) -> None:
        """Keep the errors of the visits' images; those on an accelerator are not waited for."""
        self._pending[_names(visits)] = (visits, values.detach())
        if values.device.type == "cpu":
            self.flush()

    def flush(self) -> None:
        """Put what was kept into the file; waits for the accelerator where something lies there."""
        if not self._pending:
            return
        values = torch.cat([v for _, v in self._pending.values()]).cpu().numpy().astype(self._dtype)
        values = np.where(np.isfinite(values), values, 0)
        handle, at = os.open(self._path, os.O_WRONLY), 0
        try:
            with naming(self._path):
                for visit in (v for visits, _ in self._pending.values() for v in visits):
                    start, end = self._span(visit)
                    _put(handle, values[at : at + end - start].tobytes(), start * self._dtype.itemsize)
                    at += end - start
        finally:
            os.close(handle)
        self._pending.clear()


def _names(visits: Sequence[Visit]) -> tuple[tuple[str, int], ...]:
    return tuple((v.group.id, v.draw) for v in visits)


def _put(handle: int, data: bytes, place: int) -> None:
    """Write all of the data, or raise OSError: where a disk is nearly full, a part of it may be written first."""
    while data:
        done = os.pwrite(handle, data, place)
        data, place = data[done:], place + done


def _claim(folder: Path, key: dict[str, Any]) -> None:
    """Make `folder` the bank of a key; raises InputError where it is that of another, naming the fields that differ."""
    index = folder / "index.json"
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folders.write_atomically(index, (json.dumps(key, indent=1) + "\n").encode())
    try:
        found = json.loads(index.read_text())
    except ValueError as error:
        raise InputError(f"{index}: is not JSON ({error}); delete {folder} to have it computed again") from None
    if changed := differences(found, json.loads(json.dumps(key))):
        remedy = "choose another --cache, or --bank off"
        raise InputError(f"{folder}: holds reference errors of something else ({'; '.join(changed)}); {remedy}")


def place(cache: Path, data: Dataset) -> Path:
    """Where the bank of a data set lies in a cache, beside those of others."""
    return cache / f"reference-{data.fingerprint[:16]}"


def key(run: Run, data: Dataset, process: Process, shape: tuple[int, ...], device: torch.device) -> dict[str, Any]:
    """Everything that decides a reference error, by name; `shape` is that of latents."""
    fields = [f.name for f in dataclasses.fields(run) if f.name not in FREE + CONTENT]
    states = {f.name: to_data(getattr(run.states, f.name)) for f in dataclasses.fields(States)}
    owners, rows = data.index.places()
    names = data.index.judgements["group"].take(data.index.starts[:-1]).to_pylist()
    images = digest("groups", *names, owners.tobytes(), *data.images.table["id"].take(rows).to_pylist())
    return {
        "format": FORMAT,
        "model": weights.fingerprint(weights.locate(run.model, run.config)),
        "init_lora": _adapter(run.init_lora),
        "reference": _reference(run),
        "quantization": run.policy.quantization if isinstance(run.policy, LoRA) else "none",
        "data": data.fingerprint,
        "images": images,
        "process": repr(process),
        "device": device.type,
        **{n: v for n, v in states.items() if n not in ("weighting", "weighs")},
        **{n: to_data(getattr(run, n)) for n in fields},
        "probe": probe(run, shape),
    }


def probe(run: Run, shape: tuple[int, ...]) -> str:
    """What the time and the noise of a draw that no run makes hash to: other libraries may draw other numbers."""
    u = draw_time(run.seed, "probe", 0)
    time = run.states.times(torch.tensor([u], dtype=torch.float64)).numpy()
    drawn = (time.tobytes(), draw_noise(run.seed, "probe", 0, None, shape).tobytes())
    return hashlib.blake2b(b"".join(drawn), digest_size=16).hexdigest()


def _adapter(place: str) -> str:
    return weights.fingerprint(weights.adapter_file(Path(place))) if place else ""


def _reference(run: Run) -> str:
    """What the reference has beyond model and init_lora, by content."""
    assert isinstance(run.reference, Frozen)
    lora = run.policy if isinstance(run.policy, LoRA) else None
    place = run.reference.path or (lora.start if lora else "")
    if not place:
        return ""
    scale = f" at {lora.alpha}" if lora else ""
    return (_adapter(place) if lora else weights.fingerprint(Path(place))) + scale


def refusal(run: Run) -> str:
    """Why a run's reference errors cannot be kept, in one line; empty where they can."""
    name = type(run.objective).__name__
    if run.objective.reference_free:
        return f"{name} compares with no reference"
    if not isinstance(run.reference, Frozen):
        return f"the reference moves ({type(run.reference).__name__})"
    if "policy_reference" in run.objective.needs:
        return f"{name} reads the reference's prediction, not its error alone"
    if run.states.inversion.steps:
        return "a state reached by inversion needs the network itself"
    return ""


def wanted(run: Run, folder: Path) -> bool:
    """Whether a run keeps its reference errors in `folder`; raises InputError where it must and cannot.

    "auto" does where it pays: in a cache that runs share, with draws that come again, or where a bank lies already.
    """
    why = refusal(run)
    if run.bank == "on" and why:
        raise InputError(f"bank = on: {why}; use bank = auto")
    pays = bool(run.cache) or run.draws > 0 or (folder / "index.json").exists()
    return not why and (run.bank == "on" or (run.bank == "auto" and pays))

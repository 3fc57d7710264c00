"""What a run folder says of its run: `run.json` (the resolved run, compared on resume) and `metrics.jsonl`."""

import json
import sys
from pathlib import Path
from typing import Any

from diffalign import entries, folders, weights
from diffalign.manifest import is_temporary, naming
from diffalign.records import InputError
from diffalign.run import Frozen, LoRA, Run, to_data

_FREE = ("out", "cache", "push", "gradient_checkpointing", "log_every", "save_every", "keep", "evaluate", "log_with")


def describe(out: Path, run: Run, recipe: dict[str, str], threads: int) -> dict[str, Any]:
    """What `claim` writes of a run; raises InputError where `out` holds another one, naming the fields that differ,
    or something else.
    """
    data = {
        "run": to_data(run),
        "recipe": recipe,
        "threads": threads,
        "data": folders.open_folder(Path(run.data), *folders.JUDGED).fingerprint,
        "starts": _starts(run),
        "versions": folders.versions(),
        "command": " ".join(["diffalign", *sys.argv[1:]]),
    }
    path = out / "run.json"
    if path.exists():
        found = entries.settings(out)
        same = {k: v for k, v in found["run"].items() if k not in _FREE}
        changed = differences(same, {k: v for k, v in data["run"].items() if k not in _FREE})
        changed += differences(found.get("data"), data["data"], "data (content)")
        changed += differences(found.get("starts"), data["starts"], "content of")
        changed += differences(found.get("threads"), threads, "threads")
        if changed:
            raise InputError(f"{out}: holds another run ({'; '.join(changed)}); choose another --out or the old values")
    elif (out / "metrics.jsonl").exists() or (out / "policy").exists():
        raise InputError(f"{out}: holds results without a run.json; choose another --out")
    require_free(run)
    return data


def require_free(run: Run) -> None:
    """Raise InputError where `out` holds anything but this run's cache and is no run folder yet.

    Nor is it refused where the run's data lie in it: so `demo` has the whole loop in one folder.
    """
    out = Path(run.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder or a new name")
    if (out / "run.json").exists() or not out.exists():
        return
    if (out / "diffalign.json").exists():
        raise InputError(f"{out}: holds the output of `{folders.load(out).stage}`; choose another --out")
    here, cache, data = out.resolve(), Path(run.cache or out / "cache").resolve(), Path(run.data).resolve()
    others = [e for e in here.iterdir() if not is_temporary(e) and not cache.is_relative_to(e)]
    if others and not data.is_relative_to(here):
        raise InputError(f"{out}: is not empty and holds no run; choose another --out")


def claim(out: Path, data: dict[str, Any]) -> None:
    """Make `out` the folder of the described run, unless it is that already."""
    if not (out / "run.json").exists():
        folders.write_atomically(out / "run.json", (json.dumps(data, indent=1) + "\n").encode())


def _starts(run: Run) -> dict[str, str]:
    """Fingerprints of the adapters and weights that policy and past selves start from, by their place."""
    places = [run.policy.start] if isinstance(run.policy, LoRA) else []
    places += [kind.path for kind in (run.reference, run.old) if isinstance(kind, Frozen)]
    found = {}
    if run.init_lora:
        found[run.init_lora] = weights.fingerprint(weights.adapter_file(Path(run.init_lora)))
    for place in filter(None, places):
        there = Path(place)
        found[place] = weights.fingerprint(weights.adapter_file(there) if isinstance(run.policy, LoRA) else there)
    return found


def trim(path: Path, step: int) -> None:
    """Drop the lines after `step` of a file with one step a line, and a line cut short by an interruption.

    Raises InputError as `entries.lines` does.
    """
    if not path.exists():
        return
    rows = entries.lines(path)[0]
    kept = [line for line, row in zip(path.read_bytes().split(b"\n"), rows, strict=False) if row["step"] <= step]
    folders.write_atomically(path, b"".join(line + b"\n" for line in kept))


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of such a file, none where there is no file."""
    return entries.lines(path)[0] if path.exists() else []


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add one line to `metrics.jsonl` or `evaluations.jsonl`."""
    with naming(path), path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The fields in which two `to_data` values differ, each as "name: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(k for k in old if k not in new)]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{name}.{k}" if name else k)]
    return [] if old == new else [f"{name}: {json.dumps(old)} -> {json.dumps(new)}"]

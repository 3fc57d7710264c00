"""What a run folder's own files say, read back: `run.json`, and files of one step a line. What is damaged is named."""

import json
from pathlib import Path
from typing import Any

from diffalign.records import InputError


def settings(run: Path) -> dict[str, Any]:
    """`run.json` of a run folder; raises InputError where it is missing, not JSON, or lacks what a run has."""
    path = run / "run.json"
    if not path.is_file():
        raise InputError(f"{run}: holds no run.json, so it is not a run folder")
    found = whole(path)
    expect(isinstance(found.get("run"), dict), path, "run", "an object")
    for name, kind in (("model", str), ("steps", int), ("objective", dict)):
        expect(isinstance(found["run"].get(name), kind), path, f"run.{name}", f"a value of type {kind.__name__}")
    return found


def whole(path: Path) -> dict[str, Any]:
    """A file that is one JSON object; raises InputError where it is none."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from None
    expect(isinstance(found, dict), path, "(whole file)", "an object")
    return found


def expect(condition: bool, path: Path, field: str, what: str) -> None:
    """Raise InputError naming file and field unless the condition holds."""
    if not condition:
        raise InputError(f"{path}, field {field}: expected {what}")


def lines(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The lines of metrics or of evaluations, and a note where the last one was cut short (it is then left out).

    Raises InputError naming file and row for any other line that is no JSON object with a number as its step.
    """
    found = path.read_bytes().split(b"\n")
    while found and not found[-1].strip():
        found.pop()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(found, 1):
        try:
            entry = json.loads(line)
        except ValueError:
            if number == len(found):
                return rows, f"The last line of {path.name} (row {number}) was cut short and is left out."
            raise InputError(f"{path}, row {number}: is not JSON, expected one object a line") from None
        if not isinstance(entry, dict) or "step" not in entry:
            raise InputError(f"{path}, row {number}: expected an object with the field 'step'")
        if isinstance(entry["step"], bool) or not isinstance(entry["step"], int | float):
            raise InputError(f"{path}, row {number}, field 'step': is {entry['step']!r}, expected a number")
        rows.append(entry)
    return rows, None

"""What made a record folder: `diffalign.json`, and how any file of ours is written, whole or not at all."""

import contextlib
import dataclasses
import glob
import importlib.metadata
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.records import InputError, digest

FORMAT = 1
STAGES = ("import", "sample", "score", "pair", "filter", "caption")
_PACKAGES = ("diffalign", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Manifest:
    """`diffalign.json`: what made a record folder.

    `batches` is the number of parts of a whole folder. `extends` names the arguments that may grow without making it
    another folder (they are left out of the fingerprint). `counts` says what was kept and what was left out, and why.
    `given` is what the user named things, which is not compared.
    """

    stage: str
    arguments: dict[str, Any]
    batches: int
    parents: tuple[dict[str, str], ...] = ()
    extends: tuple[str, ...] = ()
    counts: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=lambda: versions())
    given: dict[str, Any] = dataclasses.field(default_factory=dict)
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
        with naming(path), temporary.open("wb") as file:
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


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Around what writes `path`: an OSError says so, where a full disk would leave it without a name."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def is_temporary(path: Path) -> bool:
    """Whether `write_atomically` left it when it was killed."""
    return path.name.startswith(".") and ".tmp-" in path.name


def clear(*paths: Path) -> None:
    """Remove what killed writes of these files left beside them."""
    for path in paths:
        for left in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
            left.unlink(missing_ok=True)


def load(folder: Path) -> Manifest:
    """The manifest of a record folder, whole or not; raises InputError where there is none that can be read."""
    path = folder / "diffalign.json"
    if not path.is_file():
        what = (
            "no such folder"
            if not folder.exists()
            else "holds no diffalign.json, so it is not a record folder; `import` makes one"
        )
        raise InputError(f"{folder}: {what}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise InputError(f"{path}: format {found['format']}, this version reads {FORMAT}")
        manifest = Manifest(**{**found, "parents": tuple(found["parents"]), "extends": tuple(found["extends"])})
        if odd := [v for v in (manifest.arguments, manifest.counts, *manifest.parents) if not isinstance(v, dict)]:
            raise TypeError(f"{odd[0]!r}, expected an object")
        if lost := next((n for entry in manifest.parents for n in ("path", "fingerprint") if n not in entry), None):
            raise KeyError(lost)
        if manifest.stage not in STAGES or not isinstance(manifest.batches, int):
            raise InputError(f"{path}: stage {manifest.stage!r}, expected one of {', '.join(STAGES)}")
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: is not a diffalign manifest ({error})") from None
    return manifest

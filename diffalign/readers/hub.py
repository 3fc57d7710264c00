"""Sets on the hub, read over the network: labels first, pictures only of the row groups with rows that are kept.

A set is named "owner/name", "owner/name@revision", or with a folder in it "hf://datasets/owner/name/folder". Its
Parquet files are read in place; where it has none, those that the hub made of it (revision refs/convert/parquet).
"""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffalign.readers.files import File, parquet
from diffalign.records import InputError

CONVERTED = "refs/convert/parquet"
_NAME = re.compile(r"(?:hf:/+datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?P<inside>/.+)?")


def named(source: Path) -> tuple[str, str | None, str] | None:
    """(owner/name, revision, folder in it) of a name on the hub; None of one that is a path."""
    text = str(source)
    found = _NAME.fullmatch(text)
    explicit = text.startswith("hf:")
    if not found or (not explicit and (found["inside"] or text.startswith(".") or source.suffix in (".csv", ".json"))):
        return None
    return found["repo"], found["revision"], (found["inside"] or "").strip("/")


def files(repo: str, revision: str | None, inside: str) -> list[File]:
    """The Parquet files of a set, by name. Raises InputError where the hub does not give it, saying what to do."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

    remedy = f"hf download {repo} --repo-type dataset --local-dir DIR, then import DIR"
    try:
        system = huggingface_hub.HfFileSystem()
        found = _parquet(system, repo, revision, inside)
        if not found and revision is None:
            revision, found = CONVERTED, _parquet(system, repo, CONVERTED, inside)
    except GatedRepoError:
        raise InputError(f"{repo}: is gated on the hub; accept its terms on its page, then `hf auth login`") from None
    except RepositoryNotFoundError:
        raise InputError(f"{repo}: no such file or folder, and the hub knows no such set, or hides it") from None
    except (HTTPError, OSError, ValueError) as error:
        why = type(error).__name__
        raise InputError(f"{repo}: no such file or folder, and the hub does not give it ({why}); {remedy}") from None
    if not found:
        raise InputError(f"{repo}{f'/{inside}' if inside else ''}: holds no Parquet on the hub; {remedy}")
    return [
        parquet(Path(repo) / name, _opener(system, path), str(entry.get("blob_id") or entry["size"]))
        for name, path, entry in found
    ]


def _parquet(system: Any, repo: str, revision: str | None, inside: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(name in the set, address, what the hub says of it) of each Parquet file."""
    quoted = f"@{revision.replace('/', '%2F')}" if revision else ""
    root = f"datasets/{repo}{quoted}"
    try:
        listed = system.find(root, detail=True)
    except FileNotFoundError:
        return []
    found = []
    for path, entry in sorted(listed.items()):
        name = path.partition(f"datasets/{repo}")[2].removeprefix(quoted).lstrip("/")
        if path.endswith(".parquet") and (not inside or name == inside or name.startswith(f"{inside}/")):
            found.append((name, path, entry))
    return found


class _Remote(io.RawIOBase):
    """A file on the hub whose failures are OSErrors, whatever library of the network raised them."""

    def __init__(self, handle: Any) -> None:
        super().__init__()
        self._handle = handle

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        return self._handle.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._handle.read(len(buffer))
        except Exception as error:
            raise OSError(f"the hub broke off ({type(error).__name__})") from None
        buffer[: len(data)] = data
        return len(data)


def _opener(system: Any, path: str) -> Callable[[], io.RawIOBase]:
    return lambda: _Remote(system.open(path, "rb"))

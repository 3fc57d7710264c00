"""Folders of pictures whose names say what was preferred -> rows of plain columns.

chosen/ and rejected/ with equal names; NAME_w and NAME_l; NAME_0 … NAME_k from best to worst; liked/ and disliked/.
The prompt of NAME is in NAME.txt, beside the picture or in the folder itself, or in a metadata.csv or metadata.jsonl
there (file_name, prompt).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffalign.readers.files import File, in_memory, table
from diffalign.readers.folder import LISTS, PICTURES
from diffalign.records import InputError

_SIDES = (("chosen", "rejected"), ("liked", "disliked"))
_SUFFIX = re.compile(r"(?P<name>.+)[_.\-](?P<side>w|l|chosen|rejected|win|lose|\d{1,3})")
_WON = {"w": "chosen", "win": "chosen", "chosen": "chosen", "l": "rejected", "lose": "rejected", "rejected": "rejected"}


def layout(folder: Path) -> File | None:
    """The rows of a folder of pictures; None where it is none. Raises InputError where names mean two things."""
    for sides in _SIDES:
        if all((folder / side).is_dir() for side in sides):
            rows = _paired(folder, *sides) if sides[0] == "chosen" else _liked(folder, *sides)
            return in_memory(folder, rows, "picture")
    found = _pictures(folder)
    if not found:
        return None
    rows = _suffixed(folder, found)
    return in_memory(folder, rows, "picture") if rows else None


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.is_file())


def _by_stem(folder: Path) -> dict[str, str]:
    """Stem -> name of the picture, relative to the parent; raises InputError where two have one stem."""
    found: dict[str, str] = {}
    for path in _pictures(folder):
        if path.stem in found:
            raise InputError(f"{path}: {found[path.stem]} has the same name; expected one picture a name")
        found[path.stem] = f"{folder.name}/{path.name}"
    return found


def _listed(folder: Path, *sides: str, suffixed: bool = False) -> dict[str, str]:
    """NAME -> prompt, of the lists in a folder and its sides; where names have suffixes, NAME_w.png speaks for NAME."""
    found: dict[str, str] = {}
    for path in (place / name for place in (folder, *(folder / side for side in sides)) for name in LISTS):
        for row in table(path).rows(("file_name", "prompt")) if path.is_file() else ():
            stem, text = Path(row.text("file_name")).stem, row.text("prompt")
            match = _SUFFIX.fullmatch(stem) if suffixed else None
            name = match["name"] if match else stem
            if found.setdefault(name, text) != text:
                raise row.error("prompt", "labels disagree", f"is another prompt of {name} than before")
    return found


def _prompt(folder: Path, name: str, *sides: str) -> str | None:
    """The text of the first NAME.txt there is; a byte-order mark and the end of the last line do not belong to it."""
    for place in (folder, *(folder / side for side in sides)):
        path = place / f"{name}.txt"
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8-sig").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: is not UTF-8 (byte {error.start})") from None
    return None


def _paired(folder: Path, won: str, lost: str) -> list[Mapping[str, Any]]:
    chosen, rejected, said = _by_stem(folder / won), _by_stem(folder / lost), _listed(folder, won, lost)
    return [
        {"prompt": _prompt(folder, n, won, lost) or said.get(n), "chosen": chosen.get(n), "rejected": rejected.get(n)}
        for n in sorted(chosen.keys() | rejected.keys())
    ]


def _liked(folder: Path, good: str, bad: str) -> list[Mapping[str, Any]]:
    said = {side: _listed(folder / side) for side in (good, bad)}
    both = _listed(folder)
    return [
        {
            "prompt": _prompt(folder / side, name) or _prompt(folder, name) or said[side].get(name) or both.get(name),
            "image": path,
            "desirable": desirable,
        }
        for side, desirable in ((good, 1.0), (bad, 0.0))
        for name, path in _by_stem(folder / side).items()
    ]


def _suffixed(folder: Path, found: list[Path]) -> list[Mapping[str, Any]]:
    """Pairs by NAME_w and NAME_l, or rankings by NAME_0 … NAME_k; nothing where no name ends so."""
    groups: dict[str, dict[str, str]] = {}
    for path in found:
        match = _SUFFIX.fullmatch(path.stem)
        if match:
            side = _WON.get(match["side"]) or str(int(match["side"]))
            group = groups.setdefault(match["name"], {})
            if side in group:
                other = group[side]
                raise InputError(f"{path}: {other} says the same of {match['name']}; expected one picture a place")
            group[side] = path.name
    said = _listed(folder, suffixed=True)
    kinds = {next(iter(group)) in ("chosen", "rejected") for group in groups.values()}
    mixed = [n for n, g in groups.items() if len({s in ("chosen", "rejected") for s in g}) > 1]
    if mixed or len(kinds) > 1:
        raise InputError(f"{folder}: holds pairs (_w, _l) and rankings (_0, _1, …) at once; put them in two folders")
    if kinds == {True}:
        texts = {n: _prompt(folder, n) or said.get(n) for n in groups}
        return [{"prompt": texts[n], "chosen": None, "rejected": None, **groups[n]} for n in sorted(groups)]
    rows = []
    for name in sorted(groups):
        places = sorted(groups[name], key=int)
        images = [groups[name][place] for place in places]
        text = _prompt(folder, name) or said.get(name)
        rows.append({"prompt": text, "images": images, "ranks": [int(place) + 1 for place in places]})
    return rows

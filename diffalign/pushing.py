"""A folder of preferences -> one folder with all that it needs, and that on the hub."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffalign import folders, readers, weights
from diffalign.records import Image, InputError, Judgement, Prompt, Score

IMAGES = 256


def push(data: Path, /, *, to: str = "", out: Path, anyway: bool = False, private: bool = False) -> str:
    """Pack preferences with their prompts, pictures and scores into one record folder, and upload it.

    What is packed is a record folder like any other: `datasets.load_dataset` opens it, `train` and `inspect` read it.

    Args:
        data: Record folder of judgements (of import, pair or filter).
        to: Hub id "owner/name" to upload it to; without it nothing leaves this machine.
        out: Folder to pack into.
        anyway: Upload pictures of a set whose licence does not let them be passed on.
        private: Make the repository a private one.
    """
    folders.open_folder(data, *folders.JUDGED)
    terms = _terms(data)
    closed = [said for said, free in terms if not free]
    if to and closed and not anyway:
        raise InputError(f"{data}: licence: {'; '.join(closed)}; nothing was uploaded; --anyway does it all the same")
    counts = _pack(data, out, [said for said, _ in terms])
    warning = f" (licence: {'; '.join(said for said, _ in terms)})" if terms else ""
    packed = f"{out}: {counts['judgements']} judgements of {counts['images']} images packed{warning}"
    if not to:
        return f"{packed}; next: diffalign push {data} --out {out} --to OWNER/NAME"
    weights.push(out, to, "dataset", private=private)
    return f"{packed} and uploaded as {to}; next: diffalign import {to} --out …"


def _terms(data: Path) -> list[tuple[str, bool]]:
    """(licence in words, whether pictures may be passed on) of the sets that a folder was imported from."""
    found = {}
    for place in folders.lineage(data):
        arguments = folders.load(place).arguments
        if "reader" in arguments:
            reader = readers.named(arguments["reader"])
            if reader.licence:
                found[f"{reader.name}: {reader.licence}"] = reader.free
        found |= dict(arguments.get("terms", []))
    return sorted(found.items())


def _pack(data: Path, out: Path, terms: list[str]) -> dict[str, Any]:
    places = list(folders.lineage(data))
    rows: list[Judgement] = folders.records(data, "judgements")
    wanted = {image for row in rows for image in row.images}
    known = {name: row for name, row in folders.image_rows(data).items() if name in wanted}
    for place in reversed(places):
        for row in folders.read(place, "captions", ["image_id", "text"]).to_pylist():
            if row["text"] is not None and row["image_id"] in known:
                known[row["image_id"]]["caption"] = row["text"]
    scores = _scores(places, wanted)
    texts = folders.texts(data)
    prompts = sorted({row["prompt_id"] for row in known.values()})
    counts = {"judgements": len(rows), "images": len(known), "prompts": len(prompts), "scores": len(scores)}
    arguments = {
        "packed": folders.load(data).fingerprint,
        "scores": bool(scores),
        "terms": [list(t) for t in _terms(data)],
    }
    batches = math.ceil(len(known) / IMAGES)
    folders.begin(out, folders.Manifest("import", arguments, batches, counts=counts))
    folders.write_part(out, "prompts", 0, [Prompt(name, texts[name]) for name in prompts])
    folders.write_part(out, "judgements", 0, rows)
    if scores:
        folders.write_part(out, "scores", 0, scores)
    for number, part in enumerate(_batches(data, known)):
        folders.write_part(out, "images", number, part)
    _card(out, counts, terms)
    return counts


def _scores(places: list[Path], wanted: set[str]) -> list[Score]:
    rows = (row for place in places for row in folders.records(place, "scores"))
    return [row for row in rows if row.image_id in wanted]


def _batches(data: Path, known: dict[str, dict[str, Any]]) -> Iterator[list[Image]]:
    """The images with their bytes, some at a time."""
    source = folders.image_bytes(data, known)
    while found := list(itertools.islice(source, IMAGES)):
        yield [Image(**known[name], image={"bytes": content, "path": None}) for name, content in found]


def _card(out: Path, counts: dict[str, Any], terms: list[str]) -> None:
    """What the folder holds, after the lines by which `datasets` finds its tables."""
    head = (out / "README.md").read_text(encoding="utf-8").partition("\n\n")[0]
    said = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    lines = [head, "", f"Preferences over pictures: {said}.", ""]
    lines += [f"- Licence of what it was made from: {term}" for term in terms]
    lines += ["", "Tables: `prompts`, `images`, `judgements` (see `kind`, `p`, `status`), written by diffalign.", ""]
    folders.write_atomically(out / "README.md", "\n".join(lines).encode())

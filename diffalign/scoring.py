"""Images -> scores: fixed batches, one decode for all scorers, only what is missing, one part a batch."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from diffalign import decoding, folders, scorers
from diffalign.progress import track
from diffalign.readers import folder as image_folder
from diffalign.records import InputError, Record, Score
from diffalign.scorers import Scorer

# What a picture that cannot be decoded, or that a scorer cannot judge, raises. Any other error is a bug, shown as such.
# what a judge may raise of a picture that is odd though it can be decoded
_UNREADABLE = (OSError, ValueError, SyntaxError, ArithmeticError)


@dataclass(frozen=True)
class _Item:
    """One image to judge, under its prompt."""

    image: str
    prompt: str
    text: str
    index: int | None


@dataclass(frozen=True)
class _Source:
    """The images to judge, in their stored order; those of an image folder come with the tables `out` has to hold."""

    items: list[_Item]
    parents: tuple[dict[str, str], ...]
    arguments: dict[str, object]
    tables: dict[str, list[Record]]


def score(images: Path, /, *, scorer: tuple[str, ...], out: Path, batch: int = 32) -> str:
    """Judge the images of a folder with one or more scorers; the same command again judges only what is missing.

    An image that cannot be read or judged gets no value, but a reason; the others are kept. Beside the records lies
    `scores.csv`, one line an image.

    Args:
        images: Record folder of images, or a folder of images with metadata.csv (file_name, prompt).
        scorer: Names of scorers: say pickscore, hpsv2.1, imagereward, gold, clip=FOLDER, judge=QUESTION,URL,MODEL, or
            file.py:function.
        out: Record folder to write.
        batch: Images per call of a scorer.
    """
    if batch < 1:
        raise InputError(f"batch = {batch}: expected at least 1")
    judges = _judges(scorer)
    source = _records(images, out) if (images / "diffalign.json").exists() else _pictures(images, out)
    cuts = [source.items[i : i + batch] for i in range(0, len(source.items), batch)]
    todo = [n for n, cut in enumerate(cuts) if not folders.is_whole(out, "scores", n, _keys(cut, judges))]
    for judge in judges if todo else ():
        _ = judge.function  # a scorer that cannot be loaded ends the command before anything is written
    arguments = source.arguments | {"scorers": {j.name: [j.revision, j.preprocessing] for j in judges}, "batch": batch}
    manifest = folders.Manifest("score", arguments, len(cuts), source.parents, extends=("images",))
    folders.begin(out, manifest)
    for table, rows in source.tables.items():
        folders.write_part(out, table, 0, rows)
    kept = {n: folders.leading(out, "scores", n, _keys(cuts[n], judges)) for n in todo}
    left = {n: [item for item in cuts[n] if item.image not in {r.image_id for r in kept[n]}] for n in todo}
    stored = folders.image_bytes(out, [item.image for n in todo for item in left[n]])
    for n in track(todo, "score", len(todo)):
        pictures = [_decode(data) for _, (_, data) in zip(left[n], stored, strict=False)]
        folders.write_part(out, "scores", n, [*kept[n], *_rows(left[n], pictures, judges)])
    costs = [f"{j.name}: {j.account(j.function)}; " for j in judges if todo and j.account is not None]
    return "".join(costs) + _finish(out, source.items, judges)


def _judges(names: Sequence[str]) -> list[Scorer]:
    """The scorers named; raises InputError where there is none, or where two have one name."""
    judges = [scorers.load(name) for name in names]
    if not judges:
        raise InputError("scorer: none is named; expected at least one")
    doubled = [j.name for i, j in enumerate(judges) if j.name in {k.name for k in judges[:i]}]
    if doubled:
        raise InputError(f"scorer {doubled[0]}: is named twice; scores are told apart by the scorer's name")
    return judges


def _records(images: Path, out: Path) -> _Source:
    """The images of a record folder."""
    folders.open_folder(images, "sample", "import")
    texts, rows = folders.texts(images), folders.read(images, "images", ["id", "prompt_id", "index"]).to_pylist()
    unknown = [r for r in rows if r["prompt_id"] not in texts]
    if unknown:
        raise InputError(f"{images}: image {unknown[0]['id']} is of no known prompt ({unknown[0]['prompt_id']})")
    if len({r["id"] for r in rows}) < len(rows):
        raise InputError(f"{images}: two images have one id")
    items = [_Item(r["id"], r["prompt_id"], texts[r["prompt_id"]], r["index"]) for r in rows]
    return _Source(items, (folders.parent(out, images),), {}, {})


def _pictures(images: Path, out: Path) -> _Source:
    """The images of a folder with metadata.csv; rows may be added at its end, others may not change."""
    prompts, found = image_folder.read(images, out)
    if (out / "diffalign.json").exists() and folders.load(out).stage == "score" and not folders.load(out).parents:
        before = folders.read(out, "images", ["id", "prompt_id"]).to_pylist()
        now = [{"id": i.id, "prompt_id": i.prompt_id} for i in found]
        changed = [k for k, row in enumerate(before) if now[k : k + 1] != [row]]
        if changed:
            raise InputError(
                f"{images}: row {changed[0] + 1} is not the one {out} was made from; restore it or choose another --out"
            )
    texts = {p.id: p.text for p in prompts}
    items = [_Item(i.id, i.prompt_id, texts[i.prompt_id], i.index) for i in found]
    return _Source(items, (), {"images": len(found), "first": found[0].id}, {"prompts": prompts, "images": found})


def _keys(cut: Sequence[_Item], judges: Sequence[Scorer]) -> dict[str, list[str]]:
    """What the rows of a part are of: every image by every scorer."""
    pairs = [(item, judge.name) for item in cut for judge in judges]
    return {
        "image_id": [item.image for item, _ in pairs],
        "prompt_id": [item.prompt for item, _ in pairs],
        "scorer": [name for _, name in pairs],
    }


def _decode(data: bytes) -> PIL.Image.Image | str:
    """The picture, RGB, or why there is none."""
    try:
        return decoding.rgb(data)
    except PIL.UnidentifiedImageError:
        return "is no picture"
    except decoding.ERRORS as error:
        return _reason(error)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _rows(
    items: Sequence[_Item], pictures: Sequence[PIL.Image.Image | str], judges: Sequence[Scorer]
) -> Iterator[Score]:
    """The scores of the items by all judges, image by image; a picture that is a text is why there is none."""
    readable = [k for k, picture in enumerate(pictures) if not isinstance(picture, str)]
    found: list[dict[int, tuple[float | None, str | None]]] = []
    for judge in judges:
        values = _values(judge, [pictures[k] for k in readable], [items[k].text for k in readable])
        found.append(dict(zip(readable, values, strict=True)))
    for k, item in enumerate(items):
        for judge, values in zip(judges, found, strict=True):
            value, reason = values.get(k, (None, str(pictures[k])))
            reason = None if reason is None else f"image {item.image}: {reason}"
            yield Score(item.image, item.prompt, judge.name, judge.revision, judge.preprocessing, value, reason)


def _values(
    judge: Scorer, pictures: Sequence[PIL.Image.Image], texts: Sequence[str]
) -> list[tuple[float | None, str | None]]:
    """(value, None) or (None, reason) of each picture; where a batch fails, its pictures are judged one by one."""
    if not pictures:
        return []
    try:
        given = judge.function(pictures, texts)
    except scorers.Unavailable:
        raise
    except _UNREADABLE as error:
        if len(pictures) == 1:
            return [(None, _reason(error))]
        return [v for p, t in zip(pictures, texts, strict=True) for v in _values(judge, [p], [t])]
    values = judge.checked(given, len(pictures)).tolist()
    why = given.reasons if isinstance(given, scorers.Answers) else (None,) * len(values)
    found = zip(values, why, strict=True)
    return [(v, None) if np.isfinite(v) else (None, reason or f"the score is {v}") for v, reason in found]


def _finish(out: Path, items: Sequence[_Item], judges: Sequence[Scorer]) -> str:
    """Write `scores.csv`; the summary line."""
    rows = folders.read(out, "scores", ["image_id", "scorer", "value", "reason"]).to_pylist()
    values = {(r["image_id"], r["scorer"]): r["value"] for r in rows}
    reasons = {r["image_id"]: r["reason"] for r in rows if r["reason"]}
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["prompt", "index", "image_id", *(j.name for j in judges), "reason"])
    for i in items:
        row = [values[i.image, j.name] for j in judges]
        writer.writerow([i.text, i.index, i.image, *row, reasons.get(i.image)])
    folders.write_atomically(out / "scores.csv", sink.getvalue().encode())
    said = []
    for judge in judges:
        known = [v for i in items if (v := values[i.image, judge.name]) is not None]
        said.append(f"{judge.name} (mean {np.mean(known):.4g})" if known else f"{judge.name} (no value)")
    missing = sum(v is None for v in values.values())
    note = f"; {missing} values missing (first: {next(iter(reasons.values()))})" if missing else ""
    verb = "pair" if any(j.name not in scorers.MEASURES for j in judges) else "compare OTHER_SCORES"
    return f"{out}: {len(items)} images scored by {', '.join(said)}{note}; next: diffalign {verb} {out} --out …"

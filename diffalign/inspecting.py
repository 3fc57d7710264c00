"""Preference data -> what is wrong with them: counts, and a page with a random sample of rows."""

import itertools
import json as text
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffalign import buckets, folders, gallery
from diffalign.observations import Seen, Side, survey
from diffalign.progress import track
from diffalign.records import InputError

NAMED = 100
TIED = ("tie", "both_good", "both_bad")
_PERSONAL = re.compile(r"(?:^|[_.])(users?|user_id|user_hash|worker|annotator|rater|email|ip|name|country|age|gender)$")
_NSFW = re.compile(r"nsfw|toxic|unsafe|safety|violen", re.IGNORECASE)
# What would teach a model something false, or end a run; ties and unlabelled rows are left out by `import`.
CORRUPTING = ("unreadable", "same_image", "contradictions", "refused", "leaked_prompts")


class Finding(InputError):
    """Data that would corrupt training, under `--strict`."""

    status = 1


def inspect(
    data: Path,
    /,
    *,
    json: Path | None = None,
    page: Path | None = None,
    reader: str | None = None,
    columns: tuple[str, ...] = (),
    images: Path | None = None,
    strict: bool = False,
    resolution: int = 1024,
    sample: int = 24,
    seed: int = 0,
) -> str:
    """Look at preference data before training: what is decided, tied, unlabelled, unreadable, doubled, contradictory.

    Reads whatever `import` reads, and record folders. Nothing is written but the files named here.

    Args:
        data: File, folder or record folder.
        json: File to write all counts to.
        page: HTML file to write, with a random sample of rows.
        reader: Which kind of data it is, where the columns do not say.
        columns: NEW=OLD, say prompt=text: the column OLD is to be read as NEW.
        images: Folder that names of picture files start from.
        strict: Exit with status 1 where something would corrupt training.
        resolution: Of training, to say what aspect-ratio buckets would cut off.
        sample: Rows to show on the page.
        seed: Names the random choice of those rows.
    """
    if page is not None and page.suffix not in (".html", ".htm"):
        raise InputError(f"{page}: expected a name that ends in .html")
    found = survey(data, reader, columns, images, sample if page else 0, seed)
    tally = Tally(resolution)
    for seen in track(found.seen, "inspect", found.rows):
        tally.add(seen)
    report = {"data": str(data), "reader": found.kind} | tally.report(found.columns)
    if json is not None:
        folders.write_atomically(json, (text.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    if page is not None:
        folders.write_atomically(page, gallery.page(report, tally.shown).encode())
    wrong = [f"{report[name]} {name.replace('_', ' ')}" for name in CORRUPTING if report[name]]
    line = _line(report, wrong)
    if strict and wrong:
        first = next(iter(report["unreadable_images"] + report["refused_rows"]), "")
        raise Finding(f"{line}; {first}" if first else line)
    return line


def _line(report: dict[str, Any], wrong: Sequence[str]) -> str:
    state = f"{report['decided']} decided, {report['ties']} ties, {report['unlabelled']} unlabelled"
    verdict = f"would corrupt training: {', '.join(wrong)}" if wrong else "nothing that would corrupt training"
    verb = "train RECIPE --data" if report["reader"] == "records" else "import"
    return (
        f"{report['data']}: {report['rows']} rows as {report['reader']} ({state}) of {report['unique_images']} images "
        f"and {report['unique_prompts']} prompts; {verdict}; next: diffalign {verb} {report['data']} --out …"
    )


class Tally:
    """Counts that grow row by row; it lives as long as one inspection."""

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution
        self.shown: list[Seen] = []
        self._counts: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._refused: list[str] = []
        self._unreadable: dict[str, str] = {}
        self._images: dict[str, Side] = {}
        self._prompts: set[str] = set()
        self._splits: dict[str, set[str]] = defaultdict(set)
        self._image_splits: dict[str, set[str]] = defaultdict(set)
        self._rows: Counter[tuple[str, ...]] = Counter()
        self._said: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        self._votes: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
        self._models: dict[tuple[str, str], list[bool]] = defaultdict(list)
        self._sizes: Counter[str] = Counter()
        self._cuts: list[float] = []
        self._gaps: list[bool] = []
        self._minority: list[float] = []

    def add(self, seen: Seen) -> None:
        """One more row."""
        self._counts["rows"] += 1
        self._statuses[seen.status] += 1
        if seen.error:
            self._refused.append(seen.error)
        if seen.prompt:
            self._prompts.add(seen.prompt)
            self._splits[" ".join(seen.prompt.casefold().split())].add(seen.split)
        for side in seen.sides:
            self._add_image(seen, side)
        readable = [side.sha256 for side in seen.sides if side.sha256]
        self._counts["same_image"] += len(set(readable)) < len(readable)
        if any(side.data for side in seen.sides):
            self.shown.append(seen)
        if seen.status == "refused":
            return
        self._rows[seen.prompt, *sorted(readable)] += 1
        self._add_sizes(seen)
        if seen.status in ("decided", *TIED):
            self._add_label(seen)

    def _add_image(self, seen: Seen, side: Side) -> None:
        if side.picture is None:
            where = f"{seen.where}, field {side.field}"
            self._unreadable.setdefault(side.sha256 or where, f"{where}: {side.error}")
        if side.sha256:
            self._counts["image_places"] += 1
            self._images.setdefault(side.sha256, side)
            self._image_splits[side.sha256].add(seen.split)

    def _add_sizes(self, seen: Seen) -> None:
        sizes = [(s.picture.width, s.picture.height) for s in seen.sides if s.picture]
        if len(sizes) < len(seen.sides) or not sizes:
            return
        self._counts["unequal_sizes"] += len(set(sizes)) > 1
        self._sizes[" | ".join(f"{w}x{h}" for w, h in sizes)] += 1
        bucket = buckets.shared(sizes, self.resolution)
        self._cuts.append(max(buckets.hidden(size, bucket) for size in sizes))
        looks = [s.picture.look for s in seen.sides if s.picture]
        close = any((a ^ b).bit_count() <= 2 for a, b in itertools.combinations(looks, 2))
        self._counts["near_same"] += close and len({s.sha256 for s in seen.sides}) > 1

    def _add_label(self, seen: Seen) -> None:
        for a, b in itertools.combinations(range(len(seen.values)), 2):
            first, second, value = seen.sides[a], seen.sides[b], seen.values[a] - seen.values[b]
            if first.sha256 and second.sha256 and value and first.sha256 != second.sha256:
                left, right = sorted((first.sha256, second.sha256))
                self._said[seen.prompt, left, right].append(value if left == first.sha256 else -value)
                won = [(vote > 0.5) == (left == first.sha256) for vote in seen.votes if vote != 0.5] or [value > 0]
                self._votes[seen.prompt, left, right] += won
            if value and first.model and second.model and first.model != second.model:
                low, high = sorted((first.model, second.model))
                self._models[low, high].append((value > 0) == (low == first.model))
        if len(seen.values) == 2 and seen.status == "decided":
            self._minority.append(min(seen.values))
            if seen.gap:
                self._gaps.append((seen.gap > 0) == (seen.values[0] > seen.values[1]))

    def _looks(self) -> Counter[int]:
        """How many different files show what looks alike."""
        return Counter(side.picture.look for side in self._images.values() if side.picture)

    def report(self, columns: Sequence[str]) -> dict[str, Any]:
        """All counts, as they are written to JSON."""
        ties = {name: self._statuses[name] for name in TIED}
        known = {split for found in self._splits.values() for split in found if split}
        leaked = [p for p, found in self._splits.items() if len(found - {""}) > 1]
        contradictions = sum(min(v) < 0 < max(v) for v in self._said.values())
        return {
            "rows": self._counts["rows"],
            "decided": self._statuses["decided"],
            "ties": sum(ties.values()),
            "unlabelled": self._statuses["unlabelled"] + self._statuses["no_preference"],
            "refused": len(self._refused),
            "unreadable": len(self._unreadable),
            "same_image": self._counts["same_image"],
            "unique_images": len(self._images),
            "unique_prompts": len(self._prompts),
            "contradictions": contradictions,
            "groups": len(self._rows),
            "ties_by_kind": ties,
            "repeated_rows": sum(n - 1 for n in self._rows.values()),
            "repeated_images": self._counts["image_places"] - len(self._images),
            "near_same": self._counts["near_same"],
            "near_duplicates": sum(n for n in self._looks().values() if n > 1),
            "unequal_sizes": self._counts["unequal_sizes"],
            "sizes": dict(self._sizes.most_common(20)),
            "modes": dict(Counter(s.picture.mode for s in self._images.values() if s.picture).most_common()),
            "buckets": buckets.summary(self._cuts, self.resolution),
            "splits": sorted(known),
            "leaked_prompts": len(leaked),
            "leaked_images": sum(len(found - {""}) > 1 for found in self._image_splits.values()),
            "model_baseline": _baseline(self._models),
            "score_agreement": _share(self._gaps),
            "label_noise": _noise(list(self._votes.values()), self._minority),
            "personal_columns": [c for c in columns if _PERSONAL.search(c)],
            "nsfw_columns": [c for c in columns if _NSFW.search(c)],
            "unreadable_images": list(self._unreadable.values())[:NAMED],
            "refused_rows": self._refused[:NAMED],
        }


def _share(values: Sequence[bool]) -> dict[str, Any]:
    return {"pairs": len(values), "share": sum(values) / len(values) if values else None}


def _baseline(models: dict[tuple[str, str], list[bool]]) -> dict[str, Any]:
    """How often the label is what the two generators' names alone say, by the majority of their pairs."""
    right = sum(max(sum(won), len(won) - sum(won)) for won in models.values())
    total = sum(map(len, models.values()))
    pairs = {" | ".join(names): _share(won) for names, won in sorted(models.items())}
    return {"pairs": total, "accuracy": right / total if total else None, "first_wins": pairs}


def _noise(votes: Sequence[Sequence[bool]], minority: Sequence[float]) -> dict[str, Any]:
    """How often two judgements of one pair disagree, d, and the rate e of flipped labels behind it: d = 2 e (1 - e)."""
    several = [v for v in votes if len(v) > 1]
    pairs = sum(math.comb(len(v), 2) for v in several)
    against = sum(sum(v) * (len(v) - sum(v)) for v in several)
    d = against / pairs if pairs else None
    flipped = None if d is None else (1 - math.sqrt(max(0.0, 1 - 2 * d))) / 2
    soft = [m for m in minority if 0 < m < 0.5]
    return {
        "judged_more_than_once": len(several),
        "disagreement": d,
        "flipped_labels": flipped,
        "mean_minority_share": sum(soft) / len(soft) if soft else None,
    }

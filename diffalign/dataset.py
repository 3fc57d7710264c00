"""Records -> batches: groups in an endless, named order; whatever is done to a group is done to all its images."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from diffalign import conversions, decoding, folders
from diffalign.objectives.base import Advantages, Judgement, Pairs, Ranking, Unpaired
from diffalign.records import InputError, prompt_id
from diffalign.records import Judgement as Row
from diffalign.streams import stream

KINDS: dict[str, type[Judgement]] = {
    "pair": Pairs, "unpaired": Unpaired, "ranking": Ranking, "advantages": Advantages
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Images judged together: their ids in sorted order, their prompt and the judgements that mention them."""

    id: str
    prompt: str
    images: tuple[str, ...]
    judgements: tuple[Row, ...]


@dataclass(frozen=True)
class Visit:
    """A group at its `draw`-th visit."""

    group: Group
    draw: int


class Dataset:
    """The groups of a pairs folder. Raises InputError where there are none, or where kinds of judgement are mixed.

    `captions` "own" shows an image under its own caption where it has one (DCPO); `labels` "swapped" reads every
    judgement the other way round (NPO).
    """

    def __init__(
        self,
        folder: Path,
        *,
        captions: Literal["prompt", "own"] = "prompt",
        labels: Literal["as_given", "swapped"] = "as_given",
    ) -> None:
        self.fingerprint = folders.open_folder(folder, "pair", "import", "filter", "caption").fingerprint
        rows = [r for r in folders.records(folder, "judgements") if r.status in ("decided", "tie")]
        if not rows:
            raise InputError(f"{folder}: holds no decided judgement, so there is nothing to train on")
        kinds = sorted({r.kind for r in rows})
        if len(kinds) > 1:
            raise InputError(f"{folder}: judgements of kinds {', '.join(kinds)} in one folder; expected one kind")
        self.folder, self.kind = folder, kinds[0]
        self.images = folders.image_rows(folder)
        self.texts = folders.texts(folder)
        self.groups = self._groups([swapped(r) for r in rows] if labels == "swapped" else rows)
        self.captions = self._captions() if captions == "own" else {}
        self.texts |= {prompt_id(text): text for text in self.captions.values()}

    def _captions(self) -> dict[str, str]:
        """Image id -> its own caption, as `caption` wrote it or it came; raises InputError where no image has one."""
        found = {i: self.images[i]["caption"] for i in self.image_ids() if self.images[i]["caption"]}
        for place in reversed(list(folders.lineage(self.folder))):
            rows = folders.read(place, "captions", ["image_id", "text"]).to_pylist()
            found |= {r["image_id"]: r["text"] for r in rows if r["text"] is not None}
        if not found:
            raise InputError(f"{self.folder}: captions = own, but no image has a caption of its own (field caption)")
        return found

    def _groups(self, rows: Sequence[Row]) -> list[Group]:
        gathered: dict[str, list[Row]] = {}
        for row in rows:
            gathered.setdefault(row.group, []).append(row)
        return [self._group(name, gathered[name]) for name in sorted(gathered)]

    def _group(self, name: str, rows: Sequence[Row]) -> Group:
        images = tuple(sorted({i for r in rows for i in r.images}))
        unknown = [i for i in images if i not in self.images]
        if unknown:
            raise InputError(
                f"{self.folder}: judgement {rows[0].id} names image {unknown[0]}, which is in no parent folder"
            )
        prompts = {self.images[i]["prompt_id"] for i in images}
        if len(prompts) > 1:
            raise InputError(
                f"{self.folder}: judgement {rows[0].id} compares images of {len(prompts)} prompts; expected one"
            )
        if rows[0].kind != "pair" and len(rows) > 1:
            rows = [conversions.merged(rows)]
        return Group(name, prompts.pop(), images, tuple(sorted(rows, key=lambda r: r.id)))

    def image_ids(self) -> list[str]:
        """The unique images that judgements mention, sorted."""
        return sorted({i for g in self.groups for i in g.images})

    def text_of(self, group: Group, image: str) -> str:
        """The id of the text that an image is shown under."""
        return prompt_id(self.captions[image]) if image in self.captions else group.prompt

    def text_ids(self) -> list[str]:
        """The unique texts that images are shown under, sorted."""
        return sorted({self.text_of(g, i) for g in self.groups for i in g.images})

    def visits(self, seed: int, step: int, batch: int, stages: int = 1, every: int = 1) -> list[Visit]:
        """The groups of one optimizer step: an endless chain of permutations of all groups, cut every `batch`.

        With several `stages`, stage s = min(step // every, stages - 1) chains permutations of the easiest
        (s + 1) / stages of the groups, and draws are numbered on from stage to stage so that none comes twice.
        """
        stage, visited = min(step // every, stages - 1), every * batch
        sizes = [math.ceil(len(self.groups) * (s + 1) / stages) for s in range(stage + 1)]
        first, n = sum(math.ceil(visited / size) for size in sizes[:-1]), sizes[-1]
        pool = self.groups if stages == 1 else self.easiest[:n]
        places = range(step * batch - stage * visited, (step + 1) * batch - stage * visited)
        orders = {e: stream("order", seed, first + e).permutation(n) for e in {p // n for p in places}}
        return [Visit(pool[orders[p // n][p % n]], first + p // n) for p in places]

    def require_gaps(self, why: str) -> None:
        """Raise InputError naming the first judgement without a score gap."""
        if rows := [r for g in self.groups for r in g.judgements if r.score_gap is None]:
            raise InputError(f"{self.folder}: judgement {rows[0].id}, field score_gap: is missing, and {why}")

    def require_shares(self, who: str) -> None:
        """Raise InputError naming the first ranking whose scores are not shares of duels won, in [0, 1]."""
        if rows := [r for g in self.groups for r in g.judgements if not 0 <= min(r.scores) <= max(r.scores) <= 1]:
            raise InputError(
                f"{self.folder}: judgement {rows[0].id}, field scores: lie in [{min(rows[0].scores):g}, "
                f"{max(rows[0].scores):g}]; {who} expects shares of duels won, in [0, 1], as `pair` writes them"
            )

    @cached_property
    def easiest(self) -> list[Group]:
        """The groups by their largest score gap, widest first; raises InputError where a judgement has no gap."""
        self.require_gaps("a curriculum goes by it")
        return sorted(self.groups, key=lambda g: (-max(abs(r.score_gap) for r in g.judgements), g.id))


def swapped(row: Row) -> Row:
    """The judgement read the other way round: P becomes 1 - P, scores are reversed in their range, advantages negated.

    The score gap stays what the scorer said of the first image less the second.
    """
    scores = row.scores
    if scores is not None:
        scores = tuple((0.0 if row.kind == "advantages" else min(scores) + max(scores)) - s for s in scores)
    return dataclasses.replace(row, p=None if row.p is None else 1 - row.p, scores=scores)


def judge(visits: Sequence[Visit], kind: str) -> Judgement:
    """The judgements of a batch, their images as indices into the concatenation of the visits' images."""
    place, start = {}, 0
    for number, visit in enumerate(visits):
        place |= {(number, image): start + i for i, image in enumerate(visit.group.images)}
        start += len(visit.group.images)
    rows = [(n, r) for n, v in enumerate(visits) for r in v.group.judgements]
    weight = torch.tensor([r.weight for _, r in rows], dtype=torch.float64)
    if kind == "pair":
        # a record's gap is that of its first image over its second, a batch's that of the chosen over the rejected
        gaps = [math.nan if r.score_gap is None else r.score_gap * (1 if r.p >= 0.5 else -1) for _, r in rows]
        return Pairs(
            chosen=torch.tensor([place[n, r.images[r.p < 0.5]] for n, r in rows]),
            rejected=torch.tensor([place[n, r.images[r.p >= 0.5]] for n, r in rows]),
            p=torch.tensor([max(r.p, 1 - r.p) for _, r in rows], dtype=torch.float64),
            weight=weight,
            score_gap=torch.tensor(gaps, dtype=torch.float64),
        )
    values = torch.zeros(start, dtype=torch.float64)
    group = torch.zeros(start, dtype=torch.long)
    for number, (n, row) in enumerate(rows):
        for i, image in enumerate(row.images):
            values[place[n, image]] = row.p if kind == "unpaired" else row.scores[i]
            group[place[n, image]] = number
    if kind == "unpaired":
        return Unpaired(values, weight)
    return (Ranking if kind == "ranking" else Advantages)(values, group, weight)


def pixels(folder: Path, ids: Sequence[str], resolution: int) -> Iterator[tuple[str, Tensor]]:
    """(image id, pixels in [-1, 1], (3, resolution, resolution)): shorter side resized, centre cropped, in stored
    order.
    """
    for name, data in folders.image_bytes(folder, ids):
        try:
            picture = decoding.rgb(data)
        except decoding.ERRORS as error:
            raise InputError(f"{folder}: image {name} cannot be decoded ({error})") from None
        scale = resolution / min(picture.size)
        if scale != 1:
            size = tuple(max(resolution, round(s * scale)) for s in picture.size)
            picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
        left, top = (picture.width - resolution) // 2, (picture.height - resolution) // 2
        picture = picture.crop((left, top, left + resolution, top + resolution))
        yield name, torch.from_numpy(np.asarray(picture, np.float32).copy()).permute(2, 0, 1) / 127.5 - 1

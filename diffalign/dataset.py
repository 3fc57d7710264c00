"""Records -> batches: groups in an endless, named order; whatever is done to a group is done to all its images."""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from diffalign import folders
from diffalign.objectives.base import Advantages, Judgement, Pairs, Ranking, Unpaired
from diffalign.records import InputError
from diffalign.records import Judgement as Row
from diffalign.streams import stream


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
    """The groups of a pairs folder. Raises InputError where there are none, or where kinds of judgement are mixed."""

    def __init__(self, folder: Path) -> None:
        folders.open_folder(folder, "pair")
        rows = [r for r in folders.records(folder, "judgements") if r.status in ("decided", "tie")]
        if not rows:
            raise InputError(f"{folder}: holds no decided judgement, so there is nothing to train on")
        kinds = sorted({r.kind for r in rows})
        if len(kinds) > 1:
            raise InputError(f"{folder}: judgements of kinds {', '.join(kinds)} in one folder; expected one kind")
        self.folder, self.kind = folder, kinds[0]
        self.images = folders.image_rows(folder)
        self.texts = folders.texts(folder)
        self.groups = self._groups(rows)

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
        return Group(name, prompts.pop(), images, tuple(sorted(rows, key=lambda r: r.id)))

    def image_ids(self) -> list[str]:
        """The unique images that judgements mention, sorted."""
        return sorted({i for g in self.groups for i in g.images})

    def prompt_ids(self) -> list[str]:
        """The unique prompts of the groups, sorted."""
        return sorted({g.prompt for g in self.groups})

    def visits(self, seed: int, step: int, batch: int) -> list[Visit]:
        """The groups of one optimizer step: an endless chain of permutations of all groups, cut every `batch`."""
        n = len(self.groups)
        places = range(step * batch, (step + 1) * batch)
        orders = {e: stream("order", seed, e).permutation(n) for e in {p // n for p in places}}
        return [Visit(self.groups[orders[p // n][p % n]], p // n) for p in places]


def judge(visits: Sequence[Visit], kind: str) -> Judgement:
    """The judgements of a batch, their images as indices into the concatenation of the visits' images."""
    place, start = {}, 0
    for number, visit in enumerate(visits):
        place |= {(number, image): start + i for i, image in enumerate(visit.group.images)}
        start += len(visit.group.images)
    rows = [(n, r) for n, v in enumerate(visits) for r in v.group.judgements]
    weight = torch.tensor([r.weight for _, r in rows], dtype=torch.float64)
    if kind == "pair":
        gaps = [math.nan if r.score_gap is None else abs(r.score_gap) for _, r in rows]
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
            picture = PIL.Image.open(io.BytesIO(data)).convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{folder}: image {name} cannot be decoded ({error})") from None
        scale = resolution / min(picture.size)
        if scale != 1:
            size = tuple(max(resolution, round(s * scale)) for s in picture.size)
            picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
        left, top = (picture.width - resolution) // 2, (picture.height - resolution) // 2
        picture = picture.crop((left, top, left + resolution, top + resolution))
        yield name, torch.from_numpy(np.asarray(picture, np.float32).copy()).permute(2, 0, 1) / 127.5 - 1

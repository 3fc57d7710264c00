"""Records -> batches: groups in an endless, named order; whatever is done to a group is done to all its images."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from diffalign import conversions, folders, index
from diffalign.index import Index, judgement
from diffalign.objectives.base import Advantages, Judgement, Objective, Pairs, Ranking, Unpaired
from diffalign.records import InputError
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


class Groups(Sequence[Group]):
    """The groups of an index, each made when it is asked for; `order` says which and in which order."""

    def __init__(self, found: Index, order: np.ndarray, *, swap: bool) -> None:
        self._index, self._order, self._swap = found, order, swap

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, at: int | slice) -> Group | list[Group]:
        if isinstance(at, slice):
            return [self._group(int(n)) for n in self._order[at]]
        return self._group(int(self._order[at]))

    def _group(self, number: int) -> Group:
        start, end = self._index.starts[number], self._index.starts[number + 1]
        found = self._index.judgements.slice(start, end - start).to_pylist()
        rows = [judgement(row) for row in found]
        images = tuple(sorted({i for r in rows for i in r.images}))
        prompt = self._index.images.table["prompt_id"][found[0]["rows"][0]].as_py()
        if self._swap:
            rows = [swapped(row) for row in rows]
        if rows[0].kind != "pair" and len(rows) > 1:
            rows = [conversions.merged(rows)]
        return Group(rows[0].group, prompt, images, tuple(sorted(rows, key=lambda r: r.id)))


class Dataset:
    """The groups of a pairs folder. Raises InputError where there are none, or where kinds of judgement are mixed.

    `captions` "own" shows an image under its own caption where it has one (DCPO); `labels` "swapped" reads every
    judgement the other way round (NPO). With `cache` the tables lie there and are mapped, else they are in memory.
    """

    def __init__(
        self,
        folder: Path,
        *,
        captions: Literal["prompt", "own"] = "prompt",
        labels: Literal["as_given", "swapped"] = "as_given",
        cache: Path | None = None,
    ) -> None:
        self.fingerprint = folders.open_folder(folder, *folders.JUDGED).fingerprint
        self.folder, self.index = folder, index.load(folder, cache)
        self.kind: str = self.index.judgements["kind"][0].as_py()
        self.images, self.texts = self.index.images, self.index.texts
        self._swap, self._own = labels == "swapped", captions == "own"
        self.groups: Sequence[Group] = self._in(np.arange(len(self.index.starts) - 1))
        if self._own and self.images.table["caption"].null_count == len(self.images):
            raise InputError(f"{folder}: captions = own, but no image has a caption of its own (field caption)")

    def _in(self, order: np.ndarray) -> Groups:
        return Groups(self.index, order, swap=self._swap)

    def image_ids(self) -> list[str]:
        """The unique images that judgements mention, in the order in which they are stored."""
        return self.images.table["id"].to_pylist()

    def shown(self, group: Group, image: str) -> str:
        """The text that an image is shown under."""
        return (self.images[image]["caption"] if self._own else None) or self.texts[group.prompt]

    def shown_texts(self) -> Iterator[str]:
        """The unique texts that images are shown under."""
        table = self.images.table
        own = pc.fill_null(pc.not_equal(table["caption"], ""), False) if self._own else pa.nulls(len(table), pa.bool_())
        plain = table["prompt_id"].filter(pc.invert(pc.fill_null(own, False)))
        ids = pc.unique(plain)
        texts = pa.concat_arrays(
            [self.texts.of(ids.take(pc.sort_indices(ids))), pc.unique(table["caption"].filter(own))]
        )
        return (text.as_py() for text in pc.unique(texts))

    def visits(self, seed: int, step: int, batch: int, stages: int = 1, every: int = 1, draws: int = 0) -> list[Visit]:
        """The groups of one optimizer step: an endless chain of permutations of all groups, cut every `batch`.

        With several `stages`, stage s = min(step // every, stages - 1) chains permutations of the easiest
        (s + 1) / stages of the groups, and draws are numbered on from stage to stage so that none comes twice.
        With `draws` they are numbered modulo it.
        """
        stage, visited = min(step // every, stages - 1), every * batch
        sizes = [math.ceil(len(self.groups) * (s + 1) / stages) for s in range(stage + 1)]
        first, n = sum(math.ceil(visited / size) for size in sizes[:-1]), sizes[-1]
        pool = self.groups if stages == 1 else self.easiest[:n]
        places = range(step * batch - stage * visited, (step + 1) * batch - stage * visited)
        orders = {e: _order(seed, first + e, n) for e in {p // n for p in places}}
        numbers = [first + p // n for p in places]
        found = zip((pool[orders[p // n][p % n]] for p in places), numbers, strict=True)
        return [Visit(group, number % draws if draws else number) for group, number in found]

    def expect(self, objective: Objective, *, staged: bool = False) -> None:
        """Raise InputError where an objective cannot learn from these judgements; `staged`: by their score gaps."""
        name = type(objective).__name__
        if not issubclass(KINDS[self.kind], objective.judgement):
            raise InputError(
                f"{self.folder}: holds judgements of kind {self.kind}, but {name} learns from "
                f"{objective.judgement.__name__}"
            )
        if objective.judgement is not Judgement:  # a loss of likelihood alone asks for no preference
            self.require_preferences(name)
        if objective.needs_gaps:
            self.require_gaps(f"{name} reads it")
        if objective.needs_shares:
            self.require_shares(name)
        if staged:
            _ = self.easiest  # refuses missing score gaps

    def require_gaps(self, why: str) -> None:
        """Raise InputError naming the first judgement without a score gap."""
        rows = self.index.judgements
        if rows["score_gap"].null_count:
            name = rows["id"][pc.index(pc.is_null(rows["score_gap"]), True).as_py()].as_py()
            raise InputError(f"{self.folder}: judgement {name}, field score_gap: is missing, and {why}")

    def require_preferences(self, who: str) -> None:
        """Raise InputError where every pair is a tie, or every single image neither liked nor disliked."""
        shares = self.index.judgements["p"]
        if self.kind in ("pair", "unpaired") and pc.all(pc.equal(shares, 0.5)).as_py():
            raise InputError(
                f"{self.folder}: all {len(shares)} judgements are ties, p = 0.5; {who} learns nothing from them"
            )

    def require_shares(self, who: str) -> None:
        """Raise InputError naming the first ranking whose scores are not shares of duels won, in [0, 1]."""
        rows = self.index.judgements
        values = pc.list_flatten(rows["scores"])
        wrong = pc.invert(pc.and_(pc.less_equal(0.0, values), pc.less_equal(values, 1.0)))
        if pc.any(wrong).as_py():
            owner = pc.list_parent_indices(rows["scores"].combine_chunks())[pc.index(wrong, True).as_py()].as_py()
            scores = rows["scores"][owner].as_py()
            raise InputError(
                f"{self.folder}: judgement {rows['id'][owner].as_py()}, field scores: lie in [{min(scores):g}, "
                f"{max(scores):g}]; {who} expects shares of duels won, in [0, 1], as `pair` writes them"
            )

    @cached_property
    def easiest(self) -> Sequence[Group]:
        """The groups by their largest score gap, widest first; raises InputError where a judgement has no gap."""
        self.require_gaps("a curriculum goes by it")
        gaps = np.abs(self.index.judgements["score_gap"].to_numpy())
        return self._in(np.argsort(-np.maximum.reduceat(gaps, self.index.starts[:-1]), kind="stable"))


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, groups: int) -> np.ndarray:
    """The permutation of one epoch, kept while its steps are taken."""
    return stream("order", seed, epoch).permutation(groups)


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

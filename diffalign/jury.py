"""Scorers who see pictures as they are drawn: part by part the scores that `score` makes of the folder afterwards."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import PIL.Image

from diffalign import folders, scoring, verdicts
from diffalign.inputs import Item
from diffalign.records import Image, InputError
from diffalign.scorers import Scorer


@dataclass(frozen=True)
class Jury:
    """Who judges the pictures of the folder `images`, in batches of `batch`, and the folder of their scores.

    `parts`: which parts of the images are batches of `score`, as all are but where a list has several sizes.
    """

    images: Path
    out: Path
    manifest: folders.Manifest
    judges: tuple[Scorer, ...]
    batch: int
    parts: frozenset[int]

    def load(self) -> None:
        """Load the scorers, so that one which cannot be ends the command before anything is drawn."""
        for judge in self.judges:
            _ = judge.function

    def see(self, number: int, rows: Sequence[Image], texts: Sequence[str], pictures: Mapping[str, np.ndarray]) -> None:
        """Judge part `number` of the images by those of its pictures that are new, id -> uint8, (height, width, 3);
        where older ones are not judged either, all are left to `conclude`.
        """
        if number not in self.parts:
            return
        # one object for all images of one file, as where they are read
        seen = {r.sha256: PIL.Image.fromarray(pictures[r.id]) for r in rows if r.id in pictures}
        cut = [Item(r.id, r.prompt_id, text, r.index, r.sha256) for r, text in zip(rows, texts, strict=True)]
        known, left = verdicts.begun(self.out, number, cut, self.judges)
        if left and all(item.image in pictures for item in left):
            verdicts.write(self.out, number, known, left, [seen[item.picture] for item in left], self.judges)

    def conclude(self) -> str:
        """Judge what was not seen, from the folder of the images, as `score` does; its summary line."""
        return scoring.judged(self.images, self.judges, self.out, self.batch)


def convened(
    images: Path, drawn: folders.Manifest, out: Path | None, names: Sequence[str], sizes: Sequence[int], batch: int
) -> Jury | None:
    """The jury of a folder of the manifest `drawn`, whose parts have these sizes; None where none is asked.

    Raises InputError where half of one is asked, where a scorer is unknown, or where `out` holds something else.
    """
    if not names and out is None:
        return None
    if not names or out is None:
        raise InputError(f"scorer = {' '.join(names) or 'none'}, scores = {out or 'none'}: expected both or neither")
    if out.resolve() == images.resolve():
        raise InputError(f"scores = {out}: is the folder of the images; expected another one")
    judges = tuple(scoring.opened(names, "float32"))
    parent = {"path": os.path.relpath(images.resolve(), out.resolve()), "fingerprint": drawn.fingerprint}
    manifest = replace(scoring.manifest(out, {}, (parent,), judges, batch), batches=-(-sum(sizes) // batch))
    folders.check(out, manifest)
    manifest = replace(manifest, counts=scoring.unfinished(out, manifest))
    whole = [n for n, start in enumerate(accumulate(sizes[:-1], initial=0)) if start == n * batch]
    parts = frozenset(n for n in whole if sizes[n] == batch or n == len(sizes) - 1)
    return Jury(images, out, manifest, judges, batch, parts)

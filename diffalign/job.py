"""What one call of `sample` draws, as data: its folder's manifest, its pictures' ids, and how a batch is written."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from diffalign import folders, keeping, plan, streams, verdicts
from diffalign.drawing import Artist, Drawn, to_png
from diffalign.manifest import versions
from diffalign.plan import Identity, Plan
from diffalign.prompts import PromptList
from diffalign.records import Image
from diffalign.scorers import Scorer
from diffalign.worklist import Cut

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a call draws, where to, and in which batches."""

    out: Path
    plan: Plan
    identity: Identity
    listed: PromptList
    seed: int
    per_prompt: int
    batch: int
    decode: int
    keep_latents: bool
    nsfw: str

    def manifest(self, batches: int, flag: Scorer | None) -> folders.Manifest:
        """What `diffalign.json` says of the folder; arguments that are as they are mostly are left out."""
        known = self.identity
        arguments: dict[str, Any] = {
            "model": known.model,
            "adapter": known.adapter,
            "prompts": self.listed.fingerprint,
            "per_prompt": self.per_prompt,
            "seed": self.seed,
            "batch": self.batch,
            "sampler": list(known.sampler),
            "threads": torch.get_num_threads(),
        }
        arguments |= known.other
        arguments |= {"keep_latents": True} if self.keep_latents else {}
        arguments |= {"decode": self.decode} if self.decode != 16 else {}
        arguments |= {"nsfw": [flag.name, flag.revision]} if flag else {}
        told = plan.given(self.plan)
        return folders.Manifest("sample", arguments, batches, extends=("per_prompt",), given=told)

    def check(self, manifest: folders.Manifest) -> None:
        """As `folders.check`, naming as the command line does what the manifest keeps as one hash or list."""
        before = folders.load(self.out) if (self.out / "diffalign.json").exists() else manifest
        parts = dict.fromkeys(("steps", "guidance", "height", "width"), "sampler") | {"lora": "adapter"}
        for name, argument in parts.items():
            old, new = before.given.get(name), manifest.given[name]
            new = list(new) if isinstance(new, tuple) and before is not manifest else new
            if before.given and old != new and before.arguments.get(argument) != manifest.arguments[argument]:
                raise folders.changed(self.out, name, old, new)
        folders.check(self.out, manifest)

    def ids(self, cut: Cut) -> list[str]:
        """The ids of a batch's pictures."""
        return [self.identity.image(p.id, p.text, self.seed, index, cut.size) for p, index in cut.work]

    def is_whole(self, number: int, cut: Cut) -> bool:
        """Whether a batch is on disk, with its latents where they are kept."""
        ids = self.ids(cut)
        there = folders.is_whole(self.out, "images", number, {"id": ids})
        return there and (not self.keep_latents or keeping.is_whole(self.out, number, ids))


def write(
    job: Job, number: int, cut: Cut, artist: Artist, flag: Scorer | None, made: Drawn
) -> tuple[list[Image], dict[str, np.ndarray]]:
    """Write one batch; pictures that lie there already may have been scored, and stay as they are.

    Returns its rows, and the pictures that are new, by id.
    """
    ids = job.ids(cut)
    kept = folders.leading(job.out, "images", number, {"id": ids})
    if job.keep_latents:
        before = keeping.read(job.out, number, [row.id for row in kept])
        keeping.write(job.out, number, dict(zip(ids, made.latents, strict=True)) | before)
    values = _flags(flag, made.pictures, [p.text for p, _ in cut.work])
    how = plan.words(job.plan, artist, artist.size)
    noted = ", ".join(f"{name} {version}" for name, version in versions().items())
    rows = []
    for key, (prompt, index), picture, value in zip(ids, cut.work, made.pictures, values, strict=True):
        png = to_png(picture)
        rows.append(
            Image(
                key, prompt.id, {"bytes": png, "path": f"{key}.png"}, hashlib.sha256(png).hexdigest(),
                artist.size[1], artist.size[0], model=job.identity.model, adapter=job.identity.adapter, sampler=how,
                seed=job.seed, index=index, noise=streams.name("sampling", job.seed, prompt.id, index),
                versions=noted, nsfw=value,
            )
        )  # fmt: skip
    rows[: len(kept)] = kept
    folders.write_part(job.out, "images", number, rows)
    return rows, dict(zip(ids[len(kept) :], made.pictures[len(kept) :], strict=True))


def _flags(flag: Scorer | None, pictures: np.ndarray, texts: Sequence[str]) -> list[float | None]:
    """What the scorer says of each picture; None where none is asked, or where it gives no number, which is said."""
    if flag is None:
        return [None] * len(texts)
    found = verdicts.values(flag, [PIL.Image.fromarray(picture) for picture in pictures], texts)
    reasons = [reason for _, reason in found if reason]
    if reasons:
        log.warning("nsfw: %d pictures without a value (first: %s)", len(reasons), reasons[0])
    return [given[0] for given, _ in found]

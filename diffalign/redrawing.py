"""One picture of a folder, drawn again from what its row and the folder's manifest say."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from diffalign import cache, decoding, folders, manifest, plan
from diffalign.drawing import to_png
from diffalign.records import InputError, Prompt


class Changed(InputError):
    """A picture is not the recorded one when it is drawn again."""

    status: ClassVar[int] = 1


def redraw(out: Path, image: str, model: str, config: str, lora: Sequence[str], device: str) -> str:
    """Draw an image of a folder again, in the batch that it was drawn in, into OUT/again; says that its bytes are the
    recorded ones, else raises Changed.

    `model`, `config` and `lora` say where those files lie now, where they have been moved. Raises InputError where
    there is no such image, or where model or adapters are not those that drew it.
    """
    told = manifest.load(out)
    if told.stage != "sample" or not told.given:
        raise InputError(f"{out}: holds nothing that `sample` of this version drew")
    asked = plan.remembered(told.given)
    if model:
        asked = replace(asked, model=model, config=config)
    if lora:
        asked = replace(asked, lora=tuple(map(str, lora)))
    number, rows = folders.part_with(out, "images", image)
    row = next(r for r in rows if r.id == image)
    known = plan.identity(asked)
    for what, now, then in (("model", known.model, row.model), ("adapter", known.adapter, row.adapter)):
        if now != then:
            raise InputError(f"{out}: image {image} was drawn by {what} {then}, not {now}; name the right --{what}")
    torch.set_num_threads(int(told.arguments["threads"]))
    artist = plan.artist(asked, row.seed, int(told.arguments.get("decode", 16)), device)
    artist.resize(row.height, row.width)
    artist.encode(*_shares(out, {r.prompt_id for r in rows}))
    picture = artist.draw([(r.prompt_id, r.index) for r in rows])[rows.index(row)]
    png = to_png(picture)
    path = out / "again" / f"{image}.png"
    manifest.write_atomically(path, png)
    if hashlib.sha256(png).hexdigest() == row.sha256:
        return f"{path}: the recorded picture, byte for byte ({row.sampler}, part {number})"
    before = np.asarray(decoding.rgb(row.image["bytes"])).astype(int)
    off = np.abs(before - picture.astype(int))
    here = ", ".join(f"{name} {version}" for name, version in manifest.versions().items())
    raise Changed(
        f"{path}: {int((off.max(-1) > 0).sum())} of {off.shape[0] * off.shape[1]} pixels are not as recorded, by "
        f"{off.max()} of 255 at most; drawn with {row.versions}, now {here}"
    )


def _shares(out: Path, wanted: set[str]) -> list[list[Prompt]]:
    """The prompts that were encoded together with the wanted ones."""
    listed = [Prompt.of(row) for row in folders.read(out, "prompts").to_pylist()]
    return [list(part) for part in cache.cut(listed, 32) if wanted & {p.id for p in part}]

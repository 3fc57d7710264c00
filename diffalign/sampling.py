"""Prompts -> images: a flat work list in fixed batches, a part of the folder each, in one process or several."""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch

from diffalign import cache, folders, keeping, plan, processes, redrawing, scorers, streams, worklist
from diffalign.drawing import Artist, Drawn, Sampler, to_png
from diffalign.manifest import versions
from diffalign.plan import Identity, Negative, Plan
from diffalign.progress import track
from diffalign.prompts import PromptList, read_prompts
from diffalign.records import Image, InputError
from diffalign.scorers import Scorer
from diffalign.worklist import Cut

__all__ = ["Artist", "Negative", "Sampler", "sample", "to_png"]

log = logging.getLogger(__name__)


def sample(
    *,
    out: Path,
    model: str = "",
    prompts: Path | None = None,
    column: str = "text",
    lora: tuple[str, ...] = (),
    config: str = "",
    per_prompt: int = 1,
    seed: int = 0,
    batch: int = 16,
    decode: int = 16,
    steps: int = 30,
    scheduler: str = "",
    guidance: float = 5.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    negative: Negative = Negative(),  # noqa: B008
    height: int = 0,
    width: int = 0,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    step_cache: str = "",
    compile: bool = False,  # noqa: A002
    keep_latents: bool = False,
    nsfw: str = "",
    again: str = "",
) -> str:
    """Draw images of prompts into a record folder; the same command again goes on where it was interrupted.

    A picture depends on model, adapters, sampler, seed, prompt and index, not on order, batch, number of processes or
    resume (beyond float rounding for the batch). A larger --per-prompt extends the folder; any other change of
    arguments is refused by name. Under torchrun or accelerate launch every process draws its share.

    Args:
        out: Record folder to write.
        model: Model folder in diffusers' layout, a hub id, or a single .safetensors file (with --config).
        prompts: Text file with one prompt a line, or JSON lines, CSV, TSV or Parquet with the field --column and
            optionally "id", "height" and "width".
        column: Field of the prompts.
        lora: Adapters, FILE or FILE=weight: files in the layout of diffusers, kohya or ComfyUI, folders that hold one,
            or run folders.
        config: Folder in diffusers' layout that says what a single file is.
        per_prompt: Images per prompt.
        seed: Names the noise, with the prompt and the image's index.
        batch: Images per denoiser call (two rows each with guidance).
        decode: Images per decoder call; halved by itself where the device's memory is short.
        steps: Denoising steps.
        scheduler: A diffusers scheduler, "NAME" or "NAME,option=value,…"; empty means the model's own.
        guidance: Guidance scale as the model's own pipeline counts it; 1 or less means none (0 for Z-Image).
        guidance_interval: Guidance from and to these shares of the steps.
        negative: Another denoiser in the unconditional branch (Diffusion-NPO).
        height: Pixels; 0 means the model's own size.
        width: Pixels; 0 means the model's own size.
        precision: Of the networks; "auto" is bfloat16 on an accelerator and float32 on the CPU.
        step_cache: A step cache of diffusers, "FirstBlockCache,threshold=0.1"; pictures then depend on their batch.
        compile: Compile the denoiser's repeated blocks.
        keep_latents: Keep the latents; training at the same size takes them instead of encoding the pictures.
        nsfw: A scorer ("file.py:function") whose value of each picture goes into the column nsfw.
        again: Image id; that picture of the folder is drawn again, with its batch, and compared byte by byte.
    """
    device = processes.device("cuda" if torch.cuda.is_available() else "cpu")
    if again:
        return redrawing.redraw(out, again, model, config, lora, device)
    if not model or prompts is None:
        raise InputError(f"{'prompts' if model else 'model'}: is missing; expected --model and --prompts (or --again)")
    if min(per_prompt, batch, steps, decode) < 1:
        raise InputError(
            f"per_prompt = {per_prompt}, batch = {batch}, steps = {steps}, decode = {decode}: expected at least 1"
        )
    listed = read_prompts(prompts, column)
    asked = Plan(
        model, config, tuple(map(str, lora)) if not isinstance(lora, str | Path) else (str(lora),), scheduler,
        steps, guidance, guidance_interval, height, width, precision, negative, step_cache, compile,
    )  # fmt: skip
    job = Job(out, asked, plan.identity(asked), listed, seed, per_prompt, batch, decode, keep_latents, nsfw)
    return _run(job, device)


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

    def ids(self, cut: Cut) -> list[str]:
        """The ids of a batch's pictures."""
        return [self.identity.image(p.id, p.text, self.seed, index, cut.size) for p, index in cut.work]

    def is_whole(self, number: int, cut: Cut) -> bool:
        """Whether a batch is on disk, with its latents where they are kept."""
        ids = self.ids(cut)
        there = folders.is_whole(self.out, "images", number, {"id": ids})
        return there and (not self.keep_latents or keeping.is_whole(self.out, number, ids))


def _run(job: Job, device: str) -> str:
    """Draw what is not there yet, each process its share; the summary line."""
    (rank, world), listed = processes.place(), job.listed
    asked = (job.plan.height, job.plan.width)
    cuts = worklist.cuts(listed.prompts, listed.sizes, asked, job.per_prompt, job.batch)
    flag = scorers.load(job.nsfw) if job.nsfw else None
    manifest = job.manifest(len(cuts), flag)
    folders.check(job.out, manifest)
    mine = range(rank, len(cuts), world)
    artist = None
    if any(not job.is_whole(n, cuts[n]) for n in mine):
        artist = plan.artist(job.plan, job.seed, job.decode, device)
        for size in {cut.size for cut in cuts}:
            _resize(artist, size)
        _ = flag.function if flag else None
    with processes.together() as meet:
        if rank == 0:  # not before, so that a model which cannot be loaded leaves the folder to another one
            folders.begin(job.out, manifest)
            folders.write_part(job.out, "prompts", 0, listed.prompts)
        meet()
        if artist is not None:
            _draw(job, artist, flag, {n: cuts[n] for n in mine})
        meet()
    if rank:
        return f"{job.out}: process {rank + 1} of {world} has drawn its share"
    total = sum(map(len, cuts))
    said = f"{job.out}: {total} images of {len(listed.prompts)} prompts{listed.odd}"
    return f"{said}; next: diffalign score {job.out} --scorer … --out …"


def _draw(job: Job, artist: Artist, flag: Scorer | None, cuts: Mapping[int, Cut]) -> None:
    """Draw and write the batches that are not whole."""
    # all prompts are cut, not those that are left to do, so that an interruption does not change who shares a batch
    parts = list(cache.cut(job.listed.prompts, 32))
    home = {p.id: part for part in parts for p in part}
    started, drawn = time.perf_counter(), 0
    long: dict[str, str] = {}
    for number in track(cuts, "sample", cuts.values(), "images"):
        cut = cuts[number]
        if job.is_whole(number, cut):
            continue
        _resize(artist, cut.size)
        needed = {home[p.id][0].id: home[p.id] for p, _ in cut.work}
        long |= {p.text: end for p in artist.encode(*needed.values()) if (end := artist.backbone.unread(p.text))}
        made = artist.paint([(p.id, index) for p, index in cut.work])
        _write(job, number, cut, artist, flag, made)
        drawn += len(cut)
    if drawn:
        log.info("%d images drawn, %.3g a second", drawn, drawn / (time.perf_counter() - started))
    for text, end in list(long.items())[:3]:
        log.warning(
            "the text encoder reads no further than %r of a prompt: %r is cut off", text[: -len(end)][-30:], end
        )
    if len(long) > 3:
        log.warning("%d more prompts are longer than the text encoder reads", len(long) - 3)


def _resize(artist: Artist, size: tuple[int, int]) -> None:
    native = artist.backbone.native_size()
    artist.resize(size[0] or native, size[1] or native)


def _write(job: Job, number: int, cut: Cut, artist: Artist, flag: Scorer | None, made: Drawn) -> None:
    """Write one batch; pictures that lie there already may have been scored, and stay as they are."""
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
    folders.write_part(job.out, "images", number, [*kept, *rows[len(kept) :]])


def _flags(flag: Scorer | None, pictures: np.ndarray, texts: Sequence[str]) -> list[float | None]:
    """What the scorer says of each picture; None where none is asked, or where it says nothing."""
    if flag is None:
        return [None] * len(texts)
    values = flag([PIL.Image.fromarray(picture) for picture in pictures], texts)
    return [float(v) if np.isfinite(v) else None for v in values]

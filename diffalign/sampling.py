"""Prompts -> images: a flat work list in fixed batches, a part of the folder each, in one process or several."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from diffalign import cache, folders, plan, processes, redrawing, scorers, worklist
from diffalign.drawing import Artist, Sampler, to_png
from diffalign.job import Job, write
from diffalign.jury import Jury, convened
from diffalign.plan import Negative, Plan
from diffalign.progress import track
from diffalign.prompts import read_prompts
from diffalign.records import InputError
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
    scorer: tuple[str, ...] = (),
    scores: Path | None = None,
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
        config: Folder in diffusers' layout, or hub id, that says what a single file is.
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
        scorer: Scorers that judge the pictures as they are drawn, in memory, as `score OUT --batch BATCH` would later.
        scores: Record folder of their scores.
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
    return _run(job, device, scorer, scores)


def _run(job: Job, device: str, judges: Sequence[str], scores: Path | None) -> str:
    """Draw what is not there yet, each process its share, and have it judged where that is asked; the summary."""
    (rank, world), listed = processes.place(), job.listed
    asked = (job.plan.height, job.plan.width)
    cuts = worklist.cuts(listed.prompts, listed.sizes, asked, job.per_prompt, job.batch)
    flag = scorers.load(job.nsfw) if job.nsfw else None
    manifest = job.manifest(len(cuts), flag)
    job.check(manifest)
    jury = convened(job.out, manifest, scores, judges, list(map(len, cuts)), job.batch)
    mine = range(rank, len(cuts), world)
    artist = None
    if any(not job.is_whole(n, cuts[n]) for n in mine):
        artist = plan.artist(job.plan, job.seed, job.decode, device)
        for size in {cut.size for cut in cuts}:
            _resize(artist, size)
        _ = flag.function if flag else None
        if jury:
            jury.load()
    with processes.together() as meet:
        if rank == 0:  # not before, so that a model which cannot be loaded leaves the folder to another one
            folders.begin(job.out, manifest)
            folders.write_part(job.out, "prompts", 0, listed.prompts)
            if jury:
                folders.begin(jury.out, jury.manifest)
        meet()
        if artist is not None:
            _draw(job, artist, flag, {n: cuts[n] for n in mine}, jury)
        meet()
        scored = jury.conclude() if jury else ""
    if rank:
        return f"{job.out}: process {rank + 1} of {world} has drawn its share"
    total = sum(map(len, cuts))
    said = f"{job.out}: {total} images of {len(listed.prompts)} prompts{listed.odd}"
    return f"{said}\n{scored}" if scored else f"{said}; next: diffalign score {job.out} --scorer … --out …"


def _draw(job: Job, artist: Artist, flag: Scorer | None, cuts: Mapping[int, Cut], jury: Jury | None) -> None:
    """Draw and write the batches that are not whole, and show them to the jury."""
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
        rows, new = write(job, number, cut, artist, flag, made)
        if jury:
            jury.see(number, rows, [p.text for p, _ in cut.work], new)
        drawn += len(cut)
    if drawn:
        log.info("%d images drawn, %.3g a second", drawn, drawn / (time.perf_counter() - started))
    for text, end in list(long.items())[:3]:
        read, lost = text[: -len(end)][-30:], end if len(end) <= 60 else f"{end[:40]}…{end[-20:]}"
        log.warning(
            "prompt %r: the text encoder reads no further than %r; cut off (length %d): %r",
            f"{text[:40]}…", f"…{read}", len(end), lost,
        )  # fmt: skip
    if len(long) > 3:
        log.warning("%d more prompts are longer than the text encoder reads", len(long) - 3)


def _resize(artist: Artist, size: tuple[int, int]) -> None:
    native = artist.backbone.native_size()
    artist.resize(size[0] or native, size[1] or native)

"""Prompts -> images: a flat work list in fixed batches, every picture's noise named by (seed, prompt, index)."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from diffalign import backbones, cache, folders, weights
from diffalign.backbones.base import Backbone, Conditioning, select
from diffalign.progress import track
from diffalign.records import Image, InputError, Prompt, digest, prompt_id
from diffalign.streams import normal, stream


@dataclass(frozen=True)
class Sampler:
    """How a picture is drawn: the model's own scheduler, so many steps, classifier-free guidance, size in pixels."""

    steps: int
    guidance: float
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps = {self.steps}: expected at least 1")


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a text file (one a line) or a JSON-lines file ({"text", optional "id"}), equal texts once,
    counted.

    Raises InputError naming file, line and field for a file that is missing, empty or not UTF-8, a blank text, or an
    id that stands for two texts.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such prompt file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        row = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {row}: is not UTF-8 (byte {error.start})") from None
    found: dict[str, Prompt] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        text, name = line.strip(), None
        if path.suffix == ".jsonl":
            try:
                entry = json.loads(line)
                text, name = entry["text"].strip(), entry.get("id")
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(f'{path}, line {number}: expected {{"text": "…"}}, optionally with "id"') from None
        if not text:
            raise InputError(f"{path}, line {number}, field text: is empty")
        if not isinstance(name, str | None):
            raise InputError(f"{path}, line {number}, field id: {name!r}, expected a text")
        key = name or prompt_id(text)
        known = found.get(key)
        if known and known.text != text:
            raise InputError(f"{path}, line {number}, field id: {key!r} already stands for {known.text!r}")
        found[key] = Prompt(key, text, known.count + 1 if known else 1)
    if not found:
        raise InputError(f"{path}: holds no prompt")
    return list(found.values())


def sample(
    *,
    model: str,
    prompts: Path,
    out: Path,
    lora: Path | None = None,
    config: str = "",
    per_prompt: int = 1,
    seed: int = 0,
    batch: int = 16,
    steps: int = 30,
    guidance: float = 5.0,
    height: int = 0,
    width: int = 0,
) -> str:
    """Draw images of prompts into a record folder; the same command again goes on where it was interrupted.

    A picture depends on model, adapter, sampler, seed, prompt and index, not on order, batch or resume (beyond float
    rounding for the batch). A larger --per-prompt extends the folder; any other change of arguments is refused by
    name.

    Args:
        model: Model folder in diffusers' layout, a hub id, or a single .safetensors file (with --config).
        prompts: Text file with one prompt a line, or JSON lines with "text" and optionally "id".
        out: Record folder to write.
        lora: Adapter file in the layout of diffusers, kohya or ComfyUI, a folder that holds one, or a run folder.
        config: Folder in diffusers' layout that says what a single file is.
        per_prompt: Images per prompt.
        seed: Names the noise, with the prompt and the image's index.
        batch: Images per denoiser call (two rows each with guidance).
        steps: Denoising steps of the model's own scheduler.
        guidance: Guidance scale as the model's own pipeline counts it; 1 or less means none (0 for Z-Image).
        height: Pixels; 0 means the model's own size.
        width: Pixels; 0 means the model's own size.
    """
    if min(per_prompt, batch, steps) < 1:
        raise InputError(f"per_prompt = {per_prompt}, batch = {batch}, steps = {steps}: expected at least 1")
    listed = read_prompts(prompts)
    place = weights.locate(model, config)
    adapter = weights.adapter_file(lora) if lora else None
    model_hash, adapter_hash = weights.fingerprint(place), weights.fingerprint(adapter) if adapter else None
    arguments = {
        "model": model_hash,
        "adapter": adapter_hash,
        "prompts": digest(*(x for p in listed for x in (p.id, p.text))),
        "per_prompt": per_prompt,
        "seed": seed,
        "batch": batch,
        "sampler": [steps, guidance, height, width],
        "threads": torch.get_num_threads(),
    }
    work = [(p, index) for index in range(per_prompt) for p in listed]
    cuts = [work[i : i + batch] for i in range(0, len(work), batch)]
    manifest = folders.Manifest("sample", arguments, len(cuts), extends=("per_prompt",))
    folders.check(out, manifest)
    keys = [[_image_id(model_hash, adapter_hash, arguments["sampler"], p, seed, i) for p, i in cut] for cut in cuts]
    todo = [n for n in range(len(cuts)) if not folders.is_whole(out, "images", n, {"id": keys[n]})]
    if todo:
        backbone = backbones.load(model, config=config, device="cuda" if torch.cuda.is_available() else "cpu")
        if adapter:
            backbone.load_lora(adapter)
        artist = Artist(backbone, Sampler(steps, guidance, *_size(backbone, height, width)), seed)
        needed = {p.id for n in todo for p, _ in cuts[n]}
        # all prompts are cut, not those that are left to do, so that an interruption does not change who shares a batch
        for part in cache.cut(listed, 32):
            artist.encode(part if needed & {p.id for p in part} else [])
    folders.begin(out, manifest)  # not before, so that a model which cannot be loaded leaves the folder to another one
    folders.write_part(out, "prompts", 0, listed)
    for n in track(todo, "sample", len(todo)):
        kept = folders.leading(out, "images", n, {"id": keys[n]})  # they may have been scored, and are not drawn anew
        pictures = artist.draw([(p.id, index) for p, index in cuts[n]])
        rows = [
            _record(key, p, index, png, artist.sampler, model_hash, adapter_hash, seed)
            for key, (p, index), png in zip(keys[n], cuts[n], map(to_png, pictures), strict=True)
        ]
        folders.write_part(out, "images", n, [*kept, *rows[len(kept) :]])
    return f"{out}: {len(work)} images of {len(listed)} prompts; next: diffalign score {out} --scorer … --out …"


def _size(backbone: Backbone, height: int, width: int) -> tuple[int, int]:
    own = backbone.native_size()
    return height or own, width or own


def _image_id(model: str, adapter: str | None, sampler: Sequence[float], prompt: Prompt, seed: int, index: int) -> str:
    return digest("image", model, adapter, *sampler, prompt.id, prompt.text, seed, index)


def _record(
    key: str, prompt: Prompt, index: int, png: bytes, sampler: Sampler, model: str, adapter: str | None, seed: int
) -> Image:
    name = f"{sampler.steps} steps, guidance {sampler.guidance:g}, {sampler.height}x{sampler.width}"
    sha256 = hashlib.sha256(png).hexdigest()
    image = {"bytes": png, "path": f"{key}.png"}
    return Image(
        key, prompt.id, image, sha256, sampler.width, sampler.height,
        model=model, adapter=adapter, sampler=name, seed=seed, index=index,
    )  # fmt: skip


class Artist:
    """Draws pictures: unique prompts encoded once, noise by name, the model's own scheduler, guidance in one call."""

    def __init__(self, backbone: Backbone, sampler: Sampler, seed: int) -> None:
        self.backbone, self.sampler, self.seed = backbone, sampler, seed
        self.shape = backbone.latent_shape(sampler.height, sampler.width)
        size = (sampler.height, sampler.width)
        self.sizes = backbone.size_conditioning([size], size) | backbone.guidance_conditioning(sampler.guidance)
        self.guided = backbone.unconditional(sampler.guidance)
        self.negative = backbone.encode_negative()
        self.prompts: dict[str, int] = {}
        self.known: Conditioning = {}

    def encode(self, prompts: Sequence[Prompt]) -> None:
        """Encode the prompts that are not known yet, each once."""
        new = list({p.id: p for p in prompts if p.id not in self.prompts}.values())
        parts = [self.backbone.encode_prompts([p.text for p in part]) for part in cache.cut(new, 32) if part]
        for name in parts[0] if parts else ():
            rows = torch.cat([part[name] for part in parts])
            self.known[name] = torch.cat([self.known[name], rows]) if name in self.known else rows
        self.prompts |= {p.id: len(self.prompts) + i for i, p in enumerate(new)}

    @torch.no_grad()
    def draw(self, work: Sequence[tuple[str, int]], denoiser: nn.Module | None = None) -> np.ndarray:
        """Pictures of (prompt id, index), uint8, (images, height, width, 3), by `denoiser` or the backbone's own."""
        denoiser = denoiser or self.backbone.denoiser
        device, dtype = self.backbone.denoiser.device, self.backbone.denoiser.dtype
        solver = self.backbone.solver(self.sampler.steps, self.shape)
        x = torch.stack([self.noise(prompt, index) for prompt, index in work]).to(device, dtype) * solver.sigma
        conditioning = self._conditioning([prompt for prompt, _ in work])
        # schedulers that add noise on the way take it from torch alone: one generator a picture, named as it is
        named = [stream("sampling", self.seed, *cell, "steps") for cell in work] if solver.draws else []
        drawn = {"generator": [torch.Generator().manual_seed(int(n.integers(2**63))) for n in named]} if named else {}
        for t in solver.timesteps:
            doubled = torch.cat([x, x]) if self.guided else x
            scaled = solver.scale(doubled, t)
            output = self.backbone.predict(denoiser, scaled, t.expand(len(scaled)), conditioning)
            if self.guided:
                output = self.backbone.guide(*output.chunk(2), self.sampler.guidance)
            x = solver.step(output, t, x, return_dict=False, **drawn)[0]
        pixels = self.backbone.decode_latents(x).float()
        return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    def noise(self, prompt: str, index: int) -> Tensor:
        """The initial noise of one picture, float32, (c, h, w): a function of (seed, prompt id, index) alone."""
        return torch.from_numpy(normal("sampling", self.seed, prompt, index, shape=tuple(self.shape)))

    def _conditioning(self, prompts: Sequence[str]) -> Conditioning:
        device = self.backbone.denoiser.device
        rows = select(self.known, torch.tensor([self.prompts[p] for p in prompts]))
        if self.guided:
            repeated = {k: v.expand(len(prompts), *v.shape[1:]) for k, v in self.negative.items()}
            rows = {k: torch.cat([repeated[k], v]) for k, v in rows.items()}
        n = len(next(iter(rows.values())))
        rows |= {k: v.expand(n, -1) for k, v in self.sizes.items()}
        return {k: v.to(device) for k, v in rows.items()}


def to_png(picture: np.ndarray) -> bytes:
    """A uint8 picture (height, width, 3) as PNG bytes."""
    sink = io.BytesIO()
    PIL.Image.fromarray(picture).save(sink, format="PNG")
    return sink.getvalue()

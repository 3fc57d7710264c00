"""Names -> pictures: the loop of a sampler, every picture's noise named by (seed, prompt, index)."""

import io
import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from diffalign import cache, wrapping
from diffalign.backbones import schedulers
from diffalign.backbones.base import Backbone, Conditioning
from diffalign.records import InputError, Prompt
from diffalign.streams import normal, stream

log = logging.getLogger(__name__)
ROOM = 2 * 2**30


@dataclass(frozen=True)
class Sampler:
    """How a picture is drawn: the model's scheduler, so many steps, classifier-free guidance, size in pixels.

    `interval` is the share of the steps, from and to, in which there is guidance; outside of it the conditional branch
    alone is run.
    """

    steps: int
    guidance: float
    height: int
    width: int
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps = {self.steps}: expected at least 1")
        if not math.isfinite(self.guidance):
            raise InputError(f"guidance = {self.guidance}: expected a number")
        if not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise InputError(f"guidance_interval = {self.interval}: expected 0 <= from < to <= 1")


@dataclass(frozen=True)
class Drawn:
    """Pictures, uint8, (images, height, width, 3), and the latents that they were decoded from, on the host."""

    pictures: np.ndarray
    latents: Tensor


class Artist:
    """Draws pictures: unique prompts encoded once, noise by name, guidance in one call.

    `negative` is the denoiser of the unconditional branch where it is another one. `decode` is how many pictures the
    decoder is given at once, fewer as soon as that does not fit the memory.
    """

    def __init__(
        self, backbone: Backbone, sampler: Sampler, seed: int, *, negative: nn.Module | None = None, decode: int = 16
    ) -> None:
        self.backbone, self.sampler, self.seed, self.decode = backbone, sampler, seed, decode
        self.guided = backbone.unconditional(sampler.guidance)
        if not self.guided and (negative is not None or sampler.interval != (0.0, 1.0)):
            raise InputError(
                f"guidance = {sampler.guidance:g}: gives this model no unconditional branch, which guidance_interval "
                "and negative_… are about"
            )
        self.other = negative
        self.now: Tensor | None = None
        self.empty = backbone.encode_negative() if self.guided else {}
        self.parts: dict[str, Conditioning] = {}
        self.rows: dict[str, tuple[str, int]] = {}
        self.resize(sampler.height, sampler.width)

    def enable(self, denoiser: nn.Module, name: str) -> None:
        """Draw with diffusers' step cache `name`; raises InputError where this denoiser has none."""
        schedulers.cache(denoiser, name, lambda: self.now)

    def resize(self, height: int, width: int) -> None:
        """Draw in another size from now on; raises InputError where the model cannot."""
        self.size, self.shape = (height, width), self.backbone.latent_shape(height, width)
        told = self.backbone.guidance_conditioning(self.sampler.guidance)
        self.sizes = self.backbone.size_conditioning([self.size], self.size) | told

    def encode(self, *parts: Sequence[Prompt]) -> list[Prompt]:
        """Encode the prompts that are not known, each part by itself; those that were new.

        Parts are forgotten, the oldest first, when more than 2 GiB are known; the ones named here are not.
        """
        added = []
        for part in parts:
            new = list({p.id: p for p in part if p.id not in self.rows}.values())
            for run in cache.cut(new, 32) if new else ():
                found = self.backbone.encode_prompts([p.text for p in run])
                self.parts[run[0].id] = {k: v.cpu() for k, v in found.items()}
                self.rows |= {p.id: (run[0].id, row) for row, p in enumerate(run)}
            added += new
        self._forget({self.rows[p.id][0] for part in parts for p in part})
        return added

    def _forget(self, needed: set[str]) -> None:
        sizes = {name: sum(v.nbytes for v in part.values()) for name, part in self.parts.items()}
        for name in [n for n in self.parts if n not in needed]:
            if sum(sizes.values()) <= ROOM:
                return
            del self.parts[name], sizes[name]
            self.rows = {p: place for p, place in self.rows.items() if place[0] != name}

    def draw(self, work: Sequence[tuple[str, int]], denoiser: nn.Module | None = None) -> np.ndarray:
        """Pictures of (prompt id, index), uint8, (images, height, width, 3), by `denoiser` or the backbone's own."""
        return self.paint(work, denoiser).pictures

    @torch.no_grad()
    def paint(self, work: Sequence[tuple[str, int]], denoiser: nn.Module | None = None) -> Drawn:
        """Pictures of (prompt id, index) and their latents; raises InputError where one is not finite."""
        try:
            latents = self._latents(work, denoiser or self.backbone.denoiser)
        except torch.OutOfMemoryError:
            raise InputError(
                f"batch = {len(work)}: does not fit the memory of the device; choose a smaller --batch"
            ) from None
        pixels = self._decoded(latents)
        for what, values in (("latents", latents), ("pixels", pixels)):
            fine = values.isfinite().flatten(1).all(1).tolist()
            if not all(fine):
                prompt, index = work[fine.index(False)]
                raise InputError(f"prompt {prompt}, index {index}: its {what} are not finite; try --precision float32")
        pictures = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
        return Drawn(pictures.numpy(), latents.cpu())

    def _latents(self, work: Sequence[tuple[str, int]], denoiser: nn.Module) -> Tensor:
        device, narrow = self.backbone.denoiser.device, wrapping.dtype(self.backbone.denoiser)
        wide = torch.float64 if narrow == torch.float64 else torch.float32
        solver = self.backbone.solver(self.sampler.steps, self.shape)
        x = torch.stack([self.noise(prompt, index) for prompt, index in work]).to(device, wide) * solver.sigma
        told = self._conditioning([prompt for prompt, _ in work])
        # schedulers that add noise on the way take it from torch alone: one generator a picture, named as it is
        named = [stream("sampling", self.seed, *cell, "steps") for cell in work] if solver.draws else []
        drawn = {"generator": [torch.Generator().manual_seed(int(n.integers(2**63))) for n in named]} if named else {}
        for network in (denoiser, self.other):
            if network is not None and _caching(network):
                network._reset_stateful_cache()
        first, last = (int(share * len(solver.timesteps)) for share in self.sampler.interval)
        for step, t in enumerate(solver.timesteps):
            scaled = solver.scale(x, t).to(narrow)
            output = self._output(denoiser, scaled, t, told, guided=self.guided and first <= step < last)
            x = solver.step(output.to(wide), t, x, return_dict=False, **drawn)[0]
        return x

    def _output(
        self, denoiser: nn.Module, x: Tensor, t: Tensor, told: dict[str, Conditioning], *, guided: bool
    ) -> Tensor:
        self.now, n, predict = t, len(x), self.backbone.predict
        if not guided:
            with _context(denoiser, "given"):
                return predict(denoiser, x, t.expand(n), told["given"])
        if self.other is None:
            with _context(denoiser, "both"):
                branches = predict(denoiser, torch.cat([x, x]), t.expand(2 * n), told["both"]).chunk(2)
        else:
            with _context(self.other, "without"):
                without = predict(self.other, x, t.expand(n), told["without"])
            with _context(denoiser, "given"):
                branches = (without, predict(denoiser, x, t.expand(n), told["given"]))
        return self.backbone.guide(*branches, self.sampler.guidance)

    def noise(self, prompt: str, index: int) -> Tensor:
        """The initial noise of one picture, float32, (c, h, w): a function of (seed, prompt id, index) alone."""
        return torch.from_numpy(normal("sampling", self.seed, prompt, index, shape=tuple(self.shape)))

    def _conditioning(self, prompts: Sequence[str]) -> dict[str, Conditioning]:
        """What the denoiser is told in the branches that are run: given, without, or both in one call."""
        device, n = self.backbone.denoiser.device, len(prompts)
        places = [self.rows[p] for p in prompts]
        names = self.parts[places[0][0]]
        given = {k: torch.stack([self.parts[part][k][row] for part, row in places]).to(device) for k in names}
        without = {k: v.to(device).expand(n, *v.shape[1:]) for k, v in self.empty.items()}
        sizes = {k: v.to(device) for k, v in self.sizes.items()}
        found = {"given": given, "without": without}
        if self.guided and self.other is None:
            found["both"] = {k: torch.cat([without[k], v]) for k, v in given.items()}
        return {
            name: rows | {k: v.expand((2 if name == "both" else 1) * n, -1) for k, v in sizes.items()}
            for name, rows in found.items()
        }

    def _decoded(self, latents: Tensor) -> Tensor:
        """Pixels in [-1, 1], float32, on the host."""
        found: list[Tensor] = []
        while (done := sum(map(len, found))) < len(latents):
            # runs of `decode` from here on, and never a last one of a single picture
            part = latents[done : done + len(next(iter(cache.cut(range(len(latents) - done), self.decode))))]
            try:
                found.append(self.backbone.decode_latents(part).float().cpu())
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise InputError(
                        f"size {self.size[0]}x{self.size[1]}: one picture does not fit the device's memory where it is "
                        "decoded; choose a smaller one"
                    ) from None
                self.decode = len(part) // 2
                log.warning("the decoder is short of memory: %d pictures at once from now on", self.decode)
        return torch.cat(found)


def _context(denoiser: nn.Module, name: str) -> AbstractContextManager[None]:
    """What keeps the step caches of the branches apart; nothing where there are none."""
    return denoiser.cache_context(name) if _caching(denoiser) else nullcontext()


def _caching(denoiser: nn.Module) -> bool:
    return vars(denoiser).get("_cache_config") is not None


def to_png(picture: np.ndarray) -> bytes:
    """A uint8 picture (height, width, 3) as PNG bytes."""
    sink = io.BytesIO()
    PIL.Image.fromarray(picture).save(sink, format="PNG")
    return sink.getvalue()

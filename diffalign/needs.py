"""What a run needs on a card, counted on the meta device: memory by component, operations, time, disk."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffalign import activations, counting, dataset
from diffalign.activations import Checkpointing
from diffalign.backbones import check_family
from diffalign.backbones.hollow import Hollow, hollow
from diffalign.counting import Counter
from diffalign.deciding import watched
from diffalign.objectives.base import Advantages, Judgement, Ranking, Unpaired
from diffalign.policy import Policy
from diffalign.run import EMA, Frozen, HardCopy, LoRA, Reference, Run

TERA = 1e12
Card = Literal["h200", "h100", "a100-80", "a100-40", "l40s", "4090", "3090"]
# GiB that a program gets, dense bfloat16 TFLOP/s and TB/s; h200 measured, the others 0.8 and 0.9 of the data sheet
CARDS: dict[str, tuple[float, float, float]] = {
    "h200": (139, 790, 4.3), "h100": (79, 790, 3.0), "a100-80": (79, 250, 1.8), "a100-40": (39, 250, 1.4),
    "l40s": (44, 290, 0.78), "4090": (23.5, 132, 0.9), "3090": (23.5, 57, 0.84),
}  # fmt: skip
# seconds that Python and the driver need for one kernel, and the share of a card that is left for activations
LAUNCH, ROOM = 15e-6, 0.92
# images of a group where no data say it
IMAGES: dict[type[Judgement], int] = {Unpaired: 1, Ranking: 4, Advantages: 8}


@dataclass(frozen=True)
class Setting:
    """One way to cut a step: groups a forward pass and what is kept, with its memory (bytes) and groups per second."""

    micro: int
    checkpointing: Checkpointing
    activations: float
    speed: float


@dataclass(frozen=True)
class Needs:
    """What a run needs. `memory`: bytes by component without activations; `disk` likewise. flops: per group.

    `before`: bytes of autoencoder and text encoders while they encode, when the denoiser still lies on the host.
    """

    parameters: int
    trained: int
    images: int
    memory: dict[str, float]
    before: float
    flops: dict[str, float]
    settings: tuple[Setting, ...]
    disk: dict[str, float]

    @property
    def fixed(self) -> float:
        """Bytes that no setting changes."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Data:
    """How much there is to learn from: images a group, unique images and texts; None where no data were named."""

    per_group: float
    images: int
    texts: int


def asked(run: Run, settings: tuple[Setting, ...]) -> Setting:
    """The setting that the run names; "auto" is what keeps everything."""
    kept = run.gradient_checkpointing
    wanted = "off" if kept == "auto" else kept
    return next(s for s in settings if (s.micro, s.checkpointing) == (micro(run), wanted))


def micro(run: Run) -> int:
    """Groups of a forward pass."""
    return min(run.micro_batch or run.batch, run.batch)


def data_of(run: Run) -> Data | None:
    """How much a run has to learn from."""
    if not run.data:
        return None
    found = dataset.Dataset(Path(run.data), captions=run.captions, labels=run.labels)
    images = sum(len(g.images) for g in found.groups) / len(found.groups)
    return Data(images, len(found.image_ids()), sum(1 for _ in found.shown_texts()))


def needs(run: Run, card: str, data: Data | None = None) -> Needs:
    """What a run needs on a card: counted on the meta device, one pass a way of checkpointing."""
    model = hollow(run.model, run.config)
    check_family(type(model.backbone), run.family, run.model)
    kind = next((n for k, n in IMAGES.items() if issubclass(run.objective.judgement, k)), 2)
    images = math.ceil(data.per_group) if data else kind
    backbone, total = model.backbone, sum(p.numel() for p in model.backbone.denoiser.parameters())
    narrow = run.precision in ("auto", "bfloat16")
    dtype = torch.bfloat16 if narrow else torch.float64 if run.precision == "float64" else torch.float32
    wide = 8 if dtype == torch.float64 else 4
    policy = _policy(model, run, dtype if narrow else None)
    trained = sum(p.numel() for p in policy.parameters.values())
    past = [t for tensors in policy.pasts() for t in tensors.values()]
    working = float(trained * dtype.itemsize if narrow else 0)
    vae, encoders = model.frozen.get("vae", 0) * wide, sum(n for k, n in model.frozen.items() if k != "vae")
    memory: dict[str, float] = {
        "frozen weights": (total - trained if isinstance(run.policy, LoRA) else 0) * dtype.itemsize,
        "trained weights": trained * wide,
        "their working copy": working,
        "gradients": trained * wide,
        "optimizer's two moments": 2 * trained * wide,
        "past selves": sum(t.numel() * (t.element_size() if narrow else wide) for t in past),
        "autoencoder, for previews": vae if watched(run) else 0,
    }
    for parameter in backbone.denoiser.parameters():
        parameter.data = parameter.data.to(dtype)  # diffusers' own `to` warns of what cannot be helped here
    step = {kept: _step(model, run, images, dtype, kept) for kept in ("off", "selective", "full")}
    forward = _forward(model, run, images, dtype)
    passes = _passes(run)
    flops = {"policy forward and backward": step["off"].flops}
    flops |= {name: n * forward.flops for name, n in passes.items() if n}
    extra = sum(passes.values())
    settings = tuple(
        _setting(kept, size, counter, forward, extra, trained, card, run.batch, working)
        for kept, counter in step.items()
        for size in sorted({2**i for i in range(12) if 2**i <= run.batch} | {micro(run)})
    )  # fmt: skip
    disk = _disk(model, run, data, trained, sum(t.numel() for t in past), dtype)
    return Needs(total, trained, images, memory, vae + encoders * (2 if narrow else wide), flops, settings, disk)


def _policy(model: Hollow, run: Run, narrow: torch.dtype | None) -> Policy:
    """The policy on the meta device; adapters that are read from files count as copies."""
    adaptation = run.policy
    from_file = isinstance(adaptation, LoRA) and bool(adaptation.start)
    if isinstance(adaptation, LoRA):
        adaptation = dataclasses.replace(adaptation, start="")

    def plain(kind: Reference) -> Reference:
        return HardCopy() if isinstance(kind, Frozen) and (kind.path or from_file) else kind

    reference = None if run.objective.reference_free else plain(run.reference)
    old = plain(run.old) if run.objective.needs_old else None
    average = EMA(run.ema) if run.ema else None
    return Policy(model.backbone, adaptation, run.seed, reference=reference, old=old, average=average, narrow=narrow)


def _passes(run: Run) -> dict[str, int]:
    """Forward passes beside the policy's own, by what they are for."""
    objective, inverts = run.objective, run.states.inversion.steps
    parts = run.batch > (run.micro_batch or run.batch)
    own = 0 if objective.reference_free else 1
    old = 1 if objective.needs_old and run.old != run.reference else 0
    again = (1 + own + old) if objective.coupled and run.parity == "batch" and parts else 0
    return {"reference": own, "previous policy": old, "inversion": inverts, "statistics of the batch": again}


def _step(model: Hollow, run: Run, images: int, dtype: torch.dtype, kept: Checkpointing) -> Counter:
    """Forward and backward of one group, gradients there before."""
    denoiser = model.backbone.denoiser
    activations.keep(denoiser, kept, random=False)
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.empty_like(p)
    call = _call(model, run, images, dtype)
    found = counting.counted(lambda: call().backward(), *denoiser.parameters(), *(p.grad for p in trained))
    for p in trained:
        p.grad = None
    return found


def _forward(model: Hollow, run: Run, images: int, dtype: torch.dtype) -> Counter:
    call = _call(model, run, images, dtype)
    with torch.no_grad():
        return counting.counted(call, *model.backbone.denoiser.parameters())


def _call(model: Hollow, run: Run, images: int, dtype: torch.dtype) -> "Call":
    return Call(model, model.latents(images, run.resolution, dtype), images, dtype)


@dataclass(frozen=True)
class Call:
    """A squared error of the denoiser's output, without values."""

    model: Hollow
    x: Tensor
    images: int
    dtype: torch.dtype

    def __call__(self) -> Tensor:
        told, t = self.model.told(self.images, self.dtype), torch.empty(self.images, device="meta")
        output = self.model.backbone.predict(self.model.backbone.denoiser, self.x, t, told)
        return output.float().square().mean()


def _setting(
    kept: Checkpointing, micro: int, step: Counter, forward: Counter, extra: int, trained: int, card: str, batch: int,
    working: float,
) -> Setting:  # fmt: skip
    """Memory and speed where `micro` groups share a pass; costs grow with the groups, launches do not.

    `working`: bytes of the gradients of a working copy, which are there when the activations are gone.
    """
    _, tera, bandwidth = CARDS[card]
    rate, moved = tera * TERA, bandwidth * 1e12

    def seconds(counter: Counter) -> float:
        return max(micro * counter.seconds(rate, moved) / 0.8, LAUNCH * counter.kernels)

    update = 28 * trained / moved / batch  # AdamW reads and writes weights, gradients and moments once a step
    group = (seconds(step) + extra * seconds(forward)) / micro + update
    return Setting(micro, kept, max(micro * step.peak, working), 1 / group)


def _disk(model: Hollow, run: Run, data: Data | None, trained: int, past: int, dtype: torch.dtype) -> dict[str, float]:
    """Bytes of the caches (by image and by prompt where no data say how many) and of the run's folder."""
    latent = 4 * model.latents(1, run.resolution, dtype).numel()
    prompt = 4 * sum(v.numel() for v in model.told(1, dtype).values())
    images, texts = (data.images, data.texts) if data else (1000, 1000)
    one = "" if data else " of a thousand"
    saved = (3 * trained + past) * 4
    return {
        f"latents{one}": float(images * latent),
        f"embeddings{one}": float(texts * prompt),
        "checkpoints": float((run.keep + 1) * saved),
        "policy": 4.0 * trained,
    }

"""What a run needs on a card, counted on the meta device: memory by component, operations, time, disk."""

import contextlib
import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffalign import activations, bank, counting, dataset, material, optimizers, views
from diffalign.accelerators import CARDS, TERA, Cut, Setting, micro
from diffalign.activations import Checkpointing
from diffalign.backbones import check_family
from diffalign.backbones.hollow import Hollow, hollow
from diffalign.counting import Counter
from diffalign.deciding import dtypes, pasts, watched
from diffalign.objectives.base import Advantages, Judgement, Ranking, Unpaired
from diffalign.policy import Policy
from diffalign.quantization import QuantizedLinear
from diffalign.run import EMA, Frozen, Full, HardCopy, LoRA, Reference, Run

# images of a group where no data say it
IMAGES: dict[type[Judgement], int] = {Unpaired: 1, Ranking: 4, Advantages: 8}
# what of a conditioning is told of pictures and no text
SIZES = ("time_ids", "resolution", "aspect_ratio")
# bytes of a row's name in a cache and of an array's check
ID, SUM = 16, 4
# pictures that the autoencoder is given at once at least, see `material`
TOGETHER = 2


@dataclass(frozen=True)
class Bank:
    """What a bank of reference errors costs while it is filled, beside what a run costs that reads it.

    memory: bytes of the reference, where it is a copy. flops: a group. share: of a run's visits, those that are first
    ones of their draw and find nothing there.
    """

    memory: float
    flops: float
    share: float


@dataclass(frozen=True)
class Needs:
    """What a run needs; with a bank, once that is filled.

    `memory`: bytes by component without activations; `disk` likewise. flops: a group, as the run is set.
    `before`: bytes before the first step, at most: while pictures and prompts are encoded (the denoiser is still on the
    host), or the prompts of previews beside it; 0 where everything lies in the cache. `drawing`: activations while
    pictures are drawn, when there are no gradients.
    """

    parameters: int
    trained: int
    images: int
    memory: dict[str, float]
    before: float
    drawing: float
    flops: dict[str, float]
    settings: tuple[Setting, ...]
    disk: dict[str, float]
    bank: Bank | None

    @property
    def fixed(self) -> float:
        """Bytes that no setting changes."""
        return sum(self.memory.values())

    def peak(self, setting: Setting, *, filling: bool) -> float:
        """Bytes at the highest moment of a run, which fills its bank or has found it filled."""
        more = self.bank.memory if self.bank and filling else 0
        drawing = self.drawing - self.memory["gradients"]
        return max(self.before, more + self.fixed + max(setting.activations, drawing))


@dataclass(frozen=True)
class Data:
    """How much there is to learn from: images a group, groups, unique images and texts; where its bank would lie.

    cached: whether all latents and embeddings lie in the cache.
    """

    per_group: float
    groups: int
    images: int
    texts: int
    bank: Path
    cached: bool


def asked(run: Run, found: Needs, memory: float) -> Setting:
    """The setting that the run names; "auto" is what `train` takes where so many bytes are the card's."""
    here = {s.checkpointing: s for s in found.settings if (s.micro, s.chunk) == (micro(run), run.chunk)}
    kept = run.gradient_checkpointing
    return here[activations.choose(here["off"].activations, memory - found.fixed) if kept == "auto" else kept]


def data_of(run: Run) -> Data | None:
    """How much a run has to learn from; None where it names no data. Nothing is written."""
    if not run.data:
        return None
    found = dataset.Dataset(Path(run.data), captions=run.captions, labels=run.labels)
    images, groups = sum(len(g.images) for g in found.groups), len(found.groups)
    place, texts = bank.place(material.place(run), found), sum(1 for _ in found.shown_texts())
    return Data(images / groups, groups, len(found.image_ids()), texts, place, _cached(run, found))


def _cached(run: Run, data: dataset.Dataset) -> bool:
    """Whether nothing has to be encoded; not known of a hub id, whose weights may not be here."""
    if not material.place(run).is_dir() or not Path(run.model).exists():
        return False
    dtype, _ = dtypes(_resolved(run))
    return not material.Stores(run, data, dtype).lacking()


def _resolved(run: Run) -> Run:
    """The run on an accelerator."""
    return dataclasses.replace(run, precision="bfloat16" if run.precision == "auto" else run.precision)


def needs(run: Run, card: str, data: Data | None = None) -> Needs:
    """What a run needs on a card: counted on the meta device, one pass a way of checkpointing.

    Raises InputError where the run asks for a bank of reference errors and cannot have one.
    """
    run, kind = _resolved(run), next((n for k, n in IMAGES.items() if issubclass(run.objective.judgement, k)), 2)
    model, images = hollow(run.model, run.config), math.ceil(data.per_group) if data else kind
    check_family(type(model.backbone), run.family, run.model)
    banked = bank.wanted(run, data.bank if data else material.place(run) / "none")
    denoiser, (loaded, narrow) = model.backbone.denoiser, dtypes(run)
    total, half = sum(p.numel() for p in denoiser.parameters()), run.precision == "float16"
    _cast(denoiser, loaded)
    policy = _policy(model, run, narrow, banked=banked)
    masters, parameters = policy.state(), policy.parameters
    trained, working = _bytes(masters.values()), _bytes(parameters.values()) if narrow else 0
    held = [*(p for p in denoiser.parameters() if not p.requires_grad), *denoiser.buffers()]
    wide = torch.promote_types(loaded, torch.float32).itemsize
    autoencoder = model.frozen.get("vae", 0) * wide
    remembered = optimizers.kept(run.optimizer, masters)
    weights = {
        "frozen weights": _bytes(held),
        "trained weights": trained,
        "their working copy": working,
        "past selves": sum(_bytes(t.values()) for t in policy.pasts()),
        "autoencoder, for previews": autoencoder if watched(run) else 0,
    }
    casts = sum(2 * p.numel() for p in denoiser.parameters()) if half else 0
    kept = {"gradients": trained, f"optimizer ({type(run.optimizer).__name__})": remembered, "float16 casts": casts}
    memory = weights | {name: v for name, v in kept.items() if v or name == "gradients"}

    disk = _disk(model, run, data, policy, remembered, banked=banked)
    dtype = torch.float16 if half else narrow or loaded
    _cast(denoiser, dtype)
    pass_ = Pass(model, policy, model.latents(images, run.resolution, dtype), images, dtype)
    step = {way: pass_.step(way) for way in ("off", "selective", "full")}
    forward = pass_.forward()
    apart = isinstance(run.policy, LoRA) and not run.objective.reference_free  # its adapters may be off
    reference = pass_.forward("reference") if apart else forward
    lent = working if narrow and any(isinstance(k, EMA) for k in pasts(run).values()) else 0
    accelerator, update = CARDS[card], 3 * trained + 2 * remembered
    rate = {2: accelerator.narrow, 4: accelerator.wide, 8: accelerator.double}[dtype.itemsize] * TERA
    grown = (working, lent, _widened(denoiser, dtype), update)
    cut = Cut(run, images, step, forward, reference, *grown, rate, accelerator.bandwidth * TERA)
    here, settings = (micro(run), run.chunk), cut.settings(banked=banked)
    flops = {"policy forward and backward": step["off"].flops}
    one = {"reference": reference.flops}
    flops |= {k: n * one.get(k, forward.flops) for k, n in cut.passes(*here, banked=banked).items() if n}

    encode, decode = model.costs(run.resolution)
    encoders = sum(n for k, n in model.frozen.items() if k != "vae") * loaded.itemsize
    drawn = run.evaluate.batch * (1 + model.backbone.unconditional(run.evaluate.guidance))
    before = max(
        0 if data and data.cached else autoencoder + encoders + TOGETHER * encode * wide / 4,
        sum(weights.values()) + encoders if watched(run) else 0,
    )
    drawing = max(forward.peak / images * drawn + lent, decode * wide / 4) if watched(run) else 0
    filled = _bank(run, data, working or trained, reference.flops) if banked else None
    parts = sum(p.numel() for p in parameters.values())
    return Needs(total, parts, images, memory, before, drawing, flops, settings, disk, filled)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)


def _cast(denoiser: Any, dtype: torch.dtype) -> None:
    """As a model is read: diffusers' own `to` warns of what cannot be helped here."""
    for parameter in denoiser.parameters():
        parameter.data = parameter.data.to(dtype)


def _policy(model: Hollow, run: Run, narrow: torch.dtype | None, *, banked: bool) -> Policy:
    """The policy on the meta device, its bank filled; adapters that are read from files count as copies."""
    adaptation = run.policy
    from_file = isinstance(adaptation, LoRA) and bool(adaptation.start)
    if isinstance(adaptation, LoRA):
        adaptation = dataclasses.replace(adaptation, start="")

    def plain(kind: Reference | None) -> Reference | None:
        return HardCopy() if isinstance(kind, Frozen) and (kind.path or from_file) else kind

    asked = {name: plain(kind) for name, kind in pasts(run).items()}
    if banked and isinstance(adaptation, Full):
        asked["reference"] = None
    return Policy(model.backbone, adaptation, run.seed, **asked, narrow=narrow)


def _bank(run: Run, data: Data | None, copy: int, flops: float) -> Bank:
    first = data.groups * run.draws / (run.steps * run.batch) if data and run.draws else 1.0
    return Bank(copy if isinstance(run.policy, Full) else 0, flops, min(1.0, first))


def _widened(denoiser: nn.Module, dtype: torch.dtype) -> int:
    """Bytes at the peak of widening the largest layer in few bits, which does not grow with the images; else 0."""
    packed = [m for m in denoiser.modules() if isinstance(m, QuantizedLinear)]
    if not packed:
        return 0
    largest = max(packed, key=lambda m: m.in_features * m.out_features)
    return counting.counted(lambda: largest.dense(dtype), *largest.buffers()).peak


@dataclass(frozen=True)
class Pass:
    """Passes of one group through the denoiser, without values."""

    model: Hollow
    policy: Policy
    x: Tensor
    images: int
    dtype: torch.dtype

    def step(self, kept: Checkpointing) -> Counter:
        """Forward and backward, gradients there before."""
        denoiser = self.policy.denoiser
        activations.keep(denoiser, kept, random=False)
        trained = list(self.policy.parameters.values())
        for p in trained:
            p.grad = torch.empty_like(p)
        known = (*denoiser.parameters(), *denoiser.buffers(), *(p.grad for p in trained))
        with self.policy.learning("doctor"):
            found = counting.counted(lambda: self().backward(), *known)
        for p in trained:
            p.grad = None
        return found

    def forward(self, past: str = "") -> Counter:
        """Forward alone, of a past self where one is named."""
        denoiser, copies = self.policy.denoiser, (t for held in self.policy.pasts() for t in held.values())
        with torch.no_grad(), self.policy.past(past, denoiser) if past else contextlib.nullcontext():
            return counting.counted(self, *denoiser.parameters(), *denoiser.buffers(), *copies)

    def __call__(self) -> Tensor:
        """A squared error of the output."""
        told, t = self.model.told(self.images, self.dtype), torch.empty(self.images, device="meta")
        output = self.model.backbone.predict(self.policy.denoiser, self.x, t, told)
        return output.float().square().mean()


def _disk(
    model: Hollow, run: Run, data: Data | None, policy: Policy, remembered: int, *, banked: bool
) -> dict[str, float]:
    """Bytes of the caches (of a thousand where no data say how many), of all checkpoints that lie there, of the policy.

    Beside the checkpoints that are kept lies the one that is being written, and the best one.
    """
    shown, exact = run.pictures, 8 if run.precision == "float64" else 4
    size = 2 if exact == 4 and shown.stored == "float16" else exact
    arrays = 2 if shown.posterior == "sample" else 1
    places = len(views.every((run.resolution, run.resolution), shown.crops, shown.flip))
    latent = arrays * (size * model.latents(1, run.resolution, torch.float32).numel() + SUM) + ID
    told = [v.numel() for n, v in model.told(1, torch.float32).items() if n not in SIZES]
    images, texts = (data.images, data.texts) if data else (1000, 1000)
    one = "" if data else " of a thousand"
    found = {
        f"latents{one}": float(images * places * latent),
        f"embeddings{one}": float(texts * (sum(size * n + SUM for n in told) + ID)),
    }
    if banked:
        visits = math.ceil(run.steps * run.batch / data.groups) if data else 1
        pictures = data.groups * data.per_group if data else 1000
        found[f"reference errors{one}"] = exact * pictures * (run.draws or visits)
    kinds = {"reference": run.reference, "old": run.old}
    moving = (t for n, t in policy.moving().items() if not isinstance(kinds.get(n.partition(".")[0]), Frozen))
    masters = _bytes(policy.state().values())
    saved = masters + remembered + _bytes(moving) + (masters if isinstance(run.policy, LoRA) else 0)
    best, saves = bool(run.evaluate.every), math.ceil(run.steps / run.save_every)
    return found | {"checkpoints": (min(saves, run.keep + 1) + best) * saved, "policy": (1 + best) * masters}

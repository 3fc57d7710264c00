"""With what pictures are drawn, as data: model, adapters, scheduler, guidance; its hash, and how it is opened."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from diffalign import backbones, weights
from diffalign.backbones import schedulers, stack
from diffalign.backbones.base import Backbone
from diffalign.backbones.lora import check_alone
from diffalign.backbones.stack import Worn
from diffalign.drawing import Artist, Sampler
from diffalign.records import InputError, digest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Negative:
    """The denoiser of the unconditional branch, where it is another one (Diffusion-NPO):
    theta_npo + (1 - offset) (theta_model - theta_base).

    Attributes:
        lora: Adapters of what is not wanted, FILE or FILE=weight, on `model` or else on `base`.
        model: Model folder, hub id or file whose denoiser it is; the base where none is named.
        base: What the model in use was tuned from; the model itself, without its adapters, where none is named.
        offset: Share of the model's own tuning that is left out; 0 leaves it all in.
    """

    lora: tuple[str, ...] = ()
    model: str = ""
    base: str = ""
    offset: float = 0.0


@dataclass(frozen=True)
class Plan:
    """With what pictures are drawn; `height` and `width` 0 mean the model's own size."""

    model: str
    config: str = ""
    lora: tuple[str, ...] = ()
    scheduler: str = ""
    steps: int = 30
    guidance: float = 5.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    height: int = 0
    width: int = 0
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    negative: Negative = field(default_factory=Negative)
    step_cache: str = ""
    compile: bool = False

    def __post_init__(self) -> None:
        Sampler(self.steps, self.guidance, self.height, self.width, self.guidance_interval)
        if not 0 <= self.negative.offset <= 1:
            raise InputError(f"negative.offset = {self.negative.offset}: expected a share from 0 to 1")
        alone = self.negative.offset and not self.negative.base and not self.lora
        if alone or (self.negative.base and not self.negative.lora and not self.negative.model):
            raise InputError(
                "negative: expected negative.lora or negative.model, and a tuning that offset is a share of"
            )


@dataclass(frozen=True)
class Identity:
    """What a plan hashes to: model, adapters, the sampler's numbers, and what else is not as it is mostly."""

    model: str
    adapter: str | None
    sampler: tuple[float, ...]
    other: dict[str, Any]

    def image(self, prompt: str, text: str, seed: int, index: int, size: tuple[int, int]) -> str:
        """The id of a picture: a hash of all that decides it, never of its pixels."""
        other = [repr(sorted(self.other.items()))] if self.other else []
        return digest("image", self.model, self.adapter, *self.sampler[:2], *size, prompt, text, seed, index, *other)


def identity(plan: Plan) -> Identity:
    """The plan's identity, by the content of its files; raises InputError where one is missing."""
    model = weights.fingerprint(weights.locate(plan.model, plan.config))
    other: dict[str, Any] = {}
    for name in ("scheduler", "guidance_interval", "step_cache", "compile"):
        value = getattr(plan, name)
        if value != Plan.__dataclass_fields__[name].default:
            other[name] = list(value) if isinstance(value, tuple) else value
    if (precision := resolved(plan.precision)) != "float32":
        other["precision"] = precision
    if plan.negative != Negative():
        found = plan.negative
        parts = [weights.fingerprint(weights.locate(m)) if m else "" for m in (found.model, found.base)]
        other["negative"] = [_hashes(found.lora) or "", *parts, found.offset]
    return Identity(model, _hashes(plan.lora), (plan.steps, plan.guidance, plan.height, plan.width), other)


def resolved(precision: str) -> str:
    """What "auto" means on this machine: bfloat16 on an accelerator, float32 on the CPU."""
    if precision != "auto":
        return precision
    return "bfloat16" if torch.cuda.is_available() else "float32"


def worn(names: Sequence[str]) -> list[Worn]:
    """The adapters FILE or FILE=weight; raises InputError on a weight that is no number."""
    found = []
    for name in map(str, names):
        place, mark, weight = name.rpartition("=")
        if not mark or Path(name).exists():
            found.append(Worn(weights.adapter_file(Path(name))))
            continue
        try:
            found.append(Worn(weights.adapter_file(Path(place)), float(weight)))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"lora {name}: {weight!r}, expected FILE or FILE=weight with a number") from None
    return found


def _hashes(names: Sequence[str]) -> str | None:
    """Content hashes of adapters, with their weights where those are not 1."""
    said = [(weights.fingerprint(w.file), w.weight) for w in worn(names)]
    return " ".join(f"{h}={w:g}" if w != 1 else h for h, w in said) or None


def artist(plan: Plan, seed: int, decode: int, device: str) -> Artist:
    """The plan's artist, ready to draw; raises InputError where the model, an adapter or the scheduler do not fit."""
    dtype = getattr(torch, resolved(plan.precision))
    backbone = backbones.load(plan.model, config=plan.config, device=device, dtype=dtype)
    if plan.scheduler:
        schedulers.replace(backbone, plan.scheduler)
    other = _dressed(plan, backbone, dtype, device)
    native = backbone.native_size()
    sampler = Sampler(
        plan.steps, plan.guidance, plan.height or native, plan.width or native, plan.guidance_interval
    )  # fmt: skip
    found = Artist(backbone, sampler, seed, negative=other, decode=decode)
    for denoiser in [backbone.denoiser, *([other] if other is not None else [])]:
        if plan.step_cache:
            found.enable(denoiser, plan.step_cache)
        if plan.compile:
            _compile(denoiser)
    return found


def _compile(denoiser: torch.nn.Module) -> None:
    """Compile the blocks that a denoiser repeats, each by itself; raises InputError where diffusers names none."""
    kinds = vars(type(denoiser)).get("_repeated_blocks") or vars(type(denoiser)).get("_no_split_modules") or ()
    blocks = [m for m in denoiser.modules() if type(m).__name__ in kinds and "Block" in type(m).__name__]
    if not blocks:
        raise InputError(f"compile: diffusers names no repeated blocks of a {type(denoiser).__name__}")
    for block in blocks:
        block.compile()


def _dressed(plan: Plan, backbone: Backbone, dtype: torch.dtype, device: str) -> torch.nn.Module | None:
    """Put the plan's adapters on the denoiser; the denoiser of the unconditional branch, where it is another one."""
    mine = worn(plan.lora)
    plain = plan.negative == Negative()
    if plain and len(mine) == 1 and mine[0].weight == 1:
        backbone.load_lora(mine[0].file)
        return None
    own, other = stack.read(backbone, mine), None
    if not plain:
        asked = plan.negative
        for one in worn(asked.lora):
            check_alone(one.file)  # both branches read the same text encoders
        npo = stack.read(backbone, worn(asked.lora))
        parts = [
            backbones.load(m, device=device, dtype=dtype).denoiser if m else None for m in (asked.model, asked.base)
        ]
        other = stack.negative(backbone, own, npo, asked.offset, *parts)
    stack.wear(backbone.denoiser, own)
    return other


def words(plan: Plan, found: Artist, size: tuple[int, int]) -> str:
    """How a picture is drawn, as its row says it."""
    scheduler = type(found.backbone.pipe.scheduler).__name__
    said = [
        f"{scheduler}{plan.scheduler.removeprefix(scheduler)}",
        f"{plan.steps} steps",
        f"guidance {plan.guidance:g}",
    ]
    first, last = plan.guidance_interval
    said[-1] += "" if (first, last) == (0, 1) else f" from {first:g} to {last:g} of the steps"
    said.append(f"{size[0]}x{size[1]}")
    said += [f"step cache {plan.step_cache}"] if plan.step_cache else []
    said += ["compiled"] if plan.compile else []
    said += [resolved(plan.precision)] if resolved(plan.precision) != "float32" else []
    said += ["a negative denoiser"] if plan.negative != Negative() else []
    return ", ".join(said)


def given(plan: Plan) -> dict[str, Any]:
    """The plan as the user named it, for `remembered`."""
    return dataclasses.asdict(plan)


def remembered(found: dict[str, Any]) -> Plan:
    """The plan that `given` told of."""
    fixed = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
    negative = {k: tuple(v) if isinstance(v, list) else v for k, v in found["negative"].items()}
    return Plan(**{**fixed, "negative": Negative(**negative)})

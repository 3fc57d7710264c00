"""The configuration as data: a run is an expression of frozen dataclasses, strict in and strict out."""

import dataclasses
import hashlib
import importlib.util
import json
import sys
from abc import ABC
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

from diffalign import places
from diffalign.diffusion import TimeLaw, Uniform
from diffalign.objectives.base import Objective
from diffalign.records import InputError


class Adaptation(ABC):  # noqa: B024
    """What of the denoiser is trained: an empty base, by which flags narrow to the recipe's own class."""


@final
@dataclass(frozen=True)
class LoRA(Adaptation):
    """Low-rank adapters, W + alpha/rank B A with B = 0 at the start; `targets` empty means the family's own."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"rank = {self.rank}, alpha = {self.alpha}: expected positive numbers")


@final
@dataclass(frozen=True)
class Full(Adaptation):
    """All weights of the denoiser."""


@final
@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay; the learning rate is the actual one, never scaled by the batch."""

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0


@final
@dataclass(frozen=True)
class Schedule:
    """Factor of the learning rate: linear warm-up over `warmup` steps, then constant, cosine or linear to 0."""

    shape: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0


@final
@dataclass(frozen=True)
class States:
    """Where noisy states come from: the time law, and whether a group shares one noise or each image has its own.

    `prediction` measures the error in another parametrisation than the network's ("epsilon", "v_prediction", "sample").
    """

    times: TimeLaw = field(default_factory=Uniform)
    noise: Literal["shared", "independent"] = "shared"
    prediction: Literal["native", "epsilon", "v_prediction", "sample"] = "native"


@final
@dataclass(frozen=True)
class Run:
    """One training run. Everything that decides its result is here; `out` says where it goes and does not.

    Attributes:
        model: Model folder in diffusers' layout, or a hub id.
        objective: How to align.
        policy: What is trained: LoRA or Full.
        states: Where noisy states come from.
        data: Record folder of judgements (what `pair` writes).
        out: Run folder to write.
        seed: Names every random stream of the run.
        steps: Optimizer steps.
        batch: Groups per optimizer step, over all processes.
        micro_batch: Groups per forward pass; 0 means the whole batch of a process.
        resolution: Height and width of the training pictures in pixels.
        optimizer: Optimizer and gradient clipping.
        schedule: Learning-rate schedule.
        precision: "auto" is float32 on the CPU and bfloat16 on an accelerator; run.json holds the resolved value.
        caption_dropout: Probability that a group is shown the unconditional embedding instead of its prompt.
        log_every: Steps between lines of metrics.jsonl.
        save_every: Steps between checkpoints; the last step always has one.
        keep: Checkpoints kept.
    """

    model: str
    objective: Objective
    policy: Adaptation = field(default_factory=LoRA)
    states: States = field(default_factory=States)
    data: str = ""
    out: str = ""
    seed: int = 0
    steps: int = 1000
    batch: int = 16
    micro_batch: int = 0
    resolution: int = 512
    optimizer: AdamW = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Schedule)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    caption_dropout: float = 0.0
    log_every: int = 10
    save_every: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "resolution", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 1")
        if self.micro_batch < 0 or not 0 <= self.caption_dropout < 1:
            raise ValueError(
                f"micro_batch = {self.micro_batch}, caption_dropout = {self.caption_dropout}: out of range"
            )


def to_data(value: Any) -> Any:
    """Dataclasses, tuples and numbers as JSON; a dataclass becomes its class path and its fields."""
    if dataclasses.is_dataclass(value):
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        return {"class": name} | {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_data(v) for v in value]
    return value


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The fields in which two `to_data` values differ, each as "name: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(k for k in old if k not in new)]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{name}.{k}" if name else k)]
    return [] if old == new else [f"{name}: {json.dumps(old)} -> {json.dumps(new)}"]


@dataclass(frozen=True)
class Recipe:
    """A loaded recipe: its run, the file it lies in and the sha256 of that file."""

    run: Run
    path: Path
    sha256: str


def load_recipe(name: str) -> Recipe:
    """The run of `file.py`, `file.py:name` or a shipped recipe's name; raises InputError with one line on anything
    else.

    The file is executed as a module of its own and entered in `sys.modules`, so that an objective written inside a
    recipe works like one of the library's.
    """
    text, _, attribute = name.partition(":")
    path = places.recipe(text)
    source = path.read_bytes()
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, TypeError, ValueError, ImportError, NameError, AttributeError) as error:
        raise InputError(f"{path}: {type(error).__name__}: {str(error).splitlines()[0]}") from None
    run = module.__dict__.get(attribute or "run")
    if not isinstance(run, Run):
        raise InputError(f"{path}: defines no `{attribute or 'run'} = Run(...)`")
    return Recipe(run, path, hashlib.sha256(source).hexdigest())

"""Gradients -> weights: float32 masters of narrower weights, the optimizers over them, and what of both is saved."""

import importlib
import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from diffalign import wrapping
from diffalign.records import InputError

# tensors whose gradients are widened together
TOGETHER = 128


class Optimizer(ABC):  # noqa: B024
    """Gradients -> steps: an empty base, by which flags narrow to the recipe's own class.

    `lr` is the actual learning rate, never scaled by the batch; gradients are clipped to the length `max_grad_norm`.
    """

    lr: float
    max_grad_norm: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "betas" and not all(0 <= beta < 1 for beta in value):
                raise ValueError(f"betas = {value}: expected two numbers in [0, 1)")
            if name in ("lr", "eps", "weight_decay") and not 0 <= value < math.inf:
                raise ValueError(f"{name} = {value}: expected a number of at least 0")
            if name in ("max_grad_norm", "least", "d0") and not value > 0:
                raise ValueError(f"{name} = {value}: expected a positive number")
            if name == "beta2_decay" and not value <= 0:
                raise ValueError(f"beta2_decay = {value}: expected a number of at most 0")


@final
@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay: 8 bytes a trained number."""

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0


@final
@dataclass(frozen=True)
class AdamW8bit(Optimizer):
    """AdamW whose two moments take 8 bits each, of the package bitsandbytes (an extra): 2 bytes a trained number."""

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0


@final
@dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adam without a first moment and with a factored second one, arXiv 1804.04235: next to no bytes of a matrix.

    torch factors the last two axes alone: of a convolution of 3x3, two thirds of its numbers are kept, of 1x1 twice.
    `lr` is relative to a tensor's root mean square, which counts as at least `least`.
    """

    lr: float = 1e-3
    beta2_decay: float = -0.8
    least: float = 1e-3
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@final
@dataclass(frozen=True)
class Prodigy(Optimizer):
    """AdamW that finds its own learning rate, arXiv 2306.06101, of the package prodigyopt (an extra).

    `lr` multiplies what it finds and stays 1; `d0` is where the search starts. 16 bytes a trained number: for LoRA.
    """

    lr: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    d0: float = 1e-6
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0


Numbers = dict[str, float | int | bool]
# what is installed beside the library -> who needs it
EXTRAS = {"bitsandbytes": AdamW8bit, "prodigyopt": Prodigy}


def check(kind: Optimizer) -> None:
    """Raise InputError where the package that an optimizer needs cannot be imported."""
    for package, needed_by in EXTRAS.items():
        if isinstance(kind, needed_by):
            _package(package)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        user = EXTRAS[name].__name__
        advice = f"pip install 'diffalign[{name}]', or use AdamW or Adafactor"
        raise InputError(f"optimizer = {user}: {name} cannot be imported ({reason}); {advice}") from None


def build(kind: Optimizer, weights: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of these weights."""
    given = list(weights.values())
    if isinstance(kind, AdamW):
        # one kernel for all tensors; on the CPU the plain one, whose bits do not depend on how tensors are grouped
        fused = all(w.device.type == "cuda" for w in given)
        return torch.optim.AdamW(
            given, lr=kind.lr, betas=kind.betas, eps=kind.eps, weight_decay=kind.weight_decay, fused=fused
        )
    if isinstance(kind, AdamW8bit):
        eight = _package("bitsandbytes").optim.AdamW8bit
        return eight(given, lr=kind.lr, betas=kind.betas, eps=kind.eps, weight_decay=kind.weight_decay)
    if isinstance(kind, Adafactor):
        return torch.optim.Adafactor(
            given, lr=kind.lr, beta2_decay=kind.beta2_decay, eps=(None, kind.least), weight_decay=kind.weight_decay
        )
    if isinstance(kind, Prodigy):
        prodigy = _package("prodigyopt").Prodigy
        return prodigy(
            given, lr=kind.lr, betas=kind.betas, weight_decay=kind.weight_decay, d0=kind.d0,
            use_bias_correction=True, safeguard_warmup=True,
        )  # fmt: skip
    raise _unknown(kind)


def kept(kind: Optimizer, weights: Mapping[str, Tensor]) -> int:
    """Bytes of what an optimizer remembers of these weights once it has taken a step; nothing is computed or allocated.

    AdamW and Adafactor count their steps in a float32 a tensor. AdamW8bit keeps tensors of fewer than 4,096 numbers in
    float32, of others a byte a number and moment, a float32 a block of 256, and one pair of tables for all. Prodigy
    keeps of a tensor that begins at zero (a LoRA's B) no copy of the beginning.
    """
    scalar = torch.float32.itemsize
    if isinstance(kind, AdamW):
        return sum(2 * w.nbytes + scalar for w in weights.values())
    if isinstance(kind, Adafactor):
        return sum(_factors(w.shape) * w.element_size() + scalar for w in weights.values())
    if isinstance(kind, AdamW8bit):
        large = [w.numel() for w in weights.values() if w.numel() >= 4096]
        small = sum(w.numel() for w in weights.values()) - sum(large)
        return 8 * small + sum(2 * n + 8 * -(-n // 256) for n in large) + (2 * 256 * scalar if large else 0)
    if isinstance(kind, Prodigy):
        moments = 3 if kind.betas[0] else 2
        return sum(moments * w.nbytes + (scalar if "lora_B" in n else w.nbytes) for n, w in weights.items())
    raise _unknown(kind)


def room(kind: Optimizer, weights: Mapping[str, Tensor]) -> int:
    """Bytes of the gradients of these weights and of what an optimizer remembers of them."""
    return sum(w.nbytes for w in weights.values()) + kept(kind, weights)


def _factors(shape: torch.Size) -> int:
    """Numbers of the mean squares by row and by column of the last two axes; all of a vector's."""
    rows, columns = math.prod(shape[:-1]), math.prod(shape[:-2]) * math.prod(shape[-1:])
    return rows + columns if len(shape) > 1 else math.prod(shape)


def _unknown(kind: Optimizer) -> InputError:
    return InputError(f"optimizer = {type(kind).__name__}: expected AdamW, AdamW8bit, Adafactor or Prodigy")


@dataclass(frozen=True)
class Scale:
    """What a loss is multiplied by so that small gradients are not lost in float16, and steps since it last changed."""

    value: float
    steps: int = 0

    def halved(self) -> "Scale":
        """After gradients that overflowed."""
        return Scale(self.value / 2)

    def kept(self) -> "Scale":
        """After a step that went well: twice as large once 2,000 did; 1 is no scale and stays."""
        if self.value == 1:
            return self
        return Scale(2 * self.value) if self.steps >= 2000 else Scale(self.value, self.steps + 1)


@torch.no_grad()
def collect(weights: Mapping[str, nn.Parameter], wide: Mapping[str, nn.Parameter]) -> None:
    """Add the gradients of the weights to those of their masters, in float32, and drop them.

    Many tensors a kernel, and some after the others, so that narrow and wide gradients lie side by side of a few alone.
    """
    told = [n for n, master in wide.items() if weights[n] is not master and weights[n].grad is not None]
    for names in (told[i : i + TOGETHER] for i in range(0, len(told), TOGETHER)):
        fresh = [n for n in names if wide[n].grad is None]
        known = [n for n in names if wide[n].grad is not None]
        for name in fresh:
            wide[name].grad = torch.empty_like(wide[name])
        for some, put in ((fresh, torch._foreach_copy_), (known, torch._foreach_add_)):
            if some:
                put(*([wrapping.local(held[n].grad) for n in some] for held in (wide, weights)))
        for name in names:
            weights[name].grad = None


@torch.no_grad()
def publish(weights: Mapping[str, nn.Parameter], wide: Mapping[str, nn.Parameter]) -> None:
    """Round the masters to the weights that compute."""
    names = [n for n, master in wide.items() if weights[n] is not master]
    if names:
        kept, given = ([wrapping.local(held[n].data) for n in names] for held in (weights, wide))
        torch._foreach_copy_(kept, given)


def state(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> tuple[dict[str, Tensor], Numbers]:
    """What an optimizer remembers: tensors by "weight.name", and numbers, those of its one group without a dot."""
    held = {f"{name}.{key}": v for name, w in weights.items() for key, v in optimizer.state.get(w, {}).items()}
    tensors = {name: v for name, v in held.items() if isinstance(v, Tensor)}
    numbers = {name: v for name, v in held.items() if isinstance(v, (int, float))}
    return tensors, numbers | {k: v for k, v in optimizer.param_groups[0].items() if isinstance(v, (int, float))}


def restore(
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    numbers: Numbers,
) -> None:
    """Give an optimizer what `state` said."""
    held: dict[int, dict[str, Any]] = {}
    places = {name: i for i, name in enumerate(weights)}
    for full, value in (tensors | numbers).items():
        name, _, key = full.rpartition(".")
        if name:
            held.setdefault(places[name], {})[key] = value
    group = optimizer.state_dict()["param_groups"][0]
    told = group | {key: value for key, value in numbers.items() if "." not in key}
    optimizer.load_state_dict({"state": held, "param_groups": [told]})

"""Training as all builders of the embedded models do it: draws named by the step, a cosine, checkpoints, an average."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffalign import checkpoint


@dataclass(frozen=True)
class Fit:
    """How a network is fitted: AdamW, warm-up and cosine to 0; `average` is the decay of an average of the weights."""

    name: str
    steps: int
    rate: float
    warmup: int = 200
    decay: float = 0.01
    average: float = 0.0
    seed: int = 0
    minutes: float = 3.0


def rng(fit: Fit, step: int) -> np.random.Generator:
    """The draws of one step, in NumPy and in torch: a function of (name, seed, step), so a resume repeats them."""
    generator = np.random.default_rng([*fit.name.encode(), fit.seed, step])
    torch.manual_seed(int(generator.integers(2**31)))
    return generator


def rate(fit: Fit, step: int) -> float:
    """Learning rate of a step: linear to `rate` over the warm-up, then half a cosine to 0."""
    if step < fit.warmup:
        return fit.rate * (step + 1) / fit.warmup
    return fit.rate * 0.5 * (1 + math.cos(math.pi * (step - fit.warmup) / (fit.steps - fit.warmup)))


def train(fit: Fit, module: nn.Module, loss: Callable[[int, np.random.Generator], Tensor], work: Path) -> None:
    """Fit `module` to mean loss(step, rng), from the newest checkpoint below `work` on; ends with the average in it."""
    run = work / fit.name
    weights = [p for p in module.parameters() if p.requires_grad]
    matrices, vectors = [p for p in weights if p.ndim > 1], [p for p in weights if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": fit.decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=fit.rate, betas=(0.9, 0.98))
    mean = {k: v.detach().clone() for k, v in module.state_dict().items()} if fit.average else {}
    step = _resume(run, module, optimizer, mean)
    saved, shown, losses = time.time(), time.time(), []
    while step < fit.steps:
        for group in optimizer.param_groups:
            group["lr"] = rate(fit, step)
        value = loss(step, rng(fit, step))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        _follow(mean, module, min(fit.average, step / (step + 10)))
        losses.append(value.item())
        if step % 50 == 0:
            seconds, shown = (time.time() - shown) / len(losses), time.time()
            print(f"{fit.name} {step}/{fit.steps} loss {np.mean(losses):.4f} {seconds:.2f} s a step", flush=True)
            losses = []
        if time.time() - saved > 60 * fit.minutes or step == fit.steps:
            _save(run, step, module, optimizer, mean)
            saved = time.time()
    if mean:
        module.load_state_dict(mean)


@torch.no_grad()
def _follow(mean: dict[str, Tensor], module: nn.Module, rate: float) -> None:
    """mean <- rate * mean + (1 - rate) * weights; integers are copied."""
    for name, value in module.state_dict().items() if mean else ():
        mean[name].lerp_(value, 1 - rate) if value.is_floating_point() else mean[name].copy_(value)


def _save(run: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, mean: dict[str, Tensor]) -> None:
    moments = {f"{i}.{k}": v for i, held in optimizer.state_dict()["state"].items() for k, v in held.items()}
    tensors = {"module": module.state_dict(), "optimizer": moments, **({"mean": mean} if mean else {})}
    checkpoint.save(run / f"checkpoint-{step}", tensors, {"step": step})
    checkpoint.prune(run, 1)


def _resume(run: Path, module: nn.Module, optimizer: torch.optim.Optimizer, mean: dict[str, Tensor]) -> int:
    """Load the newest checkpoint, if any, and return its step."""
    found = checkpoint.found(run)
    if not found:
        return 0
    tensors, data = checkpoint.load(found[0])
    module.load_state_dict(tensors["module"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors["optimizer"].items():
        number, name = key.split(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    mean.update(tensors.get("mean", {}))
    return data["step"]


def note(work: Path, name: str, **numbers: object) -> None:
    """Add measured numbers to `figures.json` in the work folder, from which the README of the assets is written."""
    path = work / "figures.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.setdefault(name, {}).update(numbers)
    path.write_text(json.dumps(known, indent=1))

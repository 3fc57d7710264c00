"""diffusers' schedulers and step caches by name: those that run the model's process, and those its denoiser has."""

import difflib
import inspect
import json
import math
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import nn

from diffalign.backbones.base import Backbone, Solver
from diffalign.backbones.loading import said
from diffalign.records import InputError

UNFIT = (ValueError, TypeError, RuntimeError, AttributeError, AssertionError, IndexError, KeyError, ImportError)
OF_VP = {"beta_schedule", "prediction_type"}
OF_FLOW = "use_flow_sigmas"


def vp_solver(scheduler: Any, steps: int, device: torch.device) -> Solver:
    """A fresh copy of a variance-preserving scheduler, ready to run."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(steps, device=device)
    draws = "generator" in _parameters(fresh.step)
    return Solver(fresh.timesteps, fresh.init_noise_sigma, fresh.scale_model_input, fresh.step, draws)


def flow_solver(
    scheduler: Any, steps: int, mu: float, device: torch.device, sigmas: np.ndarray | list[float] | None = None
) -> Solver:
    """A fresh copy of a flow scheduler, ready to run; `mu` is its shift where it shifts by size, `sigmas` its own times
    before that, where its pipeline gives some.
    """
    config, shifted = scheduler.config, {}
    fresh = type(scheduler).from_config(config)
    taken = _parameters(fresh.set_timesteps)
    if config.get("use_dynamic_shifting", False):
        if "sigmas" in taken:
            shifted = {"mu": mu}
        else:  # those that find their times themselves are told the shift where they are made
            ratio = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
            name = "flow_shift" if "flow_shift" in _parameters(type(fresh).__init__) else "shift"
            fresh = type(scheduler).from_config(config, **{name: ratio, "use_dynamic_shifting": False})
    own = sigmas is not None and "sigmas" in taken
    fresh.set_timesteps(**({"sigmas": sigmas} if own else {"num_inference_steps": steps}), device=device, **shifted)
    draws = "generator" in _parameters(fresh.step)
    return Solver(fresh.timesteps, 1.0, lambda x, t: x, fresh.step, draws)


def shift(config: Any, patches: int) -> float:
    """The shift that a flow scheduler wants for so many patches: linear between its two anchors."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    slope = (config.get("max_shift", 1.15) - config.get("base_shift", 0.5)) / (high - low)
    return patches * slope + (config.get("base_shift", 0.5) - slope * low)


def replace(backbone: Backbone, name: str) -> None:
    """Draw by the diffusers scheduler `name` ("LCMScheduler", "EulerDiscreteScheduler,timestep_spacing=trailing")
    instead of the model's own, of whose configuration it takes what it knows.

    Raises InputError on an unknown name or option, and on a scheduler of another process than the model's.
    """
    kind, options = _named(name)
    own, taken = backbone.pipe.scheduler.config, set(_parameters(kind.__init__))
    if "beta_schedule" in own and OF_FLOW not in {k for k, v in own.items() if v is True}:
        if not taken >= OF_VP:
            raise InputError(f"scheduler {kind.__name__}: does not run a variance-preserving model, as this one is")
    elif OF_FLOW in taken:
        ratio = own.get("shift", own.get("flow_shift", 1.0))
        options = {OF_FLOW: True, "prediction_type": "flow_prediction", "flow_shift": ratio} | options
    elif not kind.__name__.startswith("FlowMatch"):
        raise InputError(f"scheduler {kind.__name__}: does not run a rectified flow, as this model is")
    else:
        options = {"shift": own.get("shift", own.get("flow_shift", 1.0))} | options
    before = backbone.pipe.scheduler
    backbone.pipe.register_modules(scheduler=_made(kind, own, options))
    betas = [getattr(s, "alphas_cumprod", None) for s in (before, backbone.pipe.scheduler)]
    if OF_FLOW not in options and all(b is not None for b in betas) and not torch.equal(*betas):
        raise InputError(f"scheduler {kind.__name__}: has another noise schedule than this model")
    _tried(backbone, kind.__name__)


def _named(name: str) -> tuple[type, dict[str, Any]]:
    """The class and the options that a name asks for."""
    head, *rest = name.split(",")
    known = sorted(n for n in diffusers.__all__ if n.endswith("Scheduler"))
    if head not in known:
        near = difflib.get_close_matches(head, known, 1)
        raise InputError(f"scheduler {head!r}: diffusers has none such{f', did you mean {near[0]}?' if near else ''}")
    kind, options = getattr(diffusers, head), parsed(rest, f"scheduler {head}")
    if not issubclass(kind, SchedulerMixin):  # diffusers puts another class there where a package is missing
        needed = " and ".join(getattr(kind, "_backends", ["something"]))
        raise InputError(f"scheduler {head}: needs {needed}, and not all of that is installed")
    taken = _parameters(kind.__init__)
    if odd := next((option for option in options if option not in taken), None):
        raise InputError(f"scheduler {head}: has no option {odd!r}, but {', '.join(list(taken)[1:])}")
    return kind, options


def parsed(words: list[str], what: str) -> dict[str, Any]:
    """Options "name=value", values as JSON has them or plain words; raises InputError on a word without "="."""
    found = {}
    for word in words:
        option, mark, value = word.partition("=")
        if not mark:
            raise InputError(f"{what}: {word!r}, expected option=value")
        try:
            found[option] = json.loads(value)
        except ValueError:
            found[option] = value
    return found


def _made(kind: type, own: Any, options: dict[str, Any]) -> Any:
    try:
        return kind.from_config(own, **options)
    except UNFIT as error:
        raise InputError(f"scheduler {kind.__name__}: cannot be made of this model's ({said(error)})") from None


def _tried(backbone: Backbone, name: str) -> None:
    """Two steps on nothing; raises InputError where the scheduler fails, goes the other way, or draws unnamed noise."""
    size = backbone.native_size()
    shape = backbone.latent_shape(size, size)
    state = torch.get_rng_state()
    try:
        solver = backbone.solver(4, shape)
        x = torch.zeros(1, *shape[:1], 2, 2, device=backbone.denoiser.device)
        named = {"generator": [torch.Generator().manual_seed(0)]} if solver.draws else {}
        for t in solver.timesteps[:3]:
            x = solver.step(torch.zeros_like(solver.scale(x, t)), t, x, return_dict=False, **named)[0]
    except UNFIT as error:
        raise InputError(f"scheduler {name}: cannot run this model ({said(error)})") from None
    if solver.timesteps[0] <= solver.timesteps[-1]:
        raise InputError(f"scheduler {name}: goes from the picture to noise; expected one that draws")
    if not torch.equal(state, torch.get_rng_state()):
        raise InputError(f"scheduler {name}: adds noise that no seed names, so that no picture could be drawn again")


def cache(denoiser: nn.Module, name: str, now: Callable[[], Any]) -> None:
    """Put diffusers' step cache `name` ("FirstBlockCache,threshold=0.1") on a denoiser; `now` gives the time of a step.

    Raises InputError where there is none such, or where this kind of denoiser has no step caches.
    """
    head, *rest = name.split(",")
    names = [n for n in diffusers.__all__ if n.endswith(("CacheConfig", "BroadcastConfig"))]
    known = sorted(n.removesuffix("Config") for n in names)
    if head not in known:
        raise InputError(f"step_cache {head!r}: diffusers has none such; expected one of {', '.join(known)}")
    if not isinstance(denoiser, diffusers.CacheMixin):
        raise InputError(f"step_cache {head}: diffusers has no step caches for a {type(denoiser).__name__}")
    kind, options = getattr(diffusers, f"{head}Config"), parsed(rest, f"step_cache {head}")
    if "current_timestep_callback" in _parameters(kind):
        options["current_timestep_callback"] = now
    try:
        denoiser.enable_cache(kind(**options))
    except UNFIT as error:
        raise InputError(f"step_cache {head}: {said(error)}") from None


def _parameters(function: Any) -> Any:
    return inspect.signature(function).parameters

"""Which kernel computes attention, asked of torch for every denoiser alike, and whether it did."""

import contextlib
import importlib
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from diffalign.records import InputError

Attention = Literal["auto", "sdpa", "cudnn", "flash", "xformers"]

# the kernel asked for, then those that take what it cannot (masks, float32)
ORDER = {
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
}
REST = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
MARKS = {"cudnn": "cudnn_attention", "flash": "flash_attention", "xformers": "xformers"}


def resolved(attention: Attention, precision: str) -> Attention:
    """What "auto" means here: cuDNN's kernel on Hopper in bfloat16, where it is the fastest, else torch's own choice.

    It is a preference, as every kernel is: what it cannot compute falls to the next.
    """
    if attention != "auto":
        return attention
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    return "cudnn" if hopper and precision in ("auto", "bfloat16") else "sdpa"


def using(attention: Attention) -> contextlib.AbstractContextManager[Any]:
    """Within: scaled dot products prefer the kernel; around forward and backward both, for what is computed again.

    diffusers' own setting (`set_attention_backend`) does nothing on most denoisers, which call torch directly.
    """
    if attention not in ORDER:
        return contextlib.nullcontext()
    return sdpa_kernel(ORDER[attention] + REST, set_priority=True)


def prepare(denoiser: nn.Module, attention: Attention) -> None:
    """Put xformers' processors on a denoiser where they are asked for; raises InputError where they do not work."""
    if attention != "xformers":
        return
    advice = "install an xformers that was built for this torch, or use attention = sdpa"
    try:
        importlib.import_module("xformers.ops")
        denoiser.enable_xformers_memory_efficient_attention()
    except (ImportError, OSError, RuntimeError, ValueError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        raise InputError(f"attention = xformers: {reason}; {advice}") from None


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in str(func):
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


def kernels(call: Callable[[], object]) -> Counter[str]:
    """How often each fused attention operator ran in `call`; the plain one (MATH) is none."""
    with _Recorder() as recorder:
        call()
    return recorder.seen


def verify(attention: Attention, call: Callable[[], object]) -> None:
    """Raise InputError unless the kernel asked for ran in `call` at least once, saying what ran instead."""
    if attention not in MARKS:
        return
    with using(attention):
        seen = kernels(call)
    if not any(MARKS[attention] in name for name in seen):
        ran = ", ".join(sorted(seen)) or "the plain one"
        raise InputError(
            f"attention = {attention}: did not take effect on this device and dtype, {ran} ran; use attention = sdpa"
        )

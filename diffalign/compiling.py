"""Regional compilation: the blocks that a denoiser repeats are compiled once each, not the whole network."""

from typing import Any

import torch
from torch import nn

from diffalign.records import InputError

# two shapes, with and without gradient, adapters on and off, times two of slack; torch gives up after 8
VARIANTS = 16


def blocks(denoiser: Any) -> list[nn.Module]:
    """The transformer blocks of a denoiser: those that diffusers names as repeated or, where it names none, as units
    that are not to be split.
    """
    names = {n for n in denoiser._repeated_blocks or denoiser._no_split_modules or () if n.endswith("TransformerBlock")}
    return [m for m in denoiser.modules() if type(m).__name__ in names]


def compile_blocks(denoiser: Any, backend: str = "inductor") -> int:
    """Compile every block in place, names and weights staying as they are; how many there are.

    Results differ from the uncompiled ones by rounding. Raises InputError where diffusers names no such blocks.
    """
    found = blocks(denoiser)
    if not found:
        raise InputError(f"compile = True: {type(denoiser).__name__} names no blocks that repeat; use compile = False")
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    for block in found:
        block.compile(backend=backend, dynamic=False)
    return len(found)

"""What a forward pass keeps for its backward pass: everything, the costly results, or the blocks' inputs alone."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Checkpointing = Literal["off", "selective", "full"]
# of what all activations need, measured on SDXL at 1024 pixels: 1.18 and 0.55 of 6.42 GiB an image
SHARE = {"off": 1.0, "selective": 0.19, "full": 0.09}


def arrange(denoiser: Any, asked: str, call: Callable[[], object], states: int, times: float) -> Checkpointing:
    """`keep` what was asked; "auto" goes by the memory that is free for `times` forward passes like `call`.

    `states`: bytes of gradients and of what the optimizer remembers, which are left room. On the CPU "auto" keeps
    everything. Returns the choice.
    """
    if asked == "auto":
        asked = "off"
        if denoiser.device.type == "cuda":
            free = torch.cuda.mem_get_info(denoiser.device)[0] - states
            asked = choose(bytes_kept(call, denoiser) * times, free)
    drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in denoiser.modules())
    keep(denoiser, asked, random=drops)
    return asked


def keep(denoiser: Any, checkpointing: Checkpointing, *, random: bool) -> None:
    """Set what the denoiser's blocks keep; what they do not keep is computed again in the backward pass.

    "selective" keeps the results of convolutions and of attention and computes the rest again (16 % more
    floating-point operations on SDXL), "full" keeps the blocks' inputs (25 % more). `random` says that a block draws
    random numbers (dropout), whose generator is then set back for the second time.
    """
    if checkpointing == "off":
        denoiser.disable_gradient_checkpointing()
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": random}
    if checkpointing == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _kept())
    denoiser.enable_gradient_checkpointing(functools.partial(checkpoint, **options))


def _kept() -> list[Any]:
    aten = torch.ops.aten
    return [
        aten.convolution.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
    ]


def bytes_kept(call: Callable[[], object], module: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of `call`, each storage once, without the module's weights."""
    weights = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}
    held = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values())


def choose(needed: float, free: float) -> Checkpointing:
    """The cheapest setting of which the activations take no more than 0.8 of the free memory, by SHARE; else "full"."""
    return next((name for name, share in SHARE.items() if share * needed <= 0.8 * free), "full")

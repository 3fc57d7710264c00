"""Several adapters on one denoiser, and the second denoiser that Diffusion-NPO puts into the unconditional branch."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import set_peft_model_state_dict
from torch import nn

from diffalign import adapters, weights
from diffalign.adapters import Adapter
from diffalign.backbones.base import Backbone
from diffalign.records import InputError


@dataclass(frozen=True)
class Worn:
    """An adapter file and the factor of its change of the weights."""

    file: Path
    weight: float = 1.0


def read(backbone: Backbone, stack: Sequence[Worn]) -> Adapter:
    """Sum of weight * adapter, as one; the denoiser, which has to carry none, carries none afterwards.

    What a file says of text encoders goes into their weights, times its factor too.
    """
    found: Adapter = {}
    encoders = [m for n, m in backbone.pipe.components.items() if n.startswith("text_encoder") and m is not None]
    for worn in stack:
        backbone.load_lora(worn.file)
        for encoder in encoders:
            adapters.fuse(encoder, scaled(adapters.of(encoder), worn.weight))
        one = adapters.of(backbone.denoiser)
        adapters.remove(backbone.denoiser)
        found = adapters.joined(found, scaled(one, worn.weight))
    return found


def scaled(adapter: Adapter, weight: float) -> Adapter:
    """weight * adapter."""
    return {name: replace(factors, up=factors.up * weight) for name, factors in adapter.items()}


def wear(denoiser: nn.Module, adapter: Adapter) -> None:
    """Put an adapter on a denoiser that carries none; beside the weights, so that narrow ones lose nothing of it."""
    if not adapter:
        return
    layers, told = adapters.peft(adapter)
    inject_adapter_in_model(LoraConfig(**told), denoiser, "default")
    set_peft_model_state_dict(denoiser, layers, "default")
    for name, module in denoiser.named_modules():
        if name in adapter:
            module.to(next(module.base_layer.parameters()).device)
    weights.settle(denoiser)
    denoiser.requires_grad_(False).eval()


@torch.no_grad()
def negative(
    backbone: Backbone, own: Adapter, npo: Adapter, offset: float, other: nn.Module | None, base: nn.Module | None
) -> nn.Module:
    """theta_neg = theta_npo + (1 - offset) (theta_pos - theta_base), the denoiser of the unconditional branch
    (Diffusion-NPO, arXiv 2505.11245, in the form of its SDXL code; its SD1.5 code's offset * theta_base +
    (1 - offset) * theta_pos, with the adapter then fused, is the same where theta_npo = theta_base + adapter).

    theta_pos is the backbone's bare denoiser with `own`, theta_base is `base` or the bare denoiser, theta_npo is
    `other` or theta_base, with `npo`. Weights that are those of the policy are shared with it, not copied.
    """
    bare = backbone.denoiser
    for module in (other, base):
        if module is not None and _shapes(module) != _shapes(bare):
            raise InputError("negative: its denoiser is of another architecture than the model's")
    found = other or base
    if found is None:
        found = copy.deepcopy(bare, {id(t): t for t in (*bare.parameters(), *bare.buffers())})
    elif base is not None:
        found = copy.deepcopy(found)
        rest = dict(base.named_parameters())
        for name, parameter in bare.named_parameters():
            change = (1 - offset) * (parameter.double() - rest[name].double())
            target = found.get_parameter(name)
            target.copy_((target.double() + change).to(target))
    wear(found, adapters.joined(npo, scaled(own, 1 - offset)))
    return found


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}

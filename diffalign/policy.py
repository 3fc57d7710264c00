"""The denoiser in training and its past self: the only file that knows LoRA."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from diffalign import checkpoint
from diffalign.backbones.base import Backbone
from diffalign.records import InputError
from diffalign.run import Adaptation, Full, LoRA
from diffalign.streams import stream


class Policy:
    """The denoiser in training, its trainable parameters by name, and the reference it is anchored to.

    With LoRA the reference is the same network with its adapters off, without a copy; with full training it is a
    frozen copy. `reference_free` spares the copy.
    """

    def __init__(self, backbone: Backbone, adaptation: Adaptation, seed: int, *, reference_free: bool = False) -> None:
        self.backbone, self.adaptation = backbone, adaptation
        self.denoiser = backbone.denoiser
        self._adapters: list[BaseTunerLayer] = []
        self._frozen: nn.Module | None = None
        if isinstance(adaptation, LoRA):
            self._add_adapters(adaptation, seed)
        else:
            self._frozen = None if reference_free else copy.deepcopy(self.denoiser).requires_grad_(False)
            self.denoiser.requires_grad_(True)
        self.parameters: dict[str, nn.Parameter] = {
            n: p for n, p in self.denoiser.named_parameters() if p.requires_grad
        }

    def _add_adapters(self, lora: LoRA, seed: int) -> None:
        targets = list(lora.targets or self.backbone.targets)
        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, init_lora_weights=True)
        try:
            self.denoiser.add_adapter(config)
        except ValueError as error:
            raise InputError(f"LoRA targets {targets}: {str(error).splitlines()[0]}") from None
        for name, parameter in self.denoiser.named_parameters():
            if (
                "lora_A" in name
            ):  # peft's own law, uniform in +-1/sqrt(fan in), from a stream that no torch version changes
                bound = 1 / math.sqrt(parameter[0].numel())
                drawn = stream("adapter", seed, name).uniform(-bound, bound, parameter.shape)
                parameter.data = torch.from_numpy(drawn).to(
                    parameter.device, torch.promote_types(parameter.dtype, torch.float32)
                )
            elif "lora_B" in name:
                parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        self._adapters = [m for m in self.denoiser.modules() if isinstance(m, BaseTunerLayer)]

    @contextmanager
    def reference(self, denoiser: nn.Module) -> Iterator[nn.Module]:
        """The denoiser as it was at step 0, without gradient; `denoiser` is the policy's, wrapped or not."""
        if isinstance(self.adaptation, Full):
            if self._frozen is None:
                raise InputError("a reference was asked for, but the objective is reference-free")
            with torch.no_grad():
                yield self._frozen
            return
        with torch.no_grad(), _off(self._adapters):
            yield denoiser

    def state(self) -> dict[str, Tensor]:
        """The trainable tensors by name."""
        return {name: parameter.data for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Copy trainable tensors back; raises InputError naming the first one that is missing, foreign or of another
        shape.
        """
        for name in sorted(set(state) | set(self.parameters)):
            if name not in state or name not in self.parameters or state[name].shape != self.parameters[name].shape:
                raise InputError(f"checkpoint: tensor {name} does not fit this policy")
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])

    def export(self, folder: Path) -> None:
        """Write what others load: `pytorch_lora_weights.safetensors` with its metadata, `unet/` or `transformer/`."""
        temporary = checkpoint.scratch(folder)
        if isinstance(self.adaptation, LoRA):
            layers = {k: v.contiguous() for k, v in get_peft_model_state_dict(self.denoiser).items()}
            self.backbone.save_lora(temporary, layers, self._metadata())
        else:
            self.denoiser.save_pretrained(temporary / self.backbone.part)
        checkpoint.publish(folder, temporary)

    def _metadata(self) -> dict[str, Any]:
        return self.denoiser.peft_config["default"].to_dict()


@contextmanager
def _off(adapters: list[BaseTunerLayer]) -> Iterator[None]:
    """Adapters off by their flag alone: diffusers' own toggle walks every module of the network and flips
    requires_grad.
    """
    for layer in adapters:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in adapters:
            layer._disable_adapters = False

"""The denoiser in training and its past self: the only file that knows LoRA."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from diffalign import adapters, checkpoint, optimizers, policy_files, quantization, weights, wrapping
from diffalign.backbones.base import Backbone
from diffalign.backbones.lora import check_alone
from diffalign.records import InputError
from diffalign.run import EMA, Adaptation, Frozen, Full, LoRA, Reference
from diffalign.streams import stream


class Policy:
    """The denoiser in training, its trainable parameters by name, their masters, and its past selves.

    The masters are what an optimizer moves: the parameters themselves, or in training that computes in a `narrow`
    dtype, float32 copies of which the parameters are roundings, unless they are sharded.
    A past self is a second copy of the trainable tensors, lent to the network while it is asked; of LoRA that starts at
    zero, the one that stays at step 0 needs no copy, the adapters are off. `reference`, `old` and `average` (of the
    policy's own steps, exported in its place) None: not made. `idle` are the weights of full training that no gradient
    reaches, as they were read: they stay, and are exported with the others.
    `init_lora` is an adapter that goes into the base first; a LoRA is exported together with it, by joined ranks.
    """

    def __init__(
        self,
        backbone: Backbone,
        adaptation: Adaptation,
        seed: int,
        *,
        reference: Reference | None,
        old: Reference | None = None,
        average: EMA | None = None,
        init_lora: str = "",
        narrow: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.backbone, self.adaptation = backbone, adaptation
        self.denoiser = backbone.denoiser
        device = device or self.denoiser.device
        self._first = self._fused(Path(init_lora)) if init_lora else {}
        self.seed = seed
        self._adapters: list[BaseTunerLayer] = []
        self._dropouts: list[nn.Dropout] = []
        if isinstance(adaptation, LoRA):
            self._add_adapters(adaptation, seed)
            quantization.quantize(self.denoiser, adaptation.quantization, device)
        else:
            self.denoiser.requires_grad_(True)
            for name in backbone.idle:
                self.denoiser.get_submodule(name).requires_grad_(False)
        frozen = {n: p for n, p in self.denoiser.named_parameters() if not p.requires_grad}
        self.idle = {n: p.detach().clone() for n, p in frozen.items()} if isinstance(adaptation, Full) else {}
        self.denoiser.to(device)
        self.parameters: dict[str, nn.Parameter] = {
            n: p for n, p in self.denoiser.named_parameters() if p.requires_grad
        }
        self.masters = dict(self.parameters)
        if narrow:
            self.masters = {n: nn.Parameter(p.detach().clone()) for n, p in self.parameters.items()}
            if isinstance(adaptation, Full):
                nn.Module.to(self.denoiser, narrow)  # diffusers' own warns of what is meant
            for parameter in self.parameters.values():
                parameter.data = parameter.data.to(narrow)
        if isinstance(adaptation, LoRA) and adaptation.start:
            self.restore(self._read(Path(adaptation.start)))
        kinds = (("reference", reference), ("old", old), ("average", average))
        self._kinds = {n: k for n, k in kinds if k is not None}
        self._pasts = {name: self._begin(kind) for name, kind in self._kinds.items()}
        self._sharded, self._narrow = False, narrow

    def copied(self) -> None:
        """Give the first process's weights and past selves to all, should files differ from machine to machine."""
        pasts = [t for tensors in self.pasts() for t in tensors.values()]
        masters = [m for n, m in self.masters.items() if m is not self.parameters[n]]
        wrapping.copy([*self.denoiser.parameters(), *masters, *pasts])

    def _fused(self, place: Path) -> adapters.Adapter:
        """Put an adapter into the weights of the base, where policy and past selves all have it; what it was."""
        file = weights.adapter_file(place)
        check_alone(file)
        self.backbone.load_lora(file)
        first = adapters.of(self.denoiser)
        adapters.fuse(self.denoiser, first)
        return first

    def _begin(self, kind: Reference) -> dict[str, Tensor] | None:
        """The tensors of a past self at step 0, or None where turning the adapters off gives it."""
        if isinstance(kind, Frozen) and kind.path:
            return {n: t.to(self.parameters[n].dtype) for n, t in self._read(Path(kind.path)).items()}
        if isinstance(kind, Frozen) and isinstance(self.adaptation, LoRA) and not self.adaptation.start:
            return None
        # a mean moves by less than a narrow dtype can say
        source = self.masters if isinstance(kind, EMA) else self.parameters
        return {n: p.detach().clone() for n, p in source.items()}

    def _add_adapters(self, lora: LoRA, seed: int) -> None:
        targets = list(lora.targets or self.backbone.targets)
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets,
            exclude_modules=list(self.backbone.idle) or None,
            init_lora_weights=True,
        )
        try:
            # not `denoiser.add_adapter`, which some of diffusers' denoisers (PixArt's) do not have
            inject_adapter_in_model(config, self.denoiser)
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
        self._dropouts = [m for layer in self._adapters for m in layer.modules() if isinstance(m, nn.Dropout)]

    def shard(self, *, again: bool) -> None:
        """Share the denoiser out over the processes: each keeps its part of the weights and of the past selves.

        The masters are the parameters then, and what is gathered of them is rounded. `again` as in `wrapping.shard`.
        """
        self._sharded = True
        for name, parameter in self.parameters.items():
            parameter.data = self.masters[name].data
        wrapping.shard(self.denoiser, self.denoiser.device, narrow=self._narrow, again=again)
        self.parameters = {n: p for n, p in self.denoiser.named_parameters() if p.requires_grad}
        self.masters = dict(self.parameters)
        for name, tensors in self._pasts.items():
            if tensors is not None:
                parts = {n: wrapping.part_of(t, self.parameters[n].data).clone() for n, t in tensors.items()}
                self._pasts[name] = parts

    @contextmanager
    def learning(self, *names: str | int) -> Iterator[None]:
        """Around the policy's own pass: dropout of its adapters, if any, drawn from the run's seed and `names`.

        It stays switched on for what the backward pass computes again, until a past self is asked.
        """
        if not self._dropouts:
            yield
            return
        for layer in self._dropouts:
            layer.train(True)
        place = next(iter(self.parameters.values())).device
        with torch.random.fork_rng([place] if place.type == "cuda" else []):
            torch.manual_seed(int(stream("dropout", self.seed, *names).integers(2**63)))
            yield

    @contextmanager
    def past(self, name: str, denoiser: nn.Module) -> Iterator[nn.Module]:
        """The denoiser as its past self `name` ("reference", "old" or "average"), without gradient.

        `denoiser` is the policy's, wrapped or not. No backward pass of the policy may be pending: its weights are away.
        """
        if name not in self._pasts:
            raise InputError(f"the {name} policy was asked for, but the objective compares with none")
        tensors = self._pasts[name]
        for layer in self._dropouts:
            layer.train(False)
        with torch.no_grad(), contextlib.ExitStack() as stack:
            if tensors is None:
                stack.enter_context(_off(self._adapters))
            else:
                like = {n: t.to(self.parameters[n].dtype) for n, t in tensors.items()}
                stack.enter_context(wrapping.lent(self.parameters, like, self.denoiser))
            yield denoiser

    def reference(self, denoiser: nn.Module) -> Any:
        """`past("reference", denoiser)`."""
        return self.past("reference", denoiser)

    @torch.no_grad()
    def follow(self, name: str, step: int) -> bool:
        """Move the past self `name` as is due after `step` optimizer steps; whether it moved."""
        kind = self._kinds.get(name, Frozen())
        if isinstance(kind, Frozen) or step % kind.every:
            return False
        kept, now = self._pasts[name], self.masters
        if isinstance(kind, EMA):  # in place, tensor by tensor or fused: no third copy of the weights
            torch._foreach_lerp_(list(kept.values()), [wrapping.local(now[n].data) for n in kept], 1 - kind.decay)
        else:
            torch._foreach_copy_(list(kept.values()), [wrapping.local(now[n].data) for n in kept])
        return True

    def pasts(self) -> list[dict[str, Tensor]]:
        """The tensors of the past selves that are copies."""
        return [t for t in self._pasts.values() if t is not None]

    def moving(self) -> dict[str, Tensor]:
        """The tensors of the past selves that move, by "name.tensor": what a checkpoint holds of them."""
        found = {n: t for n, t in self._pasts.items() if t is not None and not isinstance(self._kinds[n], Frozen)}
        return {f"{name}.{n}": t for name, tensors in found.items() for n, t in tensors.items()}

    def state(self) -> dict[str, Tensor]:
        """The masters by name, this process's part where they are sharded: what a checkpoint holds."""
        return {name: wrapping.local(parameter.data) for name, parameter in self.masters.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor], moving: dict[str, Tensor] | None = None) -> None:
        """Copy whole trainable tensors, and those of the moving past selves, back.

        Raises InputError naming the first one that is missing, foreign or of another shape.
        """
        known = self.masters
        policy_files.fits(state, {n: p.shape for n, p in known.items()}, "checkpoint")
        for name, tensor in self.state().items():
            tensor.copy_(wrapping.part_of(state[name], known[name].data))
        optimizers.publish(self.parameters, self.masters)
        if moving is None:
            return
        own = {name: known[name.partition(".")[2]] for name in self.moving()}
        policy_files.fits(moving, {n: p.shape for n, p in own.items()}, "checkpoint")
        for name, tensor in self.moving().items():
            tensor.copy_(wrapping.part_of(moving[name], own[name].data))

    @torch.no_grad()
    def _read(self, place: Path) -> dict[str, Tensor]:
        """Trainable tensors from an adapter, or with full training from a folder of weights.

        Raises InputError naming the file, where it does not fit this policy.
        """
        part = self.backbone.part
        if isinstance(self.adaptation, LoRA):
            file = weights.adapter_file(place)
            found = policy_files.adapter(file, part, self.adaptation.rank, self.adaptation.alpha)
        else:
            file = next((f for f in (place / "policy", place) if f.is_dir()), place) / part
            found = policy_files.folder(file, self.parameters)
        read = {n: torch.empty_like(p.data) for n, p in self.masters.items()}
        policy_files.fits(found, {n: t.shape for n, t in read.items()}, str(file))
        return {n: t.copy_(found[n]) for n, t in read.items()}

    def final(self) -> dict[str, Tensor]:
        """What is exported, by name: the average where one is kept, else the masters; and what full training leaves.

        Of a sharded policy whole tensors on the host, for which all processes ask.
        """
        found = self._pasts.get("average") or self.state()
        return {n: wrapping.whole(t, self.parameters[n].data) for n, t in found.items()} | self.idle

    def export(
        self, folder: Path, beside: Mapping[str, bytes] = MappingProxyType({}), final: dict[str, Tensor] | None = None
    ) -> None:
        """Write what others load: `pytorch_lora_weights.safetensors` with its metadata, `unet/` or `transformer/`.

        `final`: what `final()` gave. `beside` are files that go with it, say its card.
        """
        final = final or self.final()
        with checkpoint.written(folder) as temporary:
            self.write_adapter(temporary, final)
            if isinstance(self.adaptation, Full):
                self._save_whole(temporary / self.backbone.part, final)
                for file in temporary.rglob("*.safetensors"):
                    weights.settle_header(file)
            for name, data in beside.items():
                (temporary / name).write_bytes(data)

    def write_adapter(self, folder: Path, final: dict[str, Tensor]) -> None:
        """Write `pytorch_lora_weights.safetensors` into `folder`; nothing in full training."""
        if isinstance(self.adaptation, LoRA):
            own = adapters.of(self.denoiser, final)
            whole = adapters.joined(self._first, own) if self._first else own
            self.backbone.save_lora(folder, *adapters.peft(whole))
            weights.settle_header(weights.adapter_file(folder))

    def _save_whole(self, folder: Path, final: dict[str, Tensor]) -> None:
        """The denoiser with these tensors; of a sharded one a network like it."""
        if not self._sharded:
            with wrapping.lent(dict(self.denoiser.named_parameters()), final, self.denoiser):
                self.denoiser.save_pretrained(folder)
            return
        policy_files.write_like(self.denoiser, folder, final)


@contextmanager
def _off(adapters: list[BaseTunerLayer]) -> Iterator[None]:
    """Adapters off by their flag alone: diffusers' own toggle walks every module of the network and flips
    requires_grad. Written past `nn.Module.__setattr__`, which looks for parameters first.
    """
    for layer in adapters:
        vars(layer)["_disable_adapters"] = True
    try:
        yield
    finally:
        for layer in adapters:
            vars(layer)["_disable_adapters"] = False

"""Adapters as factors of each module's weight, and the layouts in which others read them; no network is run here."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.records import InputError


@dataclass(frozen=True)
class Factors:
    """W + alpha / rank * up down of one module; down (rank, in, ...), up (out, rank, ...)."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.down.shape[0]

    def baked(self) -> "Factors":
        """The same adapter with alpha = rank, its scale inside `up`."""
        return Factors(self.down, self.up * (self.alpha / self.rank), float(self.rank))


Adapter = dict[str, Factors]


def of(denoiser: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> Adapter:
    """The one adapter that a denoiser carries, by module; raises InputError on several, or on more than two factors.

    `tensors` in the place of its parameters, by their names.
    """
    held = tensors or dict(denoiser.named_parameters())
    state = {name: value for name, value in held.items() if ".lora_" in name}
    found: Adapter = {}
    for name, down in state.items():
        if ".lora_A." not in name:
            continue
        module, label = name.removesuffix(".weight").split(".lora_A.")
        extra = [n for n in state if n.startswith(f"{module}.lora_") and not re.search(r"\.lora_[AB]\.\w+\.weight$", n)]
        if module in found or extra:
            raise InputError(f"adapter: module {module} has {extra or 'two adapters'}; expected one plain LoRA")
        layer = denoiser.get_submodule(module)
        up, scale = state[name.replace(".lora_A.", ".lora_B.")], layer.scaling[label]
        found[module] = Factors(down.detach().clone(), up.detach().clone(), scale * down.shape[0])
    return found


@torch.no_grad()
def fuse(denoiser: nn.Module, adapter: Adapter) -> None:
    """Take the adapter off a denoiser that carries it, and put it into the weights: W <- W + alpha / rank up down."""
    remove(denoiser)
    for name, factors in adapter.items():
        weight = denoiser.get_submodule(name).weight
        change = factors.baked().up.flatten(1).double() @ factors.down.flatten(1).double()
        weight.add_(change.view(weight.shape).to(weight))


def remove(denoiser: nn.Module) -> None:
    """Take every adapter off a denoiser; its weights stay as they are without them."""
    wrapped = [name.removesuffix(".base_layer") for name, _ in denoiser.named_modules() if name.endswith(".base_layer")]
    for name in wrapped:
        parent, _, child = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), child, denoiser.get_submodule(name).base_layer)
    vars(denoiser).pop("peft_config", None)
    denoiser._hf_peft_config_loaded = False


def joined(first: Adapter, second: Adapter) -> Adapter:
    """The sum of two adapters as one, by concatenated ranks: up1 down1 + up2 down2 = [up1 up2] [down1; down2]."""
    both = {name: [a[name].baked() for a in (first, second) if name in a] for name in first | second}
    return {
        name: Factors(torch.cat([f.down for f in fs]), torch.cat([f.up for f in fs], 1), sum(f.alpha for f in fs))
        for name, fs in both.items()
    }


def baked(adapter: Adapter) -> Adapter:
    """The same adapter with every alpha equal to its rank, for readers that know of no alpha."""
    return {name: factors.baked() for name, factors in adapter.items()}


def peft(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) as `Backbone.save_lora` wants them."""
    layers = {f"{n}.lora_A.weight": f.down.contiguous() for n, f in adapter.items()}
    layers |= {f"{n}.lora_B.weight": f.up.contiguous() for n, f in adapter.items()}
    return layers, metadata(layers, {n: f.alpha for n, f in adapter.items()})


def metadata(layers: dict[str, Tensor], alphas: dict[str, float] | None = None) -> dict[str, Any]:
    """What peft is told of tensors that are named as in `peft`; without `alphas` each is the module's rank.

    Ranks and alphas that are not the most frequent go by module.
    """
    downs = sorted((name, value) for name, value in layers.items() if name.endswith(".lora_A.weight"))
    ranks = {name.removesuffix(".lora_A.weight"): value.shape[0] for name, value in downs}
    alphas = alphas or {name: float(rank) for name, rank in ranks.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(ranks),
        # the circumflex binds a pattern to the whole name of a module
        "rank_pattern": {f"^{re.escape(n)}": r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(n)}": alphas[n] for n in ranks if alphas[n] != alpha},
    }


def kohya(adapter: Adapter, _: nn.Module) -> dict[str, Tensor]:
    """Names as kohya's scripts write them and A1111 and ComfyUI read them, for denoisers named as in diffusers."""
    return _kohya({name.replace(".", "_"): factors for name, factors in adapter.items()})


def _kohya(named: Adapter) -> dict[str, Tensor]:
    found = {}
    for name, factors in named.items():
        found[f"lora_unet_{name}.lora_down.weight"] = factors.down.contiguous()
        found[f"lora_unet_{name}.lora_up.weight"] = factors.up.contiguous()
        found[f"lora_unet_{name}.alpha"] = torch.tensor(factors.alpha, dtype=factors.down.dtype)
    return found


# FLUX in its authors' naming: each of their matrices, and the modules of diffusers that lie one below the other in it
FLUX_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
}
FLUX_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}


def kohya_flux(adapter: Adapter, denoiser: nn.Module) -> dict[str, Tensor]:
    """`kohya` for FLUX.1, whose scripts fuse query, key and value: one adapter of the ranks' sum, block-diagonal in up.

    Raises InputError on a module that lies outside the blocks, for which that layout has no place.
    """
    fused: Adapter = {}
    left = set(adapter)
    for kind, theirs, table in (
        ("transformer_blocks", "double_blocks", FLUX_DOUBLE),
        ("single_transformer_blocks", "single_blocks", FLUX_SINGLE),
    ):
        for number, block in enumerate(denoiser.get_submodule(kind)):
            for matrix, modules in table.items():
                names = [f"{kind}.{number}.{module}" for module in modules]
                if left.isdisjoint(names):
                    continue
                sizes = [block.get_submodule(module).out_features for module in modules]
                place = f"{theirs}.{number}.{matrix}".replace(".", "_")
                fused[place] = _stacked([adapter.get(name) for name in names], sizes)
                left -= set(names)
    if left:
        raise InputError(f"adapter: kohya's layout of FLUX has no place for module {min(left)}")
    return _kohya(fused)


def _stacked(parts: list[Factors | None], sizes: list[int]) -> Factors:
    """One adapter of the matrix that stacks the parts' outputs; a part that is not adapted gets rows of zeros."""
    there = [part for part in parts if part is not None]
    if len(parts) == 1:
        return there[0]
    rank, like = sum(part.rank for part in there), there[0].up
    up, row, column = like.new_zeros(sum(sizes), rank), 0, 0
    for part, size in zip(parts, sizes, strict=True):
        if part is not None:
            up[row : row + size, column : column + part.rank] = part.baked().up
            column += part.rank
        row += size
    return Factors(torch.cat([part.down for part in there]), up, float(rank))

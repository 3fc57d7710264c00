"""Frozen weights in 8 or 4 bits, widened for each product: written in torch alone, so the same on every device."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

Quantization = Literal["none", "float8", "nf4"]
LARGEST = 448.0  # of float8_e4m3fn
BLOCK = 64


def levels() -> Tensor:
    """The 16 levels of NF4 in rising order, float32: quantiles of a normal distribution, scaled to end at -1 and 1.

    0 is one of them, so the negative half has one level less. QLoRA, arXiv 2305.14314, section 3.
    """
    # the outermost quantile is the mean of those of the two halves' last half steps, 1 - (1/32 + 1/30) / 2
    outer = 1 - (1 / 32 + 1 / 30) / 2
    above = torch.special.ndtri(torch.linspace(outer, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(outer, 0.5, 8, dtype=torch.float64)[:-1])
    found = torch.cat([above, torch.zeros(1, dtype=torch.float64), below]).sort().values
    return (found / found.abs().max()).float()


class QuantizedLinear(nn.Module):
    """y = x W^T + b of a frozen linear layer, W kept as `packed` times `scale`; only x gets a gradient.

    W is widened to the dtype of x (autocast's where that is on) in the forward and again in the backward pass, so no
    wide copy is kept between them.
    """

    def __init__(self, linear: nn.Linear, kind: Quantization) -> None:
        super().__init__()
        self.in_features, self.out_features, self.kind = linear.in_features, linear.out_features, kind
        packed, scale = pack(linear.weight.detach(), kind)
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.register_buffer("bytes", pairs().to(scale.device) if kind == "nf4" else None, persistent=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        # on the meta device there is no autocast to ask for
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        y = _Product.apply(x, self.packed, self.scale, self.bytes)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """W as it is computed with, (out, in)."""
        return unpack(self.packed, self.scale, self.bytes, dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, known: Tensor | None) -> Tensor:
        ctx.save_for_backward(packed, scale, known)
        return x @ unpack(packed, scale, known, x.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient @ unpack(*ctx.saved_tensors, gradient.dtype), None, None, None


def pack(weight: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
    """(packed, scale) of a weight (out, in).

    float8: e4m3 (out, in) and a float32 scale a row. nf4: two levels a byte (out, in/2), high half first, and a float32
    scale a block of at most 64 in a row.
    """
    wide = weight.float()
    if kind == "float8":
        scale = _scale(wide, LARGEST)
        return (wide / scale).to(torch.float8_e4m3fn), scale
    blocks = wide.unflatten(1, (-1, block(weight.shape[1])))
    scale = _scale(blocks, 1.0)
    known = levels().to(weight.device)
    index = torch.bucketize(blocks / scale, (known[1:] + known[:-1]) / 2).flatten(1).to(torch.uint8)
    return index[:, 0::2] * 16 + index[:, 1::2], scale


def _scale(values: Tensor, largest: float) -> Tensor:
    top = values.abs().amax(-1, keepdim=True) / largest
    return torch.where(top > 0, top, 1.0)


def unpack(packed: Tensor, scale: Tensor, known: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that `pack` stored, in `dtype`; `known` is `pairs()` of nf4, None of float8."""
    if known is None:
        return (packed.float() * scale).to(dtype)
    values = known.index_select(0, packed.flatten().int()).view(packed.shape[0], scale.shape[1], -1)
    return (values * scale).flatten(1).to(dtype)


def pairs() -> Tensor:
    """Byte -> the two levels of NF4 that it names, (256, 2)."""
    return torch.cartesian_prod(levels(), levels())


def block(columns: int) -> int:
    """Columns that share a scale: the largest power of two up to 64 that divides `columns`."""
    return min(BLOCK, columns & -columns)


def quantize(module: nn.Module, kind: Quantization, device: torch.device) -> int:
    """Put every frozen linear layer of the module's repeated blocks into 8 or 4 bits, in place; how many there were.

    They are packed on `device` and lie there afterwards, one after another, so that the wide ones need not fit. Layers
    outside the blocks (embedders, output), trainable ones, and for nf4 those of too odd a width stay as they are.
    """
    if kind == "none":
        return 0
    lists = [child for child in module.modules() if isinstance(child, nn.ModuleList)]
    parents = {id(m): m for outer in lists for m in outer.modules()}
    count = 0
    for parent in parents.values():
        for name, child in list(parent.named_children()):
            frozen = type(child) is nn.Linear and not child.weight.requires_grad
            if frozen and (kind == "float8" or block(child.in_features) >= 16):
                parent._modules[name] = QuantizedLinear(child.to(device), kind)
                count += 1
    return count

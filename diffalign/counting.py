"""What a pass costs, counted operation by operation on the meta device: nothing is computed and nothing allocated."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# counted by the formulas of the kernel for accelerators, which take the same tensors first: torch before 2.15 has none
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ),
}


class Counter(TorchDispatchMode):
    """Counts the operations within: floating-point ones, bytes moved, kernels, bytes alive and their peak.

    flops: a multiply-add is two; matrix products, convolutions and fused attention. moved: bytes read and written by
    every operation that is no view. kernels: those operations. live, peak: bytes of storages made within and still
    held. seconds(rate, bandwidth): the time of a machine that loses none, each operation bound by the slower of both.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.moved = self.kernels = self.live = self.peak = 0
        self._costs: dict[tuple[int, int], int] = {}
        self._held: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        found = func(*args, **given)
        made = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        for tensor in made:
            self._hold(tensor)
        if not func.is_view and made:
            packet = func._overloadpacket
            formula = flop_registry.get(ATTENTION.get(packet, packet))
            flops = formula(*args, **given, out_val=found) if formula else 0
            read = [x for x in tree_leaves((args, given)) if isinstance(x, Tensor)]
            moved = sum(x.numel() * x.element_size() for x in (*read, *made))
            self.flops, self.moved, self.kernels = self.flops + flops, self.moved + moved, self.kernels + 1
            self._costs[flops, moved] = self._costs.get((flops, moved), 0) + 1
        return found

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            del self._held[key]
            self.live -= size

        self._held[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)

    def seconds(self, rate: float, bandwidth: float) -> float:
        """sum over operations of max(flops / rate, bytes / bandwidth)."""
        return sum(n * max(flops / rate, moved / bandwidth) for (flops, moved), n in self._costs.items())

    def known(self, *tensors: Tensor) -> None:
        """Leave the storages of these tensors out of what is alive: they were there before."""
        for tensor in tensors:
            self._held[tensor.untyped_storage()._cdata] = tensor


@contextmanager
def fused() -> Iterator[None]:
    """Within: scaled dot products are the fused kernel on the meta device too, where torch would decompose them.

    Put in the place of torch's function, because a mode does not reach what the backward pass computes again.
    """
    plain = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=None, scale=scale)[0]


def counted(call: Callable[[], object], *known: Tensor) -> Counter:
    """The costs of `call`; `known` are tensors that were there before."""
    with fused(), Counter() as counter:
        counter.known(*known)
        call()
    return counter

"""The denoiser over several processes: copied to each, or sharded (FSDP2)."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from diffalign.records import InputError

# numbers that are exchanged at once
BUCKET = 2**24


class Lost(InputError):
    """Another process failed, and said why."""


def shard(denoiser: nn.Module, device: torch.device, *, narrow: torch.dtype | None = None, again: bool = True) -> None:
    """FSDP2 in place: the network's repeated blocks, then the rest, each gathered for its own pass and given back.

    What is gathered computes in `narrow`, if that is said; gradients are added up and exchanged in the dtype of the
    shards. Not `again`: what is gathered stays until the backward pass (ZeRO's stage 2; else its stage 3). The
    parameters are sharded tensors from here on; whoever holds the old ones must take the new ones.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # inputs are not cast: a time in bfloat16 is another one
    wide = None if narrow is None else torch.float32
    precision = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=wide, cast_forward_inputs=False)
    vars(denoiser)["computes_in"] = narrow
    names = set(denoiser._no_split_modules or ())
    blocks = [m for m in denoiser.modules() if type(m).__name__ in names]
    # an outer block that holds inner ones would gather them all at once
    inner = [m for m in blocks if not any(n is not m and type(n).__name__ in names for n in m.modules())]
    for block in inner:
        fully_shard(block, mesh=mesh, reshard_after_forward=again, mp_policy=precision)
    fully_shard(denoiser, mesh=mesh, reshard_after_forward=again, mp_policy=precision)


def dtype(denoiser: nn.Module, otherwise: Tensor | None = None) -> torch.dtype:
    """That in which a network's weights compute; of `otherwise` where it has none."""
    known: torch.dtype | None = vars(denoiser).get("computes_in")
    return known or next(denoiser.parameters(), otherwise).dtype


def copy(tensors: Iterable[Tensor]) -> None:
    """The first process's values to all others, in place."""
    for tensor in tensors:
        dist.broadcast(tensor.data, 0)


@torch.no_grad()
def average(weights: Sequence[nn.Parameter]) -> None:
    """The mean of their gradients over the processes, in place and in their own dtype; a missing one counts as 0.

    They are exchanged in buckets: the largest of them is all the memory that it takes.
    """
    buckets: list[list[Tensor]] = [[]]
    held = 0
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        if held and held + weight.numel() > BUCKET:
            buckets.append([])
            held = 0
        buckets[-1].append(weight.grad)
        held += weight.numel()
    for bucket in buckets:
        flat = torch.cat([g.flatten() for g in bucket]).div_(dist.get_world_size())
        dist.all_reduce(flat)
        parts = flat.split([g.numel() for g in bucket])
        torch._foreach_copy_(bucket, [part.view(g.shape) for part, g in zip(parts, bucket, strict=True)])


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, which shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """The part of `whole` that a sharded tensor `like` holds here; `whole` itself where it is not sharded."""
    if not isinstance(like, DTensor):
        return whole
    if like.placements != (Shard(0),):
        raise ValueError(f"placements {like.placements}: expected shards of the first axis")
    mesh = like.device_mesh
    parts = whole.chunk(mesh.size(), 0)
    rank = mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else whole[:0]


def like(whole: Tensor, given: Tensor) -> Tensor:
    """`whole` sharded as `given` is, or itself."""
    if not isinstance(given, DTensor):
        return whole
    part = part_of(whole, given).contiguous()
    return DTensor.from_local(
        part, given.device_mesh, given.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def whole(part: Tensor, given: Tensor) -> Tensor:
    """The whole of which a sharded tensor like `given` holds `part` here, on the host; all processes ask."""
    if not isinstance(given, DTensor):
        return part
    mesh, placements = given.device_mesh, given.placements
    sharded = DTensor.from_local(part, mesh, placements, run_check=False, shape=given.shape, stride=given.stride())
    return sharded.full_tensor().cpu()


def forget(denoiser: nn.Module) -> None:
    """Give back what was gathered: it may be the weights of a past self."""
    for module in denoiser.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextlib.contextmanager
def lent(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], denoiser: nn.Module) -> Iterator[None]:
    """Other tensors in the place of the parameters'; of sharded ones the values, as their memory is not ours."""
    sharded = any(isinstance(p.data, DTensor) for p in parameters.values())
    kept = {n: local(p.data).clone() if sharded else p.data for n, p in parameters.items()}
    try:
        _put(parameters, tensors, denoiser if sharded else None)
        yield
    finally:
        _put(parameters, kept, denoiser if sharded else None)


def _put(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], sharded: nn.Module | None) -> None:
    for n, p in parameters.items():
        if sharded is not None:
            local(p.data).copy_(tensors[n])
        else:
            p.data = tensors[n]
    if sharded is not None:
        forget(sharded)


@contextlib.contextmanager
def quiet(denoiser: nn.Module) -> Iterator[None]:
    """Within: gradients of a sharded network are added up in each process, and not yet over the processes."""
    if isinstance(denoiser, FSDPModule):
        denoiser.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            denoiser.set_requires_gradient_sync(True)
    else:
        yield


def hearing() -> Callable[[bool], bool]:
    """A function by which each process says whether it was told, and learns whether any was: one call later.

    Until then what was said is on its way from host to host, so that a call waits for no device, and for no process
    but one that is a whole call behind. All processes ask, equally often.
    """
    group = dist.new_group(backend="gloo")
    sent: list[tuple[Any, Tensor]] = []

    def ask(told: bool) -> bool:
        said = torch.tensor(float(told))
        sent.append((dist.all_reduce(said, group=group, async_op=True), said))
        if len(sent) == 1:
            return False
        work, any_told = sent.pop(0)
        work.wait()
        return bool(any_told)

    return ask


def norm(total: Tensor) -> Tensor:
    """A gradient's norm as a plain tensor; all processes ask."""
    return total.full_tensor() if isinstance(total, DTensor) else total


@contextlib.contextmanager
def together(device: torch.device) -> Iterator[None]:
    """What one process fails at, all fail at: nobody waits for one that is gone. Ends when all are through."""
    failure = None
    try:
        yield
    except (OSError, InputError) as error:
        failure = error
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        failed = torch.tensor(float(failure is not None), device=device)
        dist.all_reduce(failed)
        if failed and failure is None:
            raise Lost("another process failed, and said why")
    if failure is not None:
        raise failure

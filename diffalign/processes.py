"""Several processes of one command, as torchrun and accelerate launch start them: which this one is, and waiting."""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence

from diffalign.records import InputError

_LONGEST = datetime.timedelta(days=7)


def place() -> tuple[int, int]:
    """(rank, world size) from the environment that launchers set; (0, 1) without one."""
    said = [os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))]
    if not all(text.isdigit() for text in said) or not 0 <= int(said[0]) < int(said[1]):
        raise InputError(f"RANK = {said[0]!r}, WORLD_SIZE = {said[1]!r}: expected a rank below the number of processes")
    return int(said[0]), int(said[1])


def device(kind: str) -> str:
    """The accelerator of this process: the one of its number on this machine; the CPU is one for all."""
    return f"{kind}:{os.environ.get('LOCAL_RANK', '0')}" if kind != "cpu" else kind


@contextlib.contextmanager
def together() -> Iterator[Callable[[], None]]:
    """Gives a function that returns when all processes have called it; at once where this one is alone.

    Inside another one the processes are together already: launchers keep one store, in which a group is made once.
    """
    if place()[1] == 1:
        yield lambda: None
        return
    from torch import distributed

    def meet() -> None:
        with _others_at_work():
            distributed.barrier()

    if distributed.is_initialized():
        yield meet
        return
    distributed.init_process_group("gloo", timeout=_LONGEST)
    try:
        yield meet
    finally:
        distributed.destroy_process_group()


def total(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """The sum of rows of equal lengths over all processes, which have to be together; the rows where this one is alone.

    Raises InputError where another process has ended.
    """
    if place()[1] == 1 or not rows:
        return [list(map(int, row)) for row in rows]
    import torch
    from torch import distributed

    found = torch.tensor(rows, dtype=torch.int64)
    with _others_at_work():
        distributed.all_reduce(found)
    return found.tolist()


@contextlib.contextmanager
def _others_at_work() -> Iterator[None]:
    """Around what all processes do together: says so where one of them has ended."""
    try:
        yield
    except RuntimeError:
        raise InputError("another process of this command has ended; what is written stays, run it again") from None

"""Several processes that train together over gloo, with the environment that torchrun gives them.

Forked from the server of `commands`, which has imported everything: torchrun itself would import it in each of them.
"""

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import torch
from accelerate.state import AcceleratorState


def together(work: Callable[..., None], place: Path, *arguments: Any, world: int = 2, seconds: float = 240) -> None:
    """Run `work(place, *arguments)` in `world` processes, to their end; raises AssertionError with what they said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = commands._CONTEXT
    started = [context.Process(target=_one, args=(work, rank, world, port, place, arguments)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join(seconds)
    hanging = [p for p in started if p.exitcode is None]
    for process in hanging:
        process.kill()
    said = "\n".join(p.read_text() for p in sorted(place.glob("error-*")))
    assert not hanging, f"{len(hanging)} processes hang\n{said}"
    assert [p.exitcode for p in started] == [0] * world, said


def _one(work: Callable[..., None], rank: int, world: int, port: int, place: Path, arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # what was found before the environment said otherwise
    try:
        work(place, *arguments)
    except BaseException:
        (place / f"error-{rank}").write_text(traceback.format_exc())
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

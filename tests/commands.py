"""The command line in processes that can be interrupted, killed and confined, without importing torch each time.

A server process imports everything once and forks; what runs in a fork is `diffalign.cli.main` and nothing else.
"""

import multiprocessing
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["warm"])
# the server looks for `warm` where Python looks, not where pytest does
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit status (negative: the signal that killed it), and what it said."""

    status: int
    out: str
    err: str

    @property
    def complaints(self) -> str:
        """What it said beside its result, but for how fast images were drawn."""
        return re.sub(r"^\d+ images drawn, [\d.e+]+ a second\n", "", self.err, flags=re.M)


class Command:
    """`diffalign WORDS` at work in the folder `cwd`; `largest` limits the size of any file that it writes, in bytes.

    `said` is where its output goes, where several are at work in one folder; `environment` is added to its own.
    """

    def __init__(
        self,
        *words: object,
        cwd: Path,
        largest: int | None = None,
        said: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._said = ((said or cwd) / ".out", (said or cwd) / ".err")
        arguments = ([str(w) for w in words], cwd, *self._said, largest, environment or {})
        self._process = _CONTEXT.Process(target=_main, args=arguments)
        self._process.start()

    def until(self, condition: Callable[[], bool], seconds: float = 600) -> "Command":
        """Wait for something that the command does; fail where it ends before."""
        end = time.monotonic() + seconds
        while not condition():
            assert self._process.is_alive(), f"ended before it came so far: {self.ended()}"
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.0005)
        return self

    def signal(self, number: signal.Signals) -> "Command":
        """Send a signal."""
        os.kill(self._process.pid, number)
        return self

    def ended(self) -> Ended:
        """Wait for the end."""
        self._process.join(600)
        assert self._process.exitcode is not None, "does not end"
        return Ended(self._process.exitcode, *(p.read_text() if p.exists() else "" for p in self._said))


def launched(words: Sequence[object], cwd: Path, world: int = 2) -> list[Command]:
    """Processes of one command, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    for rank in range(world):
        (cwd / str(rank)).mkdir()
    return [
        Command(
            *words, cwd=cwd, said=cwd / str(rank), environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(world)
    ]


def forked(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """A function of a test's module at work in a process of its own, which can be killed."""
    process = _CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def wait(process: BaseProcess, condition: Callable[[], bool], seconds: float = 600) -> None:
    """Wait for something that a process does; fail where it ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), f"ended before it came so far: {process.exitcode}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.0005)


def run(*words: object, cwd: Path, largest: int | None = None) -> Ended:
    """`diffalign WORDS` in the folder `cwd`, to its end."""
    return Command(*words, cwd=cwd, largest=largest).ended()


def _main(words: list[str], cwd: Path, out: Path, err: Path, largest: int | None, environment: dict[str, str]) -> None:
    os.environ |= environment
    os.chdir(cwd)
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    # a suite at work in a shell's background ignores Ctrl-C, and so would all that it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["diffalign", *words]
    from diffalign.cli import main

    main()


def contents(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Relative path -> bytes of all files below a folder, those left out whose path has a part in `without`."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    named = {p.relative_to(folder): p for p in files}
    return {n.as_posix(): p.read_bytes() for n, p in named.items() if not set(n.parts) & set(without)}

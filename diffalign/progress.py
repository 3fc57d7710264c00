"""One progress bar for all stages, on stderr, silent where nobody is looking."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def track(items: Iterable[T], title: str, total: int | Iterable[Sized], unit: str = "") -> Iterator[T]:
    """Yield the items, with a bar that says how many of `total` are done and how long the rest will take.

    Where `total` is what each item holds, it says how much of that is done, in `unit`s, and how much a second.
    """
    weights = None if isinstance(total, int) else [len(held) for held in total]
    columns = [TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    if weights is not None:
        columns.append(TextColumn(f"{{task.fields[speed]}} {unit}/s"))
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(title, total=total if weights is None else sum(weights), speed="…")
        for number, item in enumerate(items):
            yield item
            bar.advance(task, 1 if weights is None else weights[number])
            speed = bar.tasks[0].speed
            bar.update(task, speed=f"{speed:.3g}" if speed else "…")


@contextmanager
def bar(title: str, done: int, total: int, quiet_for: float = 60.0) -> Iterator[Callable[[int, str], None]]:
    """Gives a function (done, text) that shows both with the time left, in place.

    Where nobody is looking (a log file) it writes a line, and no more than one in `quiet_for` seconds.
    """
    if not sys.stderr.isatty():
        spoke = [time.monotonic()]

        def line(now: int, text: str) -> None:
            if time.monotonic() - spoke[0] >= quiet_for:
                spoke[0] = time.monotonic()
                print(f"{title} {now}/{total}: {text}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=total, completed=done, text="")
        yield lambda now, text: shown.update(task, completed=now, **({"text": text} if text else {}))

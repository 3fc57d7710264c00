"""Words -> values by the types of a function or dataclass; what is typed wrongly is said in one line."""

import contextlib
import difflib
import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from diffalign.records import InputError

T = TypeVar("T")
# a field whose own fields are flags without its name before them
Unprefixed = tyro.conf.arg(name="")


def call(function: Callable[..., T], words: Sequence[str], program: str) -> Callable[[], T]:
    """The call of `function` that the words ask for, not yet made: only mistakes in the words are caught here."""

    @functools.wraps(function)
    def bind(*positional: Any, **named: Any) -> Callable[[], T]:
        return functools.partial(function, *positional, **named)

    return parse(bind, words, program)


def parse(target: Callable[..., T], words: Sequence[str], program: str, default: T | None = None) -> T:
    """What `target` makes of the words, over the values of `default`.

    Raises InputError in one line, with the nearest name where a flag is unknown; exits after --help.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return _cli(target, words, program, default)
    except SystemExit as end:
        if not end.code:
            raise
    except ValueError as error:
        raise InputError(str(error)) from None
    hint = f"`{program} --help` says more"
    known = _flags(target, program, default)
    for flag in (word.split("=")[0].replace("_", "-") for word in words if word.startswith("--")):
        if flag not in known:
            near = difflib.get_close_matches(flag, known, 1)
            raise InputError(f"no flag {flag}{f', did you mean {near[0]}?' if near else ''} ({hint})")
    raise InputError(f"{_plain(said.getvalue())} ({hint})")


def _cli(target: Callable[..., T], words: Sequence[str], program: str, default: T | None) -> T:
    if default is None:
        return tyro.cli(target, args=words, prog=program)
    return tyro.cli(target, args=words, prog=program, default=default)


def _flags(target: Callable[..., T], program: str, default: T | None) -> list[str]:
    """All flags, as the help shows them."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        _cli(target, ["--help"], program, default)
    return sorted(set(re.findall(r"--[\w.-]+", shown.getvalue())))


def _plain(box: str) -> str:
    """A framed message as one line: its sections without the frame (of dashes where a terminal knows no lines), the
    help and what is said anyway.
    """
    inner = re.sub(r"^[╭╰].*$", "", box, flags=re.M).replace("│", " ")
    sections = [" ".join(section.split()) for section in re.split(r"[─-]{3,}", inner)]
    kept = [s for s in sections if s and not s.startswith(("For full helptext", "Argument helptext"))]
    return "; ".join(kept)

"""A recipe's file -> its run: somebody's Python, executed once, its mistakes in one line."""

import dataclasses
import difflib
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from diffalign import outsiders, places
from diffalign.records import InputError
from diffalign.run import LoRA, Run


@dataclass(frozen=True)
class Recipe:
    """A loaded recipe: its run, the file it lies in and the sha256 of that file."""

    run: Run
    path: Path
    sha256: str


def load_recipe(name: str) -> Recipe:
    """The run of `file.py`, `file.py:name` or a shipped recipe's name; raises InputError with one line on anything
    else.

    The file is executed as a module of its own and entered in `sys.modules`, so that an objective written inside a
    recipe works like one of the library's.
    """
    text, _, attribute = name.partition(":")
    path = places.recipe(text)
    source = path.read_bytes()
    if path.suffix != ".py":
        raise InputError(f"{path}: is not a Python file")
    loader = _Fresh(f"recipe_{path.stem}", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module
    try:
        loader.exec_module(module)
    except Exception as error:  # whatever somebody's code may raise
        raise InputError(f"{outsiders.told(error, path)}{_nearest(error, module)}") from None
    run = module.__dict__.get(attribute or "run")
    if not isinstance(run, Run):
        raise InputError(f"{path}: defines no `{attribute or 'run'} = Run(...)`")
    for wrong in mistyped(run):
        raise InputError(f"{path}: {wrong}")
    return Recipe(run, path, hashlib.sha256(source).hexdigest())


def mistyped(value: Any, name: str = "") -> Iterator[str]:
    """ "field = value: expected type" of each field of a dataclass, and of those inside it, that holds something else
    than it is declared to: Python itself would not mind.
    """
    hints = _hints(type(value))
    for field in dataclasses.fields(value):
        found, hint = getattr(value, field.name), hints.get(field.name, Any)
        place = f"{name}.{field.name}" if name else field.name
        if not _fits(found, hint):
            yield f"{place} = {found!r}: expected {_in_words(hint)}"
        elif dataclasses.is_dataclass(found) and not isinstance(found, type):
            yield from mistyped(found, place)


def _in_words(hint: Any) -> str:
    """A declared type in words: the values of a list of values, the name of a class."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, inner))
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) and not inner else str(hint)


def _hints(kind: type) -> dict[str, Any]:
    """The declared types of a dataclass's fields; none where one of them is imported for a type checker alone."""
    try:
        return get_type_hints(kind)
    except NameError:
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type; of kinds of type that are not known here anything is."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is tuple and isinstance(value, tuple):
        every = (inner[0],) * len(value) if inner[1:] == (...,) else inner
        return len(every) == len(value) and all(map(_fits, value, every))
    if hint in (int, float):  # a truth value is an int too, and an int will do for a float
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    try:
        return isinstance(value, origin or hint)
    except TypeError:  # no class, or one that cannot be asked, as Any and most protocols
        return True


def start_of(run: Run) -> Path | None:
    """The adapter that the first of several rounds starts from; raises InputError where a run trains no adapter."""
    if not isinstance(run.policy, LoRA):
        raise InputError(f"policy = {run.policy}: expected a LoRA; a round goes on from the adapter of the one before")
    return Path(run.policy.start) if run.policy.start else None


class _Fresh(SourceFileLoader):
    """Compiles what lies there now: a compilation kept from before is told apart by size and second alone."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _nearest(error: Exception, module: ModuleType) -> str:
    """The nearest field where an error is of a misspelt one, else ""."""
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    kind = vars(module).get(found[1]) if found else None
    names = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    near = difflib.get_close_matches(found[2], names, 1) if found else []
    return f", did you mean {near[0]!r}?" if near else ""

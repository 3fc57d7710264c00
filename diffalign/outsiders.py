"""Somebody's function from their own file: `file.py:function`, executed once, its mistakes in one line."""

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffalign.records import InputError, digest


def load(text: str, kind: str) -> tuple[Callable[..., Any], str]:
    """(the function, a hash of its file) of "file.py:function"; `kind` says in errors what it was wanted for."""
    name, _, function = text.rpartition(":")
    path = Path(name)
    if path.suffix != ".py":
        raise InputError(f"{kind} {text!r}: expected file.py:function")
    if not path.is_file():
        raise InputError(f"{path}: no such {kind} file")
    source = path.read_bytes()
    spec = importlib.util.spec_from_file_location(f"{kind}_{path.stem}_{digest(source)[:8]}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(told(error, path)) from None
    found = module.__dict__.get(function)
    if not callable(found):
        known = ", ".join(k for k, v in module.__dict__.items() if callable(v) and not k.startswith("_")) or "none"
        raise InputError(f"{path}: defines no function {function!r} (it defines: {known})")
    return found, digest(source)


def told(error: Exception, path: Path) -> str:
    """An error in one line, behind the last line of the file that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename).resolve() == path.resolve()]
    line = f", line {lines[-1]}" if lines else ""
    return f"{path}{line}: {type(error).__name__}: {' '.join(str(error).split())}"

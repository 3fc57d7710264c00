"""Where shipped things lie: inside an installed package, or beside the package in a checkout."""

from pathlib import Path

from diffalign.records import InputError

_PACKAGE = Path(__file__).parent


def _shipped(kind: str) -> Path:
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def asset(name: str) -> Path:
    """The folder or file `name` (say "shapes/clip") among the shipped assets; raises InputError where it is missing."""
    path = _shipped("assets") / name
    if not path.exists():
        raise InputError(f"{path}: the asset {name!r} is not there; a complete checkout or wheel ships it")
    return path


def recipe(name: str) -> Path:
    """The recipe file `name`: that path where it is a file, else the shipped recipe of that name.

    ".py" may be left out of a shipped name. Raises InputError listing the shipped recipes where there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {p.stem: p for p in sorted(_shipped("train").glob("*.py"))}
    if path.name == name and path.name.removesuffix(".py") in shipped:
        return shipped[path.name.removesuffix(".py")]
    known = ", ".join(shipped) or "none"
    raise InputError(f"{name}: no such recipe file, nor a shipped recipe (shipped: {known})")

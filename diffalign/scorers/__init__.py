"""By whom images are judged: one file a judge, one table of names; anybody's `file.py:function` is a scorer as well."""

import difflib
import importlib
from collections.abc import Collection, Sequence
from pathlib import Path

from PIL.Image import Image

from diffalign import outsiders
from diffalign.records import InputError
from diffalign.scorers.base import UNREADABLE, Answers, Score, Scorer, Spent, Unavailable

__all__ = [
    "MEASURES", "NAMES", "UNREADABLE", "Answers", "Score", "Scorer", "Spent", "Unavailable", "judge_of", "load",
    "whole",
]  # fmt: skip

# name -> (module, function that takes the place after "=", or "", and gives a Scorer)
NAMES = {
    "gold": ("diffalign.scorers.gold", "gold"),
    "gold_right": ("diffalign.scorers.gold", "gold_right"),
    "shapes_clip": ("diffalign.scorers.openclip", "shapes_clip"),
    "clip": ("diffalign.scorers.openclip", "clip"),
    "clipscore": ("diffalign.scorers.clipscore", "clipscore"),
    "clipscore_original": ("diffalign.scorers.clipscore", "clipscore_original"),
    "pickscore": ("diffalign.scorers.pickscore", "pickscore"),
    "hpsv2": ("diffalign.scorers.hps", "hpsv2"),
    "hpsv2_aliased": ("diffalign.scorers.hps", "hpsv2_aliased"),
    "hpsv2.1": ("diffalign.scorers.hps", "hpsv2_1"),
    "hpsv2.1_aliased": ("diffalign.scorers.hps", "hpsv2_1_aliased"),
    "imagereward": ("diffalign.scorers.imagereward", "imagereward"),
    "aesthetic": ("diffalign.scorers.aesthetic", "aesthetic"),
    "aesthetic_v2.5": ("diffalign.scorers.siglip", "aesthetic_v2_5"),
    "ict": ("diffalign.scorers.icthp", "ict"),
    "hp": ("diffalign.scorers.icthp", "hp"),
    "icthp": ("diffalign.scorers.icthp", "icthp"),
    "mps": ("diffalign.scorers.mps", "mps"),
    "hpsv3": ("diffalign.scorers.hpsv3", "hpsv3"),
    "vqascore": ("diffalign.scorers.vqascore", "vqascore"),
    "trained": ("diffalign.scorers.trained", "trained"),
    "judge": ("diffalign.scorers.judge", "judge"),
}
# What only measures: no preference is ever made of these.
MEASURES = ("gold", "gold_right")


def whole(names: Collection[str]) -> list[str]:
    """The names without those of parts of others, NAME/PART beside NAME: parts count where they are asked for."""
    return [name for name in names if name.rpartition("/")[0] not in names]


def judge_of(name: str) -> str:
    """The name of the scorer that gives a score: NAME of its part NAME/PART."""
    return name.partition("/")[0]


def load(text: str) -> Scorer:
    """The scorer of "name", "name=place" or "file.py:function"; raises InputError naming what is known.

    Naming loads no weights: those are read at the first call.
    """
    path, _, function = text.rpartition(":")
    if path.endswith(".py"):
        found, revision = outsiders.load(text, "scorer")
        # whether it needs the prompt is its own affair
        return Scorer(
            f"{Path(path).name}:{function}", revision, "PIL, RGB", lambda: _guarded(found, Path(path)), blind=True
        )
    name, _, place = text.partition("=")
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"scorer {name!r}: {hint}expected one of {', '.join(NAMES)}, or file.py:function")
    module, function = NAMES[name]
    return getattr(importlib.import_module(module), function)(place)


def _guarded(function: Score, path: Path) -> Score:
    """Somebody's function on pictures of its own, so that what it does to them no other scorer sees.

    What an unreadable picture raises is a missing score, as of any scorer; another error ends the command in one line.
    """

    def ask(images: Sequence[Image], prompts: Sequence[str]) -> object:
        # one object for all images of one file, as where they come from
        own = {id(image): image.copy() for image in images}
        try:
            return function([own[id(image)] for image in images], prompts)
        except UNREADABLE:
            raise
        except Exception as error:
            raise Unavailable(f"scorer {outsiders.told(error, path)}") from None

    return ask

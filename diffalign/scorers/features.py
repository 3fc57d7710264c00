"""Pictures as rows of numbers, for scores of whole sets of them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL.Image import Image

from diffalign import outsiders, places
from diffalign.records import InputError
from diffalign.scorers.networks import Networks

Features = Callable[[Sequence[Image]], np.ndarray]


def load(text: str) -> tuple[Features, str]:
    """(images -> features (images, d), a hash of what gives them): shapes_clip, clip=FOLDER, or file.py:function.

    The open_clip folders give their picture embeddings, of length 1. Raises InputError for anything else.
    """
    name, _, place = text.partition("=")
    if name in ("shapes_clip", "clip") and (place or name == "shapes_clip"):
        from diffalign.scorers.openclip import OpenClip, open_folder

        folder = Path(place) if place else places.asset("shapes/clip")
        revision = open_folder(name, folder).revision
        return partial(_embeddings, OpenClip(folder)), revision
    if ".py:" not in text:
        raise InputError(f"features {text!r}: expected shapes_clip, clip=FOLDER or file.py:function")
    return outsiders.load(text, "features")


def _embeddings(judge: Networks, images: Sequence[Image]) -> np.ndarray:
    """What a judge with towers sees of pictures, each row of length 1, float32, (images, d)."""
    import torch

    from diffalign.scorers.pixels import stacked
    from diffalign.scorers.towers import normal

    first = next(judge.towers[0].parameters())
    with torch.no_grad():
        return normal(judge.see(stacked(judge.preprocess, images).to(first.device, first.dtype))).cpu().numpy()


def checked(given: object, count: int, text: str) -> np.ndarray:
    """What a function gave for `count` pictures, float64 (count, d); raises InputError where it is something else."""
    try:
        found = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"features {text}: gave {type(given).__name__}, expected an array of numbers") from None
    if found.ndim != 2 or len(found) != count or not np.isfinite(found).all():
        raise InputError(f"features {text}: gave shape {found.shape}, expected finite numbers of shape ({count}, d)")
    return found

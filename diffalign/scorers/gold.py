"""The embedded world's exact judge as scorers: what measures alignment, and what no method is trained on."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL.Image import Image

from diffalign.decoding import flat
from diffalign.records import InputError
from diffalign.scorers.base import Scorer


def gold(place: str) -> Scorer:
    """The gold score, in [0, 1]: how many of the demanded attributes are right, and how crisply they are drawn."""
    return _scorer("gold", _score, place)


def gold_right(place: str) -> Scorer:
    """1.0 where every demanded attribute is right, else 0.0."""
    return _scorer("gold_right", _right, place)


def _scorer(name: str, function, place: str) -> Scorer:
    if place:
        raise InputError(f"scorer {name}: takes no place, but {place!r} was given")
    from diffalign import shapes

    h = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(shapes.__file__).parent.glob("*.py")):
        h.update(path.read_bytes())
    return Scorer(name, h.hexdigest(), "RGB, uint8, as drawn", lambda: function, understands=_parsed)


def _parsed(prompt: str) -> object:
    from diffalign.shapes.grammar import parse

    return parse(prompt)


def _score(images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
    return np.array([v.score for v in _verdicts(images, prompts)], dtype=np.float64)


def _right(images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
    return np.array([v.all_right for v in _verdicts(images, prompts)], dtype=np.float64)


def _verdicts(images: Sequence[Image], prompts: Sequence[str]) -> list:
    pictures = [np.asarray(flat(image)) for image in images]
    return [_verdict(x.tobytes(), x.shape, prompt) for x, prompt in zip(pictures, prompts, strict=True)]


@functools.lru_cache(maxsize=128)
def _verdict(pixels: bytes, shape: tuple[int, ...], prompt: str):
    """Remembered, because gold and gold_right ask of the same batch in turn, and reading a picture takes long."""
    from diffalign.shapes.gold import judge

    return judge(np.frombuffer(pixels, np.uint8).reshape(shape), prompt)

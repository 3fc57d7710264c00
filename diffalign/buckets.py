"""Aspect-ratio buckets: one size for all images of a group, and what a centre crop to it hides."""

import functools
import math
from collections.abc import Sequence
from typing import Any

STEP = 64


@functools.cache
def sizes(resolution: int) -> tuple[tuple[int, int], ...]:
    """(width, height) of the buckets: multiples of 64 whose area is at most resolution², the largest of each width and
    the same turned round, up to four times as wide as high.
    """
    found = set()
    for width in range(STEP, 2 * resolution + 1, STEP):
        height = resolution * resolution // width // STEP * STEP
        if height and 0.25 <= width / height <= 4:
            found |= {(width, height), (height, width)}
    return tuple(sorted(found)) or ((resolution, resolution),)


def nearest(aspect: float, resolution: int) -> tuple[int, int]:
    """The bucket whose logarithm of width / height is nearest; of two, the squarer."""
    return min(sizes(resolution), key=lambda s: (abs(math.log(s[0] / s[1] / aspect)), abs(math.log(s[0] / s[1]))))


def shared(images: Sequence[tuple[int, int]], resolution: int) -> tuple[int, int]:
    """The bucket of a group of (width, height): that of the mean logarithm of their aspect ratios."""
    return _shared(tuple(sorted(images)), resolution)


@functools.lru_cache(maxsize=1 << 16)
def _shared(images: tuple[tuple[int, int], ...], resolution: int) -> tuple[int, int]:
    return nearest(math.exp(sum(math.log(w / h) for w, h in images) / len(images)), resolution)


@functools.lru_cache(maxsize=1 << 16)
def hidden(image: tuple[int, int], bucket: tuple[int, int]) -> float:
    """The share of an image that is cut off where it is scaled to cover the bucket and cropped at its centre."""
    scale = max(bucket[0] / image[0], bucket[1] / image[1])
    return 1 - bucket[0] * bucket[1] / (image[0] * image[1] * scale * scale)


def summary(cuts: Sequence[float], resolution: int) -> dict[str, Any]:
    """What the groups' buckets hide: the most that any image of a group loses."""
    return {
        "resolution": resolution,
        "hidden_mean": sum(cuts) / len(cuts) if cuts else None,
        "hidden_most": max(cuts, default=None),
        "hidden_over_a_quarter": sum(c > 0.25 for c in cuts),
    }

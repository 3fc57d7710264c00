"""Pictures -> tensors, as each judge's authors did it: PIL in, float32 of shape (3, height, width) out.

Two croppers, because they differ by one pixel where the margin is odd: transformers rounds it down, torchvision to the
nearest even number. A picture with an alpha channel lies on white. Each has a `smooth` form on float pixels, which has
a gradient and misses only the rounding to 8 bits.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch
from torch.nn import functional

from diffalign.decoding import flat

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
_BICUBIC, _BILINEAR = PIL.Image.Resampling.BICUBIC, PIL.Image.Resampling.BILINEAR


class Preprocess(ABC):
    """A picture -> pixels, (3, height, width), float32."""

    @abstractmethod
    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        """Exactly what the judge's authors do."""

    @abstractmethod
    def smooth(self, x: torch.Tensor) -> torch.Tensor:
        """The same of pixels in [0, 1], (3, height, width), without rounding to 8 bits."""


@dataclass(frozen=True)
class Cropped(Preprocess):
    """Shortest edge to `size` (bicubic, PIL, 8 bits), centre crop, CLIP's mean and deviation.

    floor: margins as transformers' CLIP processor cuts them; else as torchvision does, and with it OpenAI and BLIP.
    """

    size: int
    floor: bool
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        image = flat(image)
        width, height = self._resized(*image.size)
        left, top = self._margin(width), self._margin(height)
        image = image.resize((width, height), _BICUBIC).crop((left, top, left + self.size, top + self.size))
        return normalised(unit(image), self.mean, self.std)

    def smooth(self, x: torch.Tensor) -> torch.Tensor:
        width, height = self._resized(x.shape[2], x.shape[1])
        left, top = self._margin(width), self._margin(height)
        x = resized(x, height, width)[:, top : top + self.size, left : left + self.size]
        return normalised(x, self.mean, self.std)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        long = int(self.size * max(width, height) / min(width, height))
        return (self.size, long) if width <= height else (long, self.size)

    def _margin(self, length: int) -> int:
        return (length - self.size) // 2 if self.floor else round((length - self.size) / 2)


@dataclass(frozen=True)
class Squashed(Preprocess):
    """Both edges to `size` (PIL, 8 bits), the aspect ratio lost, as SigLIP's processor.

    mean, std: of values in [0, 1]; the usual ones give [-1, 1]. bilinear: as SigLIP 2's processor; else bicubic.
    """

    size: int
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    bilinear: bool = False

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        how = _BILINEAR if self.bilinear else _BICUBIC
        return normalised(unit(flat(image).resize((self.size, self.size), how)), self.mean, self.std)

    def smooth(self, x: torch.Tensor) -> torch.Tensor:
        x = resized(x, self.size, self.size, how="bilinear" if self.bilinear else "bicubic")
        return normalised(x, self.mean, self.std)


@dataclass(frozen=True)
class Padded(Preprocess):
    """Longest edge to `size` (bicubic on floats, not clamped), black bars to a square, CLIP's mean and deviation.

    antialias: what torchvision does since 0.17; without it what it did before, when HPSv2 and HPSv2.1 were published.
    """

    size: int
    antialias: bool

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        return self.smooth(unit(flat(image)))

    def smooth(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.size / float(max(x.shape[1:]))
        height, width = (max(1, round(length * scale)) for length in x.shape[1:])
        if scale != 1.0:
            x = resized(x, height, width, antialias=self.antialias)
        left, top = (self.size - width) // 2, (self.size - height) // 2
        x = functional.pad(x, (left, self.size - width - left, top, self.size - height - top))
        return normalised(x, CLIP_MEAN, CLIP_STD)


def stacked(preprocess: Callable[[PIL.Image.Image], torch.Tensor], images: Sequence[PIL.Image.Image]) -> torch.Tensor:
    """The pixels of the pictures, (images, 3, height, width), made by as many threads as there are cores."""
    threads = min(len(images), len(os.sched_getaffinity(0)))
    if threads == 1:
        return torch.stack([preprocess(image) for image in images])
    with ThreadPoolExecutor(threads) as pool:
        return torch.stack(list(pool.map(preprocess, images)))


def through(preprocess: Preprocess, x: torch.Tensor) -> torch.Tensor:
    """Straight-through: the values of the exact pixels, the gradient of the smooth ones; x is (images, 3, h, w) in
    [0, 1], which is rounded to 8 bits for the value.
    """
    found = []
    for one in x:
        found.append(straight(preprocess(rounded(one)), preprocess.smooth(one)))
    return torch.stack(found)


def rounded(x: torch.Tensor) -> PIL.Image.Image:
    """The picture of 8 bits nearest to pixels (3, height, width) in [0, 1]."""
    eight = (x.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return PIL.Image.fromarray(eight.permute(1, 2, 0).cpu().numpy())


def straight(exact: torch.Tensor, smooth: torch.Tensor) -> torch.Tensor:
    """The values of `exact`, the gradient of `smooth`, of which it has the device and the type."""
    return exact.to(smooth) + (smooth - smooth.detach())


def patched(x: torch.Tensor, height: int, width: int, how: "BaseImageProcessor") -> torch.Tensor:
    """Pixels (3, h, w) in [0, 1] as Qwen2-VL and its family see them, on floats: brought to height and width,
    normalised, and cut into rows of patches, (patches, 3 · frames · side²).

    `how` is the model's image processor. Squares of merge² patches come one after another, and in a row each channel
    as often as there are frames.
    """
    x = normalised(resized(x, height, width), how.image_mean, how.image_std)
    side, merge = how.patch_size, how.merge_size
    squares = x.unfold(1, side, side).unfold(2, side, side)
    squares = squares.unflatten(1, (-1, merge)).unflatten(3, (-1, merge))
    # (squares down, squares across, patches down, patches across, channels, height, width)
    rows = squares.permute(1, 3, 2, 4, 0, 5, 6).flatten(0, 3)
    return rows[:, :, None].expand(-1, -1, how.temporal_patch_size, -1, -1).flatten(1)


def resized(
    x: torch.Tensor, height: int, width: int, *, antialias: bool = True, how: str = "bicubic"
) -> torch.Tensor:  # fmt: skip
    """Pixels (3, h, w) brought to another size, on floats."""
    return functional.interpolate(
        x[None], (height, width), mode=how, align_corners=False, antialias=antialias
    )[0]  # fmt: skip


def unit(image: PIL.Image.Image) -> torch.Tensor:
    """Pixels in [0, 1], float32, (3, height, width)."""
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy()).float() / 255


def normalised(x: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(x - mean) / std, channel by channel."""
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (mean, std))
    return (x - mean) / std

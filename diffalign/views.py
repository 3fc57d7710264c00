"""How a picture becomes pixels: mirrored or not, scaled, cropped; one view is drawn for all images of a group."""

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffalign.streams import stream


@final
@dataclass(frozen=True)
class Pictures:
    """How pictures become latents. Crop and mirroring are drawn for a group and done to all its images alike.

    Attributes:
        shape: "square" crops to resolution x resolution; "buckets" gives each group, of the sizes of about as many
            pixels, that whose aspect ratio is nearest to its images'.
        crops: Places that a crop is drawn from, each cached; 1 is the centre.
        flip: Probability that a group is mirrored (captions say left and right).
        posterior: The mean of the autoencoder's posterior, or a sample of it, drawn anew at each visit.
        stored: How latents and embeddings lie in the cache.
        most_hidden: The share of an image above which what a crop hides is reported.
    """

    shape: Literal["square", "buckets"] = "square"
    crops: int = 1
    flip: float = 0.0
    posterior: Literal["mean", "sample"] = "mean"
    stored: Literal["float32", "float16"] = "float32"
    most_hidden: float = 0.25

    def __post_init__(self) -> None:
        if self.crops < 1 or not 0 <= self.flip <= 1 or not 0 <= self.most_hidden <= 1:
            raise ValueError(f"{self}: crops at least 1, flip and most_hidden from 0 to 1")


@dataclass(frozen=True)
class View:
    """Mirrored where `mirrored`, scaled to cover (width, height), cropped there at the share (x, y) of what is over."""

    width: int
    height: int
    x: float = 0.5
    y: float = 0.5
    mirrored: bool = False

    @property
    def name(self) -> str:
        """What is done to a picture beside its size, in a few letters."""
        return f"{self.x:.4f} {self.y:.4f}{' mirrored' if self.mirrored else ''}"


def place(number: int) -> tuple[float, float]:
    """(x, y) of the crop of that number: 0 is the centre, the others fill the square evenly (the R2 sequence)."""
    plastic = 1.324717957244746
    return (0.5 + number / plastic) % 1, (0.5 + number / plastic**2) % 1


def draw(bucket: tuple[int, int], crops: int, flip: float, seed: int, group: str, visit: int) -> View:
    """The view of a group at a visit: one of `crops` places, mirrored with probability `flip`."""
    number = int(stream("crop", seed, group, visit).integers(crops)) if crops > 1 else 0
    mirrored = flip > 0 and bool(stream("flip", seed, group, visit).random() < flip)
    return View(*bucket, *place(number), mirrored)


def every(bucket: tuple[int, int], crops: int, flip: float) -> list[View]:
    """All views that can be drawn in a bucket."""
    sides = [m for m, share in ((False, 1 - flip), (True, flip)) if share > 0]
    return [View(*bucket, *place(n), m) for n in range(crops) for m in sides]


def pixels(picture: PIL.Image.Image, view: View) -> Tensor:
    """The view of an RGB picture as bytes, (3, height, width): scaled bilinearly, antialiased.

    Within one level of Pillow's own resizing, whose filter and integers torch has, at a quarter of its time.
    """
    if view.mirrored:
        picture = picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    width, height = covering(picture.size, (view.width, view.height))
    left, top = corner((width, height), view)
    found = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    if (width, height) != picture.size:
        found = interpolate(found[None], size=(height, width), mode="bilinear", antialias=True)[0]
    return found[:, top : top + view.height, left : left + view.width]


def unit(found: Tensor) -> Tensor:
    """Bytes -> [-1, 1], float32."""
    return found.float().div_(127.5).sub_(1)


def covering(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a picture of (width, height) = `size`, scaled to cover the bucket."""
    scale = max(b / s for b, s in zip(bucket, size, strict=True))
    width, height = (max(b, round(s * scale)) for b, s in zip(bucket, size, strict=True))
    return width, height


def corner(size: tuple[int, int], view: View) -> tuple[int, int]:
    """(left, top) of the crop in the scaled picture."""
    return int((size[0] - view.width) * view.x), int((size[1] - view.height) * view.y)

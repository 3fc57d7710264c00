"""Pictures -> tensors, as each judge's authors did it: PIL in, float32 of shape (3, height, width) out.

Two croppers, because they differ by one pixel where the margin is odd: transformers rounds it down, torchvision to the
nearest even number. A picture with an alpha channel lies on white.
"""

from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
import torch

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
_BICUBIC = PIL.Image.Resampling.BICUBIC

Preprocess = Callable[[PIL.Image.Image], torch.Tensor]


def rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The picture in RGB, on white where it is transparent."""
    if image.mode == "RGB":
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def cropped(size: int, *, floor: bool) -> Preprocess:
    """Shortest edge to `size` (bicubic, PIL, 8 bits), centre crop, CLIP's mean and deviation.

    floor: margins as transformers' CLIP processor cuts them; else as torchvision does, and with it OpenAI and BLIP.
    """

    def preprocess(image: PIL.Image.Image) -> torch.Tensor:
        image = rgb(image)
        width, height = image.size
        long = int(size * max(width, height) / min(width, height))
        image = image.resize((size, long) if width <= height else (long, size), _BICUBIC)
        left, top = (_margin(length - size, floor) for length in image.size)
        return normalised(unit(image.crop((left, top, left + size, top + size))), CLIP_MEAN, CLIP_STD)

    return preprocess


def _margin(spare: int, floor: bool) -> int:
    return spare // 2 if floor else round(spare / 2)


def squashed(size: int) -> Preprocess:
    """Both edges to `size` (bicubic, PIL, 8 bits), the aspect ratio lost; values in [-1, 1], as SigLIP's processor."""

    def preprocess(image: PIL.Image.Image) -> torch.Tensor:
        return normalised(unit(rgb(image).resize((size, size), _BICUBIC)), HALF, HALF)

    return preprocess


def padded(size: int, *, antialias: bool) -> Preprocess:
    """Longest edge to `size` (bicubic on floats, not clamped), black bars to a square, CLIP's mean and deviation.

    antialias: what torchvision does since 0.17; without it what it did before, when HPSv2 and HPSv2.1 were published.
    """

    def preprocess(image: PIL.Image.Image) -> torch.Tensor:
        x = unit(rgb(image))
        scale = size / float(max(x.shape[1:]))
        height, width = (max(1, round(length * scale)) for length in x.shape[1:])
        if scale != 1.0:
            x = torch.nn.functional.interpolate(
                x[None], (height, width), mode="bicubic", align_corners=False, antialias=antialias
            )[0]
        left, top = (size - width) // 2, (size - height) // 2
        x = torch.nn.functional.pad(x, (left, size - width - left, top, size - height - top))
        return normalised(x, CLIP_MEAN, CLIP_STD)

    return preprocess


def unit(image: PIL.Image.Image) -> torch.Tensor:
    """Pixels in [0, 1], float32, (3, height, width)."""
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy()).float() / 255


def normalised(x: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(x - mean) / std, channel by channel."""
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

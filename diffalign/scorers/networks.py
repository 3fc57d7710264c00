"""Judges that are networks in this process: an image is seen once and a prompt read once, whatever the batch.

Nothing of torch is imported before a judge is loaded, so that naming one costs nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL.Image import Image

from diffalign.records import InputError
from diffalign.scorers.checkpoints import device

if TYPE_CHECKING:
    import torch
    from torch import nn

    from diffalign.scorers.pixels import Preprocess


class Differentiable(ABC):
    """A loaded judge whose scores have a gradient with respect to the pixels."""

    @abstractmethod
    def differentiable(self, pixels: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Scores, (images,), of pixels (images, 3, height, width) in [0, 1], with their gradient.

        The values are those of the pictures rounded to 8 bits; the gradient is that of resizing without rounding, taken
        where the exact pixels are (straight-through). Raises InputError where the judge resizes in a way that has none.
        """


class Networks(Differentiable):
    """A loaded judge: `preprocess` makes a picture a tensor, `see` features of it, `weigh` a score under a prompt.

    Attributes:
        preprocess: A picture -> pixels as the judge's authors make them.
        towers: The networks, whose precision may be lowered; what comes after them is computed in float32 at least.
    """

    preprocess: "Preprocess"
    towers: Sequence["nn.Module"]

    @abstractmethod
    def see(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Features of preprocessed pixels (images, 3, height, width); the first axis stays."""

    @abstractmethod
    def weigh(self, seen: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Scores, (images,), of features under as many prompts."""

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """Scores, (images,); a picture that is there several times (the same object) is seen once."""
        import torch

        from diffalign.scorers.pixels import stacked

        unique = {id(image): image for image in images}
        place = {key: n for n, key in enumerate(unique)}
        with torch.no_grad():
            seen = self.see(self._moved(stacked(self.preprocess, list(unique.values()))))
            seen = seen if len(unique) == len(images) else seen[[place[id(image)] for image in images]]
            return self.weigh(seen, prompts).cpu().numpy()

    def differentiable(self, pixels: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """See `Differentiable`; raises InputError where the resizing is open_clip's own."""
        from diffalign.scorers.pixels import Preprocess, through

        if not isinstance(self.preprocess, Preprocess):
            raise InputError("this tower's open_clip configuration resizes in a way that has no gradient here")

        return self.weigh(self.see(self._moved(through(self.preprocess, pixels))), prompts)

    def cast(self, dtype: "torch.dtype") -> None:
        """Compute the towers in `dtype`."""
        for tower in self.towers:
            tower.to(dtype)

    def _moved(self, pixels: "torch.Tensor") -> "torch.Tensor":
        first = next(self.towers[0].parameters())
        return pixels.to(first.device, first.dtype)


class Remembered:
    """What `encode` makes of prompts, (prompts, …), of which each is encoded once: the first that fit into `most` bytes
    are kept for good, and those of the call before until the next one.

    Nothing that was kept is dropped for what comes later: in turn prompts would push each other out.

    On the CPU each is encoded alone: its last bits would depend on what is encoded beside it, and so those of a run on
    where it was interrupted. A prompt's tokens are rows enough for a processor; a GPU takes all new prompts together.
    """

    def __init__(self, encode: Callable[[list[str]], "torch.Tensor"], most: int = 1 << 30) -> None:
        self.encode, self.most = encode, most
        self.known: dict[str, torch.Tensor] = {}
        self.last: dict[str, torch.Tensor] = {}
        self.held = 0

    def __call__(self, prompts: Sequence[str]) -> "torch.Tensor":
        import torch

        ready = {p: held[p] for held in (self.last, self.known) for p in prompts if p in held}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in ready]
        if new:
            size = 1 if device() == "cpu" else len(new)
            with torch.no_grad():
                rows = [row for i in range(0, len(new), size) for row in self.encode(new[i : i + size])]
            for prompt, row in zip(new, rows, strict=True):
                # a row of its own, so that dropping others frees them
                ready[prompt] = row.clone()
                if self.held + row.nbytes <= self.most:
                    self.known[prompt], self.held = ready[prompt], self.held + row.nbytes
        self.last = {prompt: ready[prompt] for prompt in prompts}
        return torch.stack([ready[prompt] for prompt in prompts])

    def clear(self) -> None:
        """Forget everything."""
        self.known.clear()
        self.last.clear()
        self.held = 0

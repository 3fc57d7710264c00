"""What a scorer is: any callable (images, prompts) -> one number an image, and how records name it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from PIL.Image import Image

from diffalign.records import InputError

Score = Callable[[Sequence[Image], Sequence[str]], np.ndarray]


@final
@dataclass(frozen=True)
class Scorer:
    """A score function under a name; calling it gives float64 of shape (images,), higher is better.

    Attributes:
        name: What records and the command line call it.
        revision: Content hash of its weights or its code: equal revisions give equal scores.
        preprocessing: What is done to a picture before the network sees it, in words.
        open: Gives the function, loading weights; called at the first use, so that naming a scorer costs nothing.
    """

    name: str
    revision: str
    preprocessing: str
    open: Callable[[], Score]

    @cached_property
    def function(self) -> Score:
        """The loaded function."""
        return self.open()

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """Scores of images (PIL, RGB) under as many prompts."""
        if len(images) != len(prompts):
            raise ValueError(f"scorer {self.name}: {len(images)} images and {len(prompts)} prompts")
        return self.checked(self.function(images, prompts), len(images))

    def checked(self, given: object, count: int) -> np.ndarray:
        """What the function gave for `count` images, as float64; raises InputError where it is something else."""
        try:
            values = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"scorer {self.name}: gave {type(given).__name__}, expected an array of numbers") from None
        if values.shape != (count,):
            raise InputError(f"scorer {self.name}: gave shape {values.shape}, expected {(count,)}")
        return values

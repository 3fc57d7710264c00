"""What a scorer is: any callable (images, prompts) -> one number an image, and how records name it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np
from PIL.Image import Image

from diffalign.records import InputError

if TYPE_CHECKING:
    import torch

Score = Callable[[Sequence[Image], Sequence[str]], np.ndarray]
# What a picture that cannot be decoded, or that a scorer cannot judge, raises. Any other error is a bug.
UNREADABLE = (OSError, ValueError, SyntaxError, ArithmeticError)


class Unavailable(InputError):
    """The judge cannot be asked now: the command ends, and goes on where it was when it is run again."""


@final
@dataclass(frozen=True)
class Spent:
    """What answers have cost: requests that were sent, and how many of them after a fault; questions asked again, as
    their answer could not be read; questions without an answer; tokens, as far as the server tells.
    """

    requests: int = 0
    retried: int = 0
    repeated: int = 0
    missing: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def said(self, prices: Sequence[float] = ()) -> str:
        """It in words; with the cost, where `prices` are those of a million prompt and completion tokens."""
        said = f"{self.requests} requests, {self.retried} of them retries, {self.repeated} asked again, "
        said += f"{self.missing} without an answer, {self.prompt_tokens} + {self.completion_tokens} tokens"
        if prices:
            said += f", cost {np.dot(prices, (self.prompt_tokens, self.completion_tokens)) / 1e6:.4g}"
        return said


@final
@dataclass(frozen=True)
class Answers:
    """What a score function may give instead of an array: NaN where there is no score, and why.

    `parts`: of a scorer with parts, the score of each, (images, parts). `deviations`: of a judge that says how sure it
    is, the standard deviation of each score, (images,).
    """

    values: np.ndarray
    reasons: tuple[str | None, ...]
    parts: np.ndarray | None = None
    deviations: np.ndarray | None = None

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype)


@final
@dataclass(frozen=True)
class Scorer:
    """A score function under a name; calling it gives float64 of shape (images,), higher is better.

    Attributes:
        name: What records and the command line call it.
        revision: Content hash of its weights or its code: equal revisions give equal scores.
        preprocessing: What is done to a picture before the network sees it, in words.
        open: Gives the function, loading weights; called at the first use, so that naming a scorer costs nothing.
        scale: Gives, from the loaded function, by what a difference of scores is multiplied to be log-odds; None where
            the judge's authors state no probability.
        spent: Gives, from the loaded function, what its answers have cost; None where they cost nothing.
        prices: Of a million prompt and completion tokens, where they are known.
        blind: Whether it looks at the image only, so that no prompt is needed.
        towers: Whether the loaded function holds networks, whose precision its `cast` may lower.
        parts: Of what its score is made; the function gives `Answers` with a score of each.
        understands: Raises InputError for a prompt that it cannot judge by; None where any will do.
        deviates: Whether the function gives `Answers` with the deviation of each score, which a probability needs.
    """

    name: str
    revision: str
    preprocessing: str
    open: Callable[[], Score]
    scale: Callable[[Score], float] | None = None
    spent: Callable[[Score], Spent] | None = None
    prices: tuple[float, ...] = ()
    blind: bool = False
    towers: bool = False
    parts: tuple[str, ...] = ()
    understands: Callable[[str], object] | None = None
    deviates: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What records call its scores: its own, and that of each part."""
        return self.name, *(f"{self.name}/{part}" for part in self.parts)

    @cached_property
    def function(self) -> Score:
        """The loaded function."""
        return self.open()

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """Scores of images (PIL, RGB) under as many prompts."""
        if len(images) != len(prompts):
            raise ValueError(f"scorer {self.name}: {len(images)} images and {len(prompts)} prompts")
        return self.checked(self.function(images, prompts), len(images))

    def lowered(self) -> "Scorer":
        """The scorer with its towers in bfloat16, which its preprocessing says; itself where there is nothing to lower.

        Features are normalised, and heads computed, in float32 as before.
        """
        if not self.towers:
            return self

        def opened() -> Score:
            import torch

            function = self.open()
            function.cast(torch.bfloat16)
            return function

        said = f"{self.preprocessing}, bfloat16 towers"
        return dataclasses.replace(self, preprocessing=said, open=opened, towers=False)

    def differentiable(self, pixels: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Scores, (images,), of pixels (images, 3, height, width) in [0, 1], with their gradient; see `Differentiable`.

        Raises InputError for a judge that has none.
        """
        from diffalign.scorers.networks import Differentiable

        if not isinstance(self.function, Differentiable):
            raise InputError(f"scorer {self.name}: has no gradient with respect to the pixels")
        return self.function.differentiable(pixels, prompts)

    def probability(self, first: np.ndarray | Answers, second: np.ndarray | Answers) -> np.ndarray:
        """P(first is better) = 1 / (1 + exp(-scale · (first - second))) of scores, by the judge's own temperature; of a
        judge that gives deviations, its mean over normal scores, which takes what `function` gave instead of scores.

        Raises InputError for a judge whose authors state none: fit one on held-out preferences.
        """
        if self.scale is None:
            raise InputError(f"scorer {self.name}: states no temperature, so a difference of scores is no probability")
        scale = self.scale(self.function)
        difference = scale * (np.asarray(first, np.float64) - np.asarray(second, np.float64))
        if not self.deviates:
            return _sigmoid(difference)
        both = [given.deviations for given in (first, second) if isinstance(given, Answers)]
        if len(both) < 2 or any(one is None for one in both):
            raise InputError(f"scorer {self.name}: a probability needs deviations; give it what `function` gave")
        return _blurred(difference, scale * np.hypot(*both))

    def checked(self, given: object, count: int) -> np.ndarray:
        """What the function gave for `count` images, as float64; raises InputError where it is something else."""
        try:
            values = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError):  # a tensor with its gradient is refused by the last
            raise InputError(f"scorer {self.name}: gave {type(given).__name__}, expected an array of numbers") from None
        if values.shape != (count,):
            raise InputError(f"scorer {self.name}: gave shape {values.shape}, expected {(count,)}")
        return values


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), in the form that does not overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def _blurred(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """E sigmoid(z), z ~ N(mean, deviation²), float64, by the trapezoidal rule over nine deviations on both sides.

    Its points lie at most half a unit apart up to a deviation of 100, where it is exact to ten digits.
    """
    widest = float(min(100.0, deviation.max(initial=0.0)))
    points = np.linspace(-9, 9, 1 + 2 * math.ceil(9 * max(4.0, 2 * widest)))
    weight = np.exp(-0.5 * points**2)
    total = sum(w * _sigmoid(mean + point * deviation) for w, point in zip(weight, points, strict=True))
    return total / weight.sum()

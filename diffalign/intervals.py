"""Paired comparison in numbers: outcomes, means by prompt, bootstrap intervals over prompts, sign-flip test."""

from collections.abc import Callable

import numpy as np

# Random numbers held at once by the resampling; a matter of memory, but the results hang on it to the last bit.
_CHUNK = 2_000_000


def outcomes(a: np.ndarray, b: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
    """1 where b > a + tolerance, 0 where b < a - tolerance, 1/2 between; (cells,) each."""
    return np.where(np.abs(b - a) <= tolerance, 0.5, (b > a).astype(np.float64))


def prompt_means(values: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """Mean of the cells of each prompt; values (cells,), prompt (cells,) in 0 … prompts - 1 -> (prompts,)."""
    return np.bincount(prompt, weights=values) / np.bincount(prompt)


def bootstrap(means: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """95 % percentile intervals of the mean over prompts, prompts resampled; means (k, prompts) -> (k, 2).

    All k statistics see the same resamples. The prompt is the unit because images of one prompt are correlated.
    Source: Efron and Tibshirani 1993, chapter 13.
    """
    n = means.shape[1]
    drawn = _chunked(resamples, n, lambda rows: means[:, rng.integers(n, size=(rows, n))].mean(axis=-1))
    return np.quantile(drawn, [0.025, 0.975], axis=1).T


def sign_flip(differences: np.ndarray, resamples: int, rng: np.random.Generator) -> float:
    """P(|mean of randomly signed differences| >= |mean|), two-sided, by (1 + hits) / (1 + resamples); (prompts,)."""
    n = len(differences)
    observed = abs(differences.mean())
    flipped = _chunked(resamples, n, lambda rows: (rng.choice((-1.0, 1.0), size=(rows, n)) @ differences)[None] / n)
    # Flips that give the observed mean again differ from it by rounding only, and count.
    hits = (np.abs(flipped) >= observed - 1e-12 * np.abs(differences).max()).sum()
    return float((1 + hits) / (1 + resamples))


def _chunked(resamples: int, n: int, draw: Callable[[int], np.ndarray]) -> np.ndarray:
    """`draw(rows)` until `resamples` columns are there, so many at once as memory should hold."""
    size = max(1, _CHUNK // n)
    return np.concatenate([draw(min(size, resamples - i)) for i in range(0, resamples, size)], axis=-1)

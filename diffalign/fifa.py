"""FiFA: which preferences to train on, by margin, quality of the text, and diversity of the prompts.

Value of a set S = Σ_{i in S} (margin_i + α quality_i) + γ H(S), where H is the k-nearest-neighbour entropy of the
prompts' embeddings: up to constants and a factor, the sum of the log distances to the k-th neighbour.
Source: Yang et al. 2024, Automated Filtering of Human Feedback Data for Aligning Text-to-Image Diffusion Models.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

WIDTH = 512
# In float32 the distance of equal unit vectors is anything up to this.
_SMALLEST = 1e-3


def embed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of hashed character trigrams, (texts, 512) float32: a stand-in that needs no text encoder."""
    rows = np.zeros((len(texts), WIDTH), np.float32)
    for row, text in zip(rows, texts, strict=True):
        padded = f"  {' '.join(text.casefold().split())} "
        for i in range(len(padded) - 2):
            code = int.from_bytes(hashlib.blake2b(padded[i : i + 3].encode(), digest_size=4).digest(), "little")
            row[code % WIDTH] += 1.0 if code >> 31 else -1.0
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def neighbour_distance(vectors: np.ndarray, k: int) -> np.ndarray:
    """(n,): the distance to the k-th nearest other vector; at least 0.001, and that where there are fewer others."""
    n = len(vectors)
    if n <= k:
        return np.full(n, _SMALLEST)
    squares, found = (vectors**2).sum(1), np.empty(n)
    for start in range(0, n, 1024):
        block = vectors[start : start + 1024]
        distances = squares[start : start + 1024, None] + squares[None] - 2 * block @ vectors.T
        distances[np.arange(len(block)), start + np.arange(len(block))] = np.inf
        found[start : start + 1024] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return np.sqrt(np.maximum(found, _SMALLEST**2))


def standard(values: np.ndarray) -> np.ndarray:
    """Mean 0, deviation 1 (0 where all are alike), so that α and γ mean the same for every scorer."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)


def per_item(values: np.ndarray, vectors: np.ndarray, size: int, gamma: float, k: int = 5) -> np.ndarray:
    """The `size` highest of values + γ log(distance to the k-th neighbour), the paper's approximation; best first.

    values: (n,), margin + α quality. vectors: (n, d). Of equal ones the first is taken.
    """
    scores = values + gamma * np.log(neighbour_distance(vectors, k))
    return np.argsort(-scores, kind="stable")[:size]


def greedy(values: np.ndarray, vectors: np.ndarray, size: int, gamma: float) -> np.ndarray:
    """`size` items, each the one that adds most to Σ_{i in S} (value_i + γ log d_i), d_i the distance to the nearest
    other item of S (nothing while S holds one); in the order taken.

    values: (n,), vectors: (n, d). Exact: an item is charged with what it takes from those it stands close to. Time
    grows with size · n, memory with n.
    """
    near, lost, squares = np.full(len(values), np.inf), np.zeros(len(values)), (vectors**2).sum(1)
    free = np.ones(len(values), bool)
    taken: list[int] = []
    for _ in range(min(size, len(values))):
        own = np.where(np.isfinite(near), near, 0.0)
        best = int(np.where(free, values + gamma * (own + lost), -np.inf).argmax())
        free[best] = False
        apart = _log_distance(vectors, squares, best)
        for other in (i for i in taken if apart[i] < near[i]):
            seen = _log_distance(vectors, squares, other)
            lost += _change(seen, apart[other]) - _change(seen, near[other])
        lost += _change(apart, near[best])
        apart[best] = near[best]
        near = np.minimum(near, apart)
        taken.append(best)
    return np.array(taken, dtype=int)


def _log_distance(vectors: np.ndarray, squares: np.ndarray, item: int) -> np.ndarray:
    found = squares + squares[item] - 2 * (vectors @ vectors[item])
    return 0.5 * np.log(np.maximum(found.astype(float), _SMALLEST**2))


def _change(apart: np.ndarray, nearest: float) -> np.ndarray:
    """What the logarithm of an item's distance changes by where one more is taken at `apart` (n,); it was `nearest`."""
    return np.minimum(0.0, apart - nearest) if np.isfinite(nearest) else apart

"""FiFA: which preferences to train on, by margin, quality of the text, and diversity of the prompts.

Value of a set S = Σ_{i in S} (margin_i + α quality_i) + γ H(S), where H is the k-nearest-neighbour entropy of the
prompts' embeddings: up to constants, the mean of the log distance to the k-th neighbour.
Source: Yang et al. 2024, Automated Filtering of Human Feedback Data for Aligning Text-to-Image Diffusion Models.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

WIDTH = 512
_SMALLEST = 1e-6


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
    """(n,): the distance to the k-th nearest other vector, at least 1e-6; 1e-6 where there are fewer than k others."""
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
    """`size` items, each the one that adds most: value + γ log(distance to the nearest one taken before)."""
    nearest = np.full(len(values), np.inf)
    free = np.ones(len(values), bool)
    taken = []
    for _ in range(min(size, len(values))):
        spread = np.log(np.where(np.isfinite(nearest), np.maximum(nearest, _SMALLEST), 1.0))
        scores = np.where(free, values + gamma * spread, -np.inf)
        best = int(scores.argmax())
        taken.append(best)
        free[best] = False
        nearest = np.minimum(nearest, np.linalg.norm(vectors - vectors[best], axis=1))
    return np.array(taken, dtype=int)

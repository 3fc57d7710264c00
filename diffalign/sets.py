"""What a set of pictures is like, as one number: how many different ones it holds, how far it is from another set.

Pictures are rows of features; which network they come from is said by whoever gives them.
"""

import numpy as np


def vendi(features: np.ndarray) -> float:
    """exp(-sum l log l), l the eigenvalues of K / n, K the cosines of the features (n, d): from 1 (copies) to n.

    By the smaller of K / n and the features' second moments, which have the same eigenvalues but zeros.
    Source: Friedman and Dieng 2023, the Vendi score of order 1.
    """
    unit = features.astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    n, d = unit.shape
    values = np.linalg.eigvalsh((unit.T @ unit if d < n else unit @ unit.T) / n)
    kept = values[values > 1e-12]
    return float(np.exp(-(kept * np.log(kept)).sum()))


def frechet(features: np.ndarray, others: np.ndarray) -> float:
    """|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), means and covariances of two sets of features (n, d), (n', d).

    Biased upwards for small sets: compare sets of one size. Source: Heusel et al. 2017, the distance behind FID.
    """
    a, b = features.astype(np.float64), others.astype(np.float64)
    first, second = np.cov(a, rowvar=False, ddof=0), np.cov(b, rowvar=False, ddof=0)
    values, vectors = np.linalg.eigh(second)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ first @ root).clip(min=0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * cross)

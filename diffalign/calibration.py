"""Differences of scores against preferences: accuracy, Kendall's tau-b, the fitted temperature, and how calibrated."""

import numpy as np

from diffalign.intervals import bootstrap, prompt_means
from diffalign.streams import stream

RESAMPLES, BINS = 2000, 10


def agreement(gap: np.ndarray, p: np.ndarray, prompt: np.ndarray) -> dict[str, float]:
    """How far score differences agree with P(first is better), (pairs,) each; NaN where there is nothing to count.

    P = 1/2 is a tie, and counts in tau-b only; a tie of the scores is half right. The interval is over resampled
    prompts.
    """
    decided, hit = p != 0.5, np.where(gap == 0, 0.5, (gap > 0) == (p > 0.5))
    out = {"prompts": len(np.unique(prompt)), "ties": int((~decided).sum())}
    if decided.any():
        _, place = np.unique(prompt[decided], return_inverse=True)
        means = prompt_means(hit[decided], place)
        low, high = bootstrap(means[None], RESAMPLES, stream("bootstrap", 0, "agreement"))[0]
        out |= {"accuracy": float(hit[decided].mean()), "accuracy_by_prompt": float(means.mean())}
        out |= {"accuracy_low": float(low), "accuracy_high": float(high)}
    a, b = np.sign(gap), np.sign(p - 0.5)
    norm = np.sqrt((a != 0).sum() * (b != 0).sum())
    return out | {"kendall_tau_b": float((a * b).sum() / norm) if norm else float("nan")}


def calibrated(gap: np.ndarray, p: np.ndarray, slope: float) -> dict[str, float]:
    """NLL, Brier score and expected calibration error of P = sigmoid(slope · gap), over ten bins of P."""
    q = sigmoid(slope * gap)
    edge = np.minimum((q * BINS).astype(int), BINS - 1)
    error = sum(abs((q - p)[edge == k].sum()) for k in range(BINS)) / len(p)
    return {"nll": nll(slope * gap, p), "brier": float(((q - p) ** 2).mean()), "ece": float(error)}


def fitted(gap: np.ndarray, p: np.ndarray) -> float:
    """The slope of least NLL, by Newton's method; a small ridge holds it where the pairs are separable."""
    scale = gap.std() or 1.0
    x, slope = gap / scale, 0.0
    for _ in range(100):
        q = sigmoid(slope * x)
        step = (((q - p) * x).mean() + 1e-3 * slope) / ((q * (1 - q) * x * x).mean() + 1e-3)
        slope -= np.clip(step, -1, 1)
        if abs(step) < 1e-12:
            break
    return float(slope / scale)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1 + np.tanh(x / 2))


def nll(logit: np.ndarray, p: np.ndarray) -> float:
    """Mean of -p log q - (1 - p) log(1 - q), q = sigmoid(logit), in nats."""
    return float((np.logaddexp(0, logit) - p * logit).mean())

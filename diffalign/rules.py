"""Which images of a group are compared: plain functions of their values, higher is better; equal ones in given order.

Values are (images,) of one scorer, or (scorers, images) of several. Numbers in, indices out: no files, no ids.
"""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

Pairs = list[tuple[int, int]]
Rule = Callable[[np.ndarray, np.random.Generator], Pairs]


def best_vs_worst(values: np.ndarray, rng: np.random.Generator) -> Pairs:
    """(best, worst)."""
    return [(int(values.argmax()), int(values.argmin()))]


def all_pairs(values: np.ndarray, rng: np.random.Generator) -> Pairs:
    """Every image against every one below it."""
    return list(combinations(ranking(values), 2))


def neighbours(values: np.ndarray, rng: np.random.Generator) -> Pairs:
    """Every image against the next one below it."""
    ranked = ranking(values)
    return list(zip(ranked, ranked[1:], strict=False))


def best_vs_random(values: np.ndarray, rng: np.random.Generator) -> Pairs:
    """The best against one of the others, drawn uniformly."""
    best, *others = ranking(values)
    return [(best, others[rng.integers(len(others))])]


def ranking(values: np.ndarray, top: int = 0) -> list[int]:
    """Indices from the highest value to the lowest; only the first `top` where that is not 0."""
    return np.argsort(-values, kind="stable").tolist()[: top or None]


def duels(values: np.ndarray, temperature: float | None, tie: float = 0.0) -> np.ndarray:
    """Share of its duels inside the group that each image wins, (images,), in [0, 1]; what RankDPO's gains are made of.

    A duel is won with P = sigmoid(gap / temperature); without a temperature by more than `tie`, else it is a half.
    """
    gaps = values[:, None] - values[None, :]
    hard = np.where(np.abs(gaps) > tie, np.sign(gaps), 0.0)
    won = 0.5 * (1 + (hard if temperature is None else np.tanh(0.5 * gaps / temperature)))
    return (won.sum(1) - 0.5) / (len(values) - 1)


def advantages(values: np.ndarray) -> np.ndarray:
    """(value - mean) / standard deviation within the group."""
    return (values - values.mean()) / values.std()


def curated(values: np.ndarray, temperature: float | None, rng: np.random.Generator) -> int:
    """One of K by a Bradley-Terry choice, P(i) = softmax(values / temperature)[i]; the best where temperature is None.

    Source: Ferbach et al., NeurIPS 2024 (curated retraining).
    """
    if temperature is None:
        return int(values.argmax())
    odds = np.exp((values - values.max()) / temperature)
    return int(rng.choice(len(values), p=odds / odds.sum()))


def agreement(values: np.ndarray, least: int) -> list[tuple[int, int, float]]:
    """(better, worse, P) where `least` scorers or more say so; P: the share of all that do, ties counted half.

    Orders are compared, never sums: scores of different scorers have no common unit. With a majority for `least`:
    BalancedDPO's vote.
    """
    votes = 0.5 * (1 + np.sign(values[:, :, None] - values[:, None, :]))
    share, count = votes.mean(0), (votes == 1).sum(0)
    chosen = (count >= least) & (share > 0.5)
    return [(int(i), int(j), float(share[i, j])) for i, j in np.argwhere(chosen)]


def frontier(values: np.ndarray) -> Pairs:
    """(i, j) where i dominates j, nothing dominates i, and j dominates nothing: Pareto's upper and lower frontier.

    i dominates j: at least as good by every scorer and better by one. After MagicID's frontier-based pairs; which of
    the frontiers' images meet is our choice.
    """
    higher = values[:, :, None] >= values[:, None, :]
    dominates = higher.all(0) & ~higher.all(0).T
    met = dominates & ~dominates.any(0)[:, None] & ~dominates.any(1)[None, :]
    return [(int(i), int(j)) for i, j in np.argwhere(met)]


def win_rates(images: int, compared: Sequence[tuple[int, int, float]]) -> np.ndarray:
    """Mean of P(i is better) over the comparisons of i, (images,); NaN for an image that was never compared.

    `compared` holds (first, second, P(first is better)). Source: Pref-GRPO, which asks once for each two.
    """
    first, second, p = (np.array(column) for column in zip(*compared, strict=True))
    won = np.bincount(first, p, images) + np.bincount(second, 1 - p, images)
    count = np.bincount(first, minlength=images) + np.bincount(second, minlength=images)
    return np.divide(won, count, out=np.full(images, np.nan), where=count > 0)


def real_vs_generated(real: Sequence[str], generated: Sequence[str]) -> list[tuple[str, str]]:
    """Every generated image against a real one of its prompt, these in turn. Source: SPIN-Diffusion."""
    return [(real[i % len(real)], image) for i, image in enumerate(generated)]


def swaps(
    first: np.ndarray, second: np.ndarray, score: Callable[[np.ndarray], float], rng: np.random.Generator
) -> np.ndarray:
    """Where swapping first[i] with second[i] raises score(first): tried one by one until no swap does; bool (n,).

    `first` and `second` are features (n, d) of two batches. The score rises with every swap, so this ends.
    Source: DRAGON, positive and negative sets by a set-level score.
    """
    swapped, best, before = np.zeros(len(first), bool), score(first), -np.inf
    while best > before:
        before = best
        for i in rng.permutation(len(first)):
            swapped[i] ^= True
            found = score(np.where(swapped[:, None], second, first))
            best, swapped[i] = (found, swapped[i]) if found > best else (best, not swapped[i])
    return swapped


RULES: dict[str, Rule] = {f.__name__: f for f in (best_vs_worst, all_pairs, neighbours, best_vs_random)}

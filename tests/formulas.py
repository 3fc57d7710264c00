"""Every objective's formula again, in numpy: plain, per judgement, nothing shared with the code under test.

A formula takes the objective, the batch x, and s, the same batch as seen through a stop-gradient, so that a gradient
with detached parts is the derivative by x at s = x.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy import ndarray

from diffalign import objectives as do


@dataclass(frozen=True)
class Batch:
    """Errors and one judgement, as numpy arrays in float64; fields as in `Errors` and the kinds of `Judgement`."""

    policy: ndarray
    reference: ndarray
    old: ndarray
    cross: dict[str, ndarray] = field(default_factory=dict)
    chosen: ndarray | None = None
    rejected: ndarray | None = None
    p: ndarray | None = None
    gap: ndarray | None = None
    desirable: ndarray | None = None
    scores: ndarray | None = None
    values: ndarray | None = None
    group: ndarray | None = None

    @property
    def groups(self) -> list[ndarray]:
        return [np.flatnonzero(self.group == g) for g in range(self.group.max() + 1)]


Formula = Callable[[Any, Batch, Batch], ndarray]


def sigma(u: Any) -> Any:
    return 1 / (1 + np.exp(-u))


def ell(u: Any) -> Any:
    return np.log1p(np.exp(-u))


def reward(o: Any, x: Batch) -> ndarray:
    return o.beta / 2 * (x.reference - x.policy)


def difference(r: ndarray, x: Batch) -> ndarray:
    return r[x.chosen] - r[x.rejected]


def linked(link: Callable[..., ndarray], r: Callable[..., ndarray] = reward) -> Formula:
    """P link(m) + (1 - P) link(-m)."""

    def formula(o: Any, x: Batch, s: Batch) -> ndarray:
        m = difference(r(o, x), x)
        return x.p * link(o, m) + (1 - x.p) * link(o, -m)

    return formula


def dpo(o: Any, x: Batch, s: Batch) -> ndarray:
    m, p = difference(reward(o, x), x), x.p * (1 - o.label_smoothing) + (1 - x.p) * o.label_smoothing
    return p * ell(m) + (1 - p) * ell(-m)


def bernoulli_kl(alpha: float, m: ndarray) -> ndarray:
    p = sigma(m)
    return p * np.log(p / (1 - alpha)) + (1 - p) * np.log((1 - p) / alpha)


def alpha_divergence(a: float, m: ndarray) -> ndarray:
    p = sigma(m)
    return (p**a - (1 - a) - a * p) / (a * (a - 1))


def alpha_dpo(o: do.AlphaDPO, x: Batch, s: Batch) -> ndarray:
    m, frozen = difference(reward(o, x), x), difference(reward(o, s), s)
    a = o.alpha * np.mean(s.p * sigma(frozen) + (1 - s.p) * sigma(-frozen)) if o.adaptive else o.alpha
    return x.p * alpha_divergence(a, m) + (1 - x.p) * alpha_divergence(a, -m)


def gap_weight(o: do.MADPO, g: Any) -> Any:
    c = o.c_min + (o.c_max - o.c_min) / (1 + (o.c_max - 1) / (1 - o.c_min) * np.exp(o.steepness * (np.abs(g) - o.tau)))
    return np.where(g > -o.tau, sigma(c * g) / sigma(g), 1)


def madpo(o: do.MADPO, x: Batch, s: Batch) -> ndarray:
    weight = x.p * gap_weight(o, x.gap) + (1 - x.p) * gap_weight(o, -x.gap)
    return weight * linked(lambda o, m: ell(m))(o, x, s)


def smpo(o: do.SmPO, x: Batch, s: Batch) -> ndarray:
    return ell(o.gamma * (2 * x.p - 1) * difference(reward(o, x), x))


def squashed(o: Any, x: Batch) -> ndarray:
    return o.T * o.k * x.policy / (np.exp(o.k * x.policy) - 1)


def winner(x: Batch) -> ndarray:
    """The error of each judgement's winner."""
    if x.chosen is not None:
        return x.p * x.policy[x.chosen] + (1 - x.p) * x.policy[x.rejected]
    if x.desirable is not None:
        return x.desirable * x.policy
    merit = x.scores if x.scores is not None else x.values
    return np.array([x.policy[g][merit[g] == merit[g].max()].mean() for g in x.groups])


def mapo(o: do.MaPO, x: Batch, s: Batch) -> ndarray:
    return winner(x) + o.beta_margin * linked(lambda o, m: ell(m), squashed)(o, x, s)


def cpo(o: do.CPO, x: Batch, s: Batch) -> ndarray:
    return o.sft * winner(x) + linked(lambda o, m: ell(m), likelihood)(o, x, s)


def likelihood(o: Any, x: Batch) -> ndarray:
    return -o.beta / 2 * x.policy


def dspo(o: do.DSPO, x: Batch, s: Batch) -> ndarray:
    m, c = difference(reward(o, x), x), x.cross["policy_reference"]

    def square(i: ndarray, u: ndarray) -> ndarray:
        # |a - k (a - b)|^2 with a, b the residuals of policy and reference.
        k = o.beta * (1 - sigma(u))
        return x.policy[i] - 2 * k * (x.policy[i] - c[i]) + k**2 * (x.policy[i] - 2 * c[i] + x.reference[i])

    return x.p * square(x.chosen, m) + (1 - x.p) * square(x.rejected, -m)


def mixed(host: Formula) -> Formula:
    return lambda o, x, s: host(o.objective, x, s) + o.sft * winner(x)


def anchored(host: Formula) -> Formula:
    def formula(o: do.Anchored, x: Batch, s: Batch) -> ndarray:
        d = x.policy + x.reference - 2 * x.cross["policy_reference"]
        if x.chosen is not None:
            d = (d[x.chosen] + d[x.rejected]) / 2
        elif x.group is not None:
            d = np.array([d[g].mean() for g in x.groups])
        return host(o.objective, x, s) + o.weight * d

    return formula


def safeguarded(host: Formula) -> Formula:
    def formula(o: do.Safeguarded, x: Batch, s: Batch) -> ndarray:
        decided, images = s.p != 0.5, np.concatenate([x.chosen, x.rejected])
        gain = s.policy[np.where(s.p > 0.5, s.chosen, s.rejected)][decided].sum()
        overlap = s.cross["chosen_rejected"][decided].sum()
        share = min(max((1 - o.mu) * gain / overlap, 0), 1) if overlap > 0 else 1
        scale = np.where(np.concatenate([s.p < 0.5, s.p > 0.5]), share, 1)

        def roles(y: Batch) -> Batch:
            n, single = len(y.p), [c for c in y.cross if c != "chosen_rejected"]
            return replace(
                y,
                policy=s.policy[images] + scale * (y.policy - s.policy)[images],
                reference=y.reference[images],
                cross={c: s.cross[c][images] + scale * (y.cross[c] - s.cross[c])[images] for c in single},
                chosen=np.arange(n),
                rejected=n + np.arange(n),
            )

        return host(o.objective, roles(x), roles(s))

    return formula


UTILITIES = {do.KahnemanTversky: sigma, do.LossAverse: lambda v: -ell(v), do.RiskSeeking: lambda v: ell(-v)}


def kto(o: do.KTO, x: Batch, s: Batch) -> ndarray:
    v, h = reward(o, x) - max(0, reward(o, s).mean()), UTILITIES[type(o.utility)]
    d = x.desirable if o.soft else np.where(x.desirable == 0.5, 0.5, x.desirable > 0.5)
    return d * o.weights[0] * (1 - h(v)) + (1 - d) * o.weights[1] * (1 - h(-v))


def bco(o: do.BCO, x: Batch, s: Batch) -> ndarray:
    classes = [w for w in (s.desirable, 1 - s.desirable) if w.sum() > 0]
    v = reward(o, x) - np.mean([np.average(reward(o, s), weights=w) for w in classes])
    return x.desirable * ell(v) + (1 - x.desirable) * ell(-v)


def listwise(weight: Callable[[ndarray, int, int], float]) -> Formula:
    """Sum over i better than j in a group of weight * -log sigmoid(r_i - r_j)."""

    def formula(o: Any, x: Batch, s: Batch) -> ndarray:
        r = reward(o, x)
        return np.array(
            [
                sum(
                    weight(x.scores[g], i, j) * ell(r[g][i] - r[g][j])
                    for i in range(len(g))
                    for j in range(len(g))
                    if x.scores[g][i] > x.scores[g][j]
                )
                for g in x.groups
            ],
            dtype=float,
        )

    return formula


def gain_discount(scores: ndarray, i: int, j: int) -> float:
    rank = [1 + sum(scores > scores[k]) for k in (i, j)]
    return abs(2 ** scores[i] - 2 ** scores[j]) * abs(1 / math.log(1 + rank[0]) - 1 / math.log(1 + rank[1]))


def plackett_luce(o: do.PlackettLuce, x: Batch, s: Batch) -> ndarray:
    def nll(r: ndarray, scores: ndarray) -> float:
        return sum(np.log(np.exp(r[scores <= a]).sum()) - b for a, b in zip(scores, r, strict=True))

    return np.array([nll(reward(o, x)[g], x.scores[g]) for g in x.groups])


def listnet(o: do.ListNet, x: Batch, s: Batch) -> ndarray:
    def softmax(z: ndarray) -> ndarray:
        return np.exp(z) / np.exp(z).sum()

    return np.array(
        [-(softmax(x.scores[g] / o.temperature) * np.log(softmax(reward(o, x)[g]))).sum() for g in x.groups]
    )


def dgpo(o: do.DGPO, x: Batch, s: Batch) -> ndarray:
    e, ratio = x.policy, np.exp(s.old - s.policy)
    if o.clip is not None:
        stop = np.where(x.values > 0, ratio > 1 + o.clip, ratio < 1 - o.clip)
        e = np.where(stop, s.policy, e)
    return np.array([sigma(-np.mean(x.values[g] * reward(o, s)[g])) * np.mean(x.values[g] * e[g]) for g in x.groups])


def awm(o: do.AWM, x: Batch, s: Batch) -> ndarray:
    if o.clip is None:
        return np.array([np.mean(x.values[g] * x.policy[g]) for g in x.groups])
    q = np.exp(x.old - x.policy)
    loss = np.maximum(-x.values * q, -x.values * np.clip(q, 1 - o.clip, 1 + o.clip))
    return np.array([loss[g].mean() for g in x.groups])


def crd(o: do.CRD, x: Batch, s: Batch) -> ndarray:
    r, q = o.beta / 2 * (x.old - x.policy), np.clip(x.values, -5, 5) / 10 + 0.5
    return np.array([np.mean((r[g] - r[g].mean() - q[g] + q[g].mean()) ** 2) for g in x.groups])


def nft(o: do.NFT, x: Batch, s: Batch) -> ndarray:
    def square(b: float, y: Batch) -> ndarray:
        return b**2 * y.policy + (1 - b) ** 2 * y.old + 2 * b * (1 - b) * y.cross["policy_old"]

    plus, minus = (square(b, x) / (np.sqrt(square(b, s)) if o.normalised else 1) for b in (o.beta, -o.beta))
    q = np.clip(x.values, -5, 5) / 10 + 0.5
    loss = (q * plus + (1 - q) * minus) / o.beta
    return np.array([loss[g].mean() for g in x.groups])

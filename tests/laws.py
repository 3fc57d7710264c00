"""The table of laws: a row an objective, with its formula, what it starts at, and the laws it is exempt from."""

import math
from dataclasses import dataclass, replace

import formulas as f
import numpy as np
import torch
from formulas import Batch, Formula

from diffalign import objectives as do
from diffalign.objectives.base import Advantages, Errors, Judgement, Objective, Pairs, Ranking, Unpaired

LOG2 = math.log(2)
LEVEL, GAP = 0.1, 0.7  # the error of every image, and the score gap, in the standard batch


@dataclass(frozen=True)
class Law:
    """A row.

    kind: the judgement it is tried on: pairs, unpaired, ranking or advantages.
    start: its first loss and the derivative by the first image's error in the standard batch: all errors equal.
    shift: adding one number to all errors changes no loss.
    monotone: no loss falls as a better image's error rises, or rises as a worse one's does.
    """

    objective: Objective
    kind: str
    formula: Formula
    start: tuple[float, float]
    shift: bool = True
    monotone: bool = True


def _squashed_slope(k: float, T: float, e: float) -> float:
    x = k * e
    return T * k * (math.expm1(x) - x * math.exp(x)) / math.expm1(x) ** 2


def _alpha(a: float, beta: float) -> tuple[float, float]:
    return float(f.alpha_divergence(a, 0.0)), beta / 8 * (0.5 ** (a - 1) - 1) / (1 - a)


def _log1p_exp(o: object, m: np.ndarray) -> np.ndarray:
    return f.ell(m)


GAIN = abs(1 / math.log(2) - 1 / math.log(3))  # gain times discount of the standard ranking
MADPO_WEIGHT = float(f.gap_weight(do.MADPO(), GAP))

LAWS = [
    Law(do.DPO(2000.0), "pairs", f.dpo, (LOG2, 500)),
    Law(do.DPO(2000.0, label_smoothing=0.2), "pairs", f.dpo, (LOG2, 300), monotone=False),
    Law(do.Hinge(2000.0), "pairs", f.linked(lambda o, m: np.maximum(0, 1 - m)), (1, 1000)),
    Law(do.IPO(2000.0), "pairs", f.linked(lambda o, m: (m - 0.5) ** 2), (0.25, 1000), monotone=False),
    Law(do.RobustDPO(2000.0, 0.2), "pairs", f.linked(
        lambda o, m: ((1 - o.label_noise) * f.ell(m) - o.label_noise * f.ell(-m)) / (1 - 2 * o.label_noise)
    ), (LOG2, 500 / 0.6)),
    Law(do.DMPO(2000.0, 0.2), "pairs", f.linked(lambda o, m: f.bernoulli_kl(o.alpha, m)),
        (-LOG2 - math.log(0.2 * 0.8) / 2, 250 * math.log(4)), monotone=False),
    Law(do.AlphaDPO(2000.0, 0.9, adaptive=False), "pairs", f.alpha_dpo, _alpha(0.9, 2000)),
    Law(do.AlphaDPO(2000.0, 0.3, adaptive=False), "pairs", f.alpha_dpo, _alpha(0.3, 2000)),
    Law(do.AlphaDPO(2000.0), "pairs", f.alpha_dpo, _alpha(0.9999 / 2, 2000)),
    Law(do.MADPO(2000.0), "pairs", f.madpo, (MADPO_WEIGHT * LOG2, MADPO_WEIGHT * 500)),
    Law(do.SmPO(2000.0, 3.0), "pairs", f.smpo, (LOG2, 1500)),
    Law(do.MaPO(), "pairs", f.mapo, (LEVEL + 0.1 * LOG2, 1 - 0.05 * _squashed_slope(0.5, 1000, LEVEL)), shift=False),
    Law(do.DRO(), "pairs", f.linked(lambda o, m: -m, lambda o, x: -x.policy), (0, 1)),
    Law(do.SimPO(300.0, 0.5), "pairs", f.linked(lambda o, m: f.ell(m - o.gamma), f.likelihood),
        (float(f.ell(-0.5)), 150 * float(f.sigma(0.5)))),
    Law(do.CPO(300.0, 0.7), "pairs", f.cpo, (LOG2 + 0.7 * LEVEL, 75 + 0.7), shift=False),
    Law(do.DSPO(0.001), "pairs", f.dspo, (LEVEL, (1 - 0.0005) ** 2), shift=False, monotone=False),
    Law(do.DSPO(50.0), "pairs", f.dspo, (LEVEL, 24.0**2), shift=False, monotone=False),
    Law(do.SFT(), "pairs", lambda o, x, s: f.winner(x), (LEVEL, 1), shift=False),
    Law(do.SFT(), "unpaired", lambda o, x, s: f.winner(x), (LEVEL, 1), shift=False),
    Law(do.SFT(), "ranking", lambda o, x, s: f.winner(x), (LEVEL, 1), shift=False),
    Law(do.SFT(), "advantages", lambda o, x, s: f.winner(x), (LEVEL, 1), shift=False),
    Law(do.KTO(2000.0), "unpaired", f.kto, (0.5, 250)),
    Law(do.KTO(2000.0, soft=True), "unpaired", f.kto, (0.5, 250)),
    Law(do.KTO(2000.0, do.LossAverse(), (1.0, 0.5)), "unpaired", f.kto, (1 + LOG2, 500)),
    Law(do.KTO(2000.0, do.RiskSeeking(), (2.0, 1.0)), "unpaired", f.kto, (2 - 2 * LOG2, 1000)),
    Law(do.BCO(2000.0), "unpaired", f.bco, (LOG2, 500)),
    Law(do.RankDPO(2000.0), "ranking", f.listwise(f.gain_discount), (GAIN * LOG2, GAIN * 500)),
    Law(do.RankNet(2000.0), "ranking", f.listwise(lambda scores, i, j: 1), (LOG2, 500)),
    Law(do.PlackettLuce(2000.0), "ranking", f.plackett_luce, (LOG2, 500)),
    Law(do.ListNet(2000.0, 0.5), "ranking", f.listnet, (LOG2, 1000 * (float(f.sigma(2)) - 0.5)), monotone=False),
    Law(do.DGPO(200.0), "advantages", f.dgpo, (0, 0.25), shift=False),
    Law(do.DGPO(200.0, clip=0.0005), "advantages", f.dgpo, (0, 0.25), shift=False),
    Law(do.AWM(), "advantages", f.awm, (0, 0.5), shift=False),
    Law(do.AWM(clip=0.0005), "advantages", f.awm, (0, 0.5)),
    Law(do.CRD(20.0), "advantages", f.crd, (0.01, 1), monotone=False),
    Law(do.NFT(), "advantages", f.nft, (LEVEL, 0.5), shift=False, monotone=False),
    Law(do.NFT(0.1, normalised=True), "advantages", f.nft,
        (LEVEL**0.5 / 0.1, 0.05 / LEVEL**0.5), shift=False, monotone=False),
    Law(do.Mixed(do.DPO(2000.0), 0.5), "pairs", f.mixed(f.dpo), (LOG2 + 0.5 * LEVEL, 500.5), shift=False),
    Law(do.Mixed(do.KTO(2000.0), 0.5), "unpaired", f.mixed(f.kto), (0.5 + 0.5 * LEVEL, 250.5), shift=False),
    Law(do.Mixed(do.PlackettLuce(2000.0)), "ranking", f.mixed(f.plackett_luce), (LOG2 + LEVEL, 501), shift=False),
    Law(do.Anchored(do.DPO(2000.0), 3000.0), "pairs", f.anchored(f.dpo), (LOG2, 2000), shift=False, monotone=False),
    Law(do.Anchored(do.SFT(), 0.5), "unpaired", f.anchored(lambda o, x, s: f.winner(x)), (LEVEL, 1.5),
        shift=False, monotone=False),
    Law(do.Anchored(do.AWM(), 0.5), "advantages", f.anchored(f.awm), (0, 0.75), shift=False, monotone=False),
    Law(do.Safeguarded(do.DPO(2000.0), 0.6), "pairs", f.safeguarded(f.dpo), (LOG2, 500)),
    Law(do.Safeguarded(do.DSPO(50.0), 0.2), "pairs", f.safeguarded(f.dspo), (LEVEL, 24.0**2),
        shift=False, monotone=False),
    Law(do.Safeguarded(do.AlphaDPO(2000.0), 0.2), "pairs", f.safeguarded(f.alpha_dpo), _alpha(0.9999 / 2, 2000)),
    Law(do.Pairwise(do.ElboRatio(2000.0), do.Logistic()), "pairs",
        lambda o, x, s: f.linked(_log1p_exp)(o.reward, x, s), (LOG2, 500)),
    Law(do.Pairwise(do.Likelihood(300.0), do.TargetMargin(0.0), do.MarginAdaptive(2, 0.5, 1, math.log(999))), "pairs",
        lambda o, x, s: (x.p * f.gap_weight(o.weight, x.gap) + (1 - x.p) * f.gap_weight(o.weight, -x.gap))
        * f.linked(_log1p_exp, f.likelihood)(o.reward, x, s), (MADPO_WEIGHT * LOG2, MADPO_WEIGHT * 75)),
    Law(do.Pairwise(do.SquashedLikelihood(0.5, 1000.0), do.Squared()), "pairs",
        lambda o, x, s: f.linked(lambda o, m: (m - 0.5) ** 2, f.squashed)(o.reward, x, s),
        (0.25, -_squashed_slope(0.5, 1000, LEVEL)), shift=False, monotone=False),
]  # fmt: skip


def name(law: Law) -> str:
    return f"{law.kind}-{law.objective!r}"


def standard(kind: str) -> Batch:
    """Two images with all errors equal, of which the first is certainly better."""
    level = np.full(2, LEVEL)
    batch = Batch(level, level, level, {"policy_reference": level, "policy_old": level})
    return replace(batch, **{
        "pairs": {
            "chosen": np.array([0]), "rejected": np.array([1]), "p": np.ones(1), "gap": np.array([GAP]),
            "cross": batch.cross | {"chosen_rejected": np.array([LEVEL / 2])},
        },
        "unpaired": {"desirable": np.array([1.0, 0.0])},
        "ranking": {"scores": np.array([1.0, 0.0]), "group": np.zeros(2, int)},
        "advantages": {"values": np.array([1.0, -1.0]), "group": np.zeros(2, int)},
    }[kind])  # fmt: skip


def draw(kind: str, seed: int, *, hard: bool = False) -> Batch:
    """A batch of a few judgements with the errors of random residuals.

    hard: each image in one judgement, labels without doubt, advantages centred, so that the best has a positive one.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 6, rng.integers(1, 5))
    group = np.repeat(np.arange(len(sizes)), sizes)
    n = len(group)
    policy = rng.normal(size=(n, 16)) * 0.1 + rng.normal(size=(len(sizes), 16))[group] * 0.3
    reference, old = policy + rng.normal(size=(2, n, 16)) * 0.005
    square = {"policy": policy, "reference": reference, "old": old}
    batch = Batch(
        **{k: (v**2).mean(1) for k, v in square.items()},
        cross={"policy_reference": (policy * reference).mean(1), "policy_old": (policy * old).mean(1)},
    )
    if kind == "unpaired":
        return replace(batch, desirable=rng.choice([0, 1] if hard else [0, 0.2, 0.5, 1], n).astype(float))
    if kind == "ranking":
        scores = rng.permuted(np.linspace(0, 1, n)) if hard else rng.choice([0, 0.25, 0.5, 0.75, 1], n)
        return replace(batch, scores=scores, group=group)
    if kind == "advantages":
        values = rng.normal(size=n) * 2
        centre = np.bincount(group, values) / sizes if hard else np.zeros(len(sizes))
        return replace(batch, values=values - centre[group], group=group)
    first = np.cumsum(sizes) - sizes
    chosen, rejected = first, first + 1
    if not hard:  # a second rater of every group, and images that play both roles
        chosen, rejected = np.append(chosen, first + sizes - 1), np.append(rejected, first)
    p = np.ones(len(chosen)) if hard else rng.choice([0, 0.3, 0.5, 0.8, 1], len(chosen))
    cross = batch.cross | {"chosen_rejected": (policy[chosen] * policy[rejected]).mean(1)}
    return replace(batch, chosen=chosen, rejected=rejected, p=p, gap=rng.normal(size=len(p)) * 3, cross=cross)


def errors(x: Batch, dtype: torch.dtype = torch.float64) -> Errors:
    cross = {k: torch.tensor(v, dtype=dtype) for k, v in x.cross.items()}
    return Errors(*(torch.tensor(v, dtype=dtype) for v in (x.policy, x.reference, x.old)), cross)


def judgement(x: Batch) -> Judgement:
    if x.chosen is not None:
        return Pairs(*map(torch.tensor, (x.chosen, x.rejected, x.p)), score_gap=torch.tensor(x.gap))
    if x.desirable is not None:
        return Unpaired(torch.tensor(x.desirable))
    if x.scores is not None:
        return Ranking(torch.tensor(x.scores), torch.tensor(x.group))
    return Advantages(torch.tensor(x.values), torch.tensor(x.group))


def count(x: Batch) -> int:
    return len(judgement(x))


def only(x: Batch, j: int) -> Batch:
    """The batch of the j-th judgement alone, with its images and no others."""
    if x.chosen is not None:
        images = np.array([x.chosen[j], x.rejected[j]])
    else:
        images = np.array([j]) if x.desirable is not None else x.groups[j]
    cross = {k: v[[j]] if k == "chosen_rejected" else v[images] for k, v in x.cross.items()}
    part = replace(x, policy=x.policy[images], reference=x.reference[images], old=x.old[images], cross=cross)
    if x.chosen is not None:
        return replace(part, chosen=np.array([0]), rejected=np.array([1]), p=x.p[[j]], gap=x.gap[[j]])
    if x.desirable is not None:
        return replace(part, desirable=x.desirable[images])
    part = replace(part, group=np.zeros(len(images), int))
    key = "scores" if x.scores is not None else "values"
    return replace(part, **{key: getattr(x, key)[images]})

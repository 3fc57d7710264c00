"""What single objectives promise beyond the laws: identities, published numbers, refusals; and what beta means."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffalign import objectives as do
from diffalign.objectives import convert_beta
from diffalign.objectives.base import Advantages, Errors, Pairs, Ranking, Unpaired, to


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pair(p: float = 1.0, **fields: Tensor) -> Pairs:
    return Pairs(torch.tensor([0]), torch.tensor([1]), vector(p), **fields)


def by_policy(objective: do.DPO, errors: Errors, judgement: object) -> tuple[Tensor, Tensor]:
    """Losses, and the derivative of their sum by the policy's errors."""
    policy = errors.policy.clone().requires_grad_()
    loss = objective(Errors(policy, errors.reference, errors.old, errors.cross), judgement).loss
    return loss.detach(), torch.autograd.grad(loss.sum(), policy)[0]


PUBLISHED = Errors(vector(0.1, 0.13), vector(0.1004, 0.1296))  # the pair of the golden values
SEVERAL = Errors(vector(0.10, 0.13, 0.11, 0.12), vector(0.102, 0.129, 0.111, 0.1205))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dpo_is_a_sentence_bit_for_bit(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    policy, reference = torch.rand(2, 64, generator=rng, dtype=torch.float64).to(dtype)
    pairs = Pairs(torch.arange(32), torch.arange(32, 64), torch.rand(32, generator=rng))
    sentence = do.Pairwise(do.ElboRatio(5000.0), do.Logistic(), do.UniformWeight())
    a, b = do.DPO(5000.0)(Errors(policy, reference), pairs), sentence(Errors(policy, reference), pairs)
    assert torch.equal(a.loss, b.loss)
    assert torch.equal(a.reward, b.reward)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_certain_is_one_bit_for_bit(dtype: torch.dtype) -> None:
    """A link that is told of no labels gives what labels of 1 give, and so does its gradient."""
    links = (
        do.Logistic(), do.Logistic(0.1), do.TargetMargin(0.5), do.ScaledLogit(3.0), do.HingeLoss(), do.Squared(),
        do.Linear(), do.NoisyLabel(0.2), do.ReverseKL(0.2), do.AlphaDivergence(0.3), do.AlphaDivergence(0.9),
    )  # fmt: skip
    margin = torch.linspace(-30, 30, 601, dtype=dtype).requires_grad_()
    for link in links:
        found, expected = link(margin), link(margin, torch.ones_like(margin).detach())
        assert torch.equal(found, expected), link
        slopes = [torch.autograd.grad(loss.sum(), margin)[0] for loss in (found, expected)]
        assert torch.equal(*slopes), link


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pairs_side_by_side_have_the_margins_of_any(dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(0)
    first = torch.tensor([0, 3, 4, 7])
    near = Pairs(first, torch.tensor([1, 2, 5, 6]), torch.ones(4))
    assert near.side.tolist() == [1, -1, 1, -1]
    reward = torch.randn(8, generator=drawn, dtype=dtype).requires_grad_()
    weight = torch.randn(4, generator=drawn, dtype=dtype)
    plain = reward[near.chosen] - reward[near.rejected]
    assert torch.equal(near.margin(reward), plain)
    slopes = [torch.autograd.grad((weight * margin).sum(), reward)[0] for margin in (near.margin(reward), plain)]
    assert torch.equal(*slopes)
    # where an image has two pairs, none, or pairs are in another order, places are looked up
    for chosen, rejected in (([0, 3], [1, 2]), ([2, 0], [3, 1]), ([0, 0], [1, 2]), ([0, 2], [2, 1])):
        pairs = Pairs(torch.tensor(chosen), torch.tensor(rejected), torch.ones(2))
        assert torch.equal(pairs.margin(reward), reward[pairs.chosen] - reward[pairs.rejected])
    assert near.apart().side is None
    assert torch.equal(to(near, torch.device("cpu")).side, near.side)


def test_a_ranking_of_two_is_a_pair() -> None:
    ranking, dpo = Ranking(vector(1, 0), torch.zeros(2, dtype=int)), do.DPO(2000.0)(PUBLISHED, pair()).loss
    weight = abs(1 / math.log(2) - 1 / math.log(3))
    torch.testing.assert_close(do.PlackettLuce(2000.0)(PUBLISHED, ranking).loss, dpo)
    torch.testing.assert_close(do.RankNet(2000.0)(PUBLISHED, ranking).loss, dpo)
    torch.testing.assert_close(do.RankDPO(2000.0)(PUBLISHED, ranking).loss, weight * dpo)


def test_ranknet_is_dpo_on_every_pair() -> None:
    ranking = Ranking(vector(0.9, 0.1, 0.5, 0.5), torch.zeros(4, dtype=int))
    pairs = Pairs(torch.tensor([0, 0, 0, 2, 3]), torch.tensor([1, 2, 3, 1, 1]), torch.ones(5))
    whole, parts = do.RankNet(2000.0)(SEVERAL, ranking).loss, do.DPO(2000.0)(SEVERAL, pairs).loss
    torch.testing.assert_close(whole.sum(), parts.sum())


def test_combinations_that_have_names() -> None:
    cpo = do.Mixed(do.Pairwise(do.Likelihood(300.0), do.Logistic()), 0.5)
    assert torch.equal(do.CPO(300.0, 0.5)(PUBLISHED, pair(0.8)).loss, cpo(PUBLISHED, pair(0.8)).loss)
    smoothed = do.SmPO(2000.0, gamma=2.0)(PUBLISHED, pair(0.75)).loss
    torch.testing.assert_close(smoothed, do.DPO(2000.0)(PUBLISHED, pair()).loss)
    demonstrations = 0.001 * do.Hinge(2 / 0.001)(PUBLISHED, pair()).loss  # Diffusion-DRO with margin 0.001
    torch.testing.assert_close(demonstrations, vector(0.0002))
    averaged = 0.7 * do.RobustDPO(2000.0, 0.3)(PUBLISHED, pair(1.0)).loss
    averaged = averaged + 0.3 * do.RobustDPO(2000.0, 0.3)(PUBLISHED, pair(0.0)).loss
    torch.testing.assert_close(averaged, do.DPO(2000.0)(PUBLISHED, pair()).loss)


def test_dmpo_is_least_at_its_target_margin() -> None:
    link, target = do.ReverseKL(0.01), math.log(0.99 / 0.01)
    at, around = link.hard(vector(target)), link.hard(vector(target - 0.01, target + 0.01))
    assert at.abs() < 1e-15
    assert (around > at).all()


@pytest.mark.parametrize("alpha", [0.0, 1e-12, 1e-3, 0.4999, 0.5, 0.9999, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_alpha_divergence_reaches_its_limits(alpha: float, dtype: torch.dtype) -> None:
    margin = torch.linspace(-8, 8, 33, dtype=dtype, requires_grad=True)
    p, a = 1 / (1 + np.exp(-np.linspace(-8, 8, 33).astype(np.longdouble))), np.longdouble(alpha)
    if alpha in (0.0, 1.0):
        value = p - 1 - np.log(p) if alpha == 0 else p * np.log(p) + 1 - p
        slope = (1 - 1 / p if alpha == 0 else np.log(p)) * p * (1 - p)
    else:
        value, slope = (p**a - (1 - a) - a * p) / (a * (a - 1)), (p ** (a - 1) - 1) / (a - 1) * p * (1 - p)
    loss = do.AlphaDivergence(alpha).hard(margin)
    tolerance = {torch.float64: 1e-6 if 0 < min(alpha, 1 - alpha) < 1e-9 else 1e-12, torch.float32: 2e-6}[dtype]
    np.testing.assert_allclose(loss.detach().double(), value.astype(float), rtol=tolerance, atol=tolerance)
    grad = torch.autograd.grad(loss.sum(), margin)[0]
    np.testing.assert_allclose(grad.double(), slope.astype(float), rtol=tolerance, atol=tolerance)


def test_published_alpha_dpo() -> None:
    fixed = do.AlphaDPO(4000.0, 0.9999, adaptive=False)(PUBLISHED, pair()).loss
    adaptive = do.AlphaDPO(4000.0, 0.9999)(PUBLISHED, pair()).loss
    assert fixed.item() == pytest.approx(0.01497291, rel=1e-6)
    assert adaptive.item() == pytest.approx(0.01512585, rel=1e-6)


@pytest.mark.parametrize(("beta", "loss"), [(0.001, 0.00999625), (1.0, 0.00671392)])
def test_published_dspo(beta: float, loss: float) -> None:
    noise = vector(0.1, -0.2, 0.3, 0)
    policy = torch.stack([vector(0.2, -0.1, 0.2, 0.1), vector(0.3, 0, 0.1, 0.2)]) - noise
    reference = torch.stack([vector(0.15, -0.1, 0.25, 0.05), vector(0.25, 0.05, 0.1, 0.2)]) - noise
    products = ((policy * policy).mean(1), (reference * reference).mean(1), (policy * reference).mean(1))
    errors = Errors(products[0], products[1], cross={"policy_reference": products[2]})
    assert do.DSPO(beta)(errors, pair()).loss.item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("mu", "share"), [(0.2, 0.5106383), (0.6, 0.2553191), (0.9, 0.0638298)])
def test_published_safeguard(mu: float, share: float) -> None:
    winner, loser = vector(0.3, -0.2, 0.1, 0.4), vector(0.5, -0.3, 0.2, 0.6)
    errors = torch.stack([(winner * winner).mean(), (loser * loser).mean()])
    errors = Errors(errors, errors.clone(), cross={"chosen_rejected": (winner * loser).mean()[None]})
    (loss, safe), (plain_loss, plain) = (by_policy(o, errors, pair()) for o in (do.Safeguarded(do.DPO(), mu), do.DPO()))
    assert torch.equal(loss, plain_loss)
    assert (safe / plain).tolist() == pytest.approx([1.0, share], rel=1e-6)


def test_the_safeguard_knows_roles_and_ties() -> None:
    """An image that won one pair and lost another is scaled as a loser only; where P < 1/2 the chosen image lost."""
    level = vector(0.1, 0.13, 0.12)
    errors = Errors(level, level, cross={"chosen_rejected": vector(0.09, 0.08, 0.1)})
    chain = Pairs(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), vector(1, 0, 0.5))
    share = 0.2 * (0.1 + 0.12) / (0.09 + 0.08)
    _, grad = by_policy(do.Safeguarded(do.DPO(4.0), 0.8), errors, chain)
    assert grad.tolist() == pytest.approx([1.0, -2 * share, 1.0], rel=1e-12)


def test_published_madpo_weights() -> None:
    gaps, tau = vector(-1, 0, 0.5, 2, math.log(999), 9), math.log(999)
    weights = do.MarginAdaptive(2.0, 0.5, 1.0, tau).hard(gaps)
    assert weights.tolist() == pytest.approx([0.4464094, 1, 1.1736882, 1.1140192, 1, 0.9950756], rel=1e-6)


def test_published_kto_with_another_utility() -> None:
    errors = Errors(vector(0.096, 0.101, 0.1015, 0.0995), vector(0.1, 0.1, 0.1, 0.1))
    loss = do.KTO(2000.0, do.LossAverse())(errors, Unpaired(vector(1, 0, 0, 1))).loss
    assert loss.mean().item() == pytest.approx(1.2628098, rel=1e-7)


def test_ktos_baseline_is_never_negative() -> None:
    worse = Errors(vector(0.11, 0.12), vector(0.1, 0.1))
    loss = do.KTO(2000.0)(worse, Unpaired(vector(1, 0))).loss
    torch.testing.assert_close(loss, 1 - torch.sigmoid(vector(-10, 20)))


def test_published_nft() -> None:
    errors = Errors(vector(0.01), old=vector(0.04), cross={"policy_old": vector(-0.02)})
    loss = do.NFT(1.0, normalised=True)(errors, Advantages(vector(2.5), torch.tensor([0]))).loss
    assert 0.6 * loss.item() == pytest.approx(0.12, rel=1e-12)  # at time 0.6 their clean-image errors are 0.6 of ours


def test_mapo_at_errors_of_zero() -> None:
    errors = Errors(vector(0, 0), None)
    loss, grad = by_policy(do.MaPO(), errors, pair())
    assert loss.item() == pytest.approx(0.1 * math.log(2))
    assert grad.tolist() == pytest.approx([1 + 0.1 * 250 / 2, -0.1 * 250 / 2])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
def test_the_squashed_likelihood_is_smooth_where_its_series_ends(dtype: torch.dtype, tolerance: float) -> None:
    x = np.geomspace(1e-4, 20, 400).astype(np.longdouble)
    policy = torch.tensor(x.astype(float), dtype=dtype, requires_grad=True)
    r = do.SquashedLikelihood(1.0, 1.0)(Errors(policy))
    slope = torch.autograd.grad(r.sum(), policy)[0]
    expected = (np.expm1(x) - x * np.exp(x)) / np.expm1(x) ** 2
    np.testing.assert_allclose(r.detach().double(), (x / np.expm1(x)).astype(float), rtol=0, atol=tolerance / 10)
    np.testing.assert_allclose(slope.double(), expected.astype(float), rtol=0, atol=tolerance)


def test_clipping_stops_what_went_far_enough() -> None:
    """Of two images better and two worse than the mean, one each has left the range in its advantage's direction."""
    old, group = vector(0.2, 0.2, 0.2, 0.2), torch.zeros(4, dtype=int)
    errors = Errors(vector(0.1, 0.3, 0.1, 0.3), old, old)
    for objective in (do.DGPO(clip=0.05), do.AWM(clip=0.05)):
        _, grad = by_policy(objective, errors, Advantages(vector(1, 1, -1, -1), group))
        assert (grad != 0).tolist() == [False, True, True, False]
    at_old = Errors(old, old, old)
    _, plain = by_policy(do.AWM(), at_old, Advantages(vector(1, 2, -1, -2), group))
    _, clipped = by_policy(do.AWM(clip=1e-5), at_old, Advantages(vector(1, 2, -1, -2), group))
    torch.testing.assert_close(plain, clipped)


GROUP = torch.tensor([0, 0, 1])
REFUSED = [
    (lambda: do.DPO(0.0), "beta = 0.0: expected a positive number"),
    (lambda: do.DPO(float("nan")), "beta = nan: expected a positive number"),
    (lambda: do.DPO(label_smoothing=0.5), r"label_smoothing = 0.5: expected a number in \[0, 0.5\)"),
    (lambda: do.RobustDPO(label_noise=0.5), r"label_noise = 0.5: expected a number in \[0, 0.5\)"),
    (lambda: do.DMPO(alpha=1.0), r"alpha = 1.0: expected a number in \(0, 1\)"),
    (lambda: do.AlphaDPO(alpha=1.5), r"alpha = 1.5: expected a number in \[0, 1\]"),
    (lambda: do.SimPO(gamma=-1.0), "gamma = -1.0: expected a number of at least 0"),
    (lambda: do.MADPO(c_min=2.0), "c_min = 2.0, c_max = 2.0: expected c_min < 1 < c_max"),
    (lambda: do.KTO(weights=(1.0, -1.0)), "undesirable_weight = -1.0: expected a positive number"),
    (lambda: do.Mixed(do.DPO(), 0.0), "sft = 0.0: expected a positive number"),
    (lambda: do.Safeguarded(do.DPO(), 1.5), r"mu = 1.5: expected a number in \[0, 1\]"),
    (lambda: do.Safeguarded(do.KTO()), "Safeguarded modifies pairwise objectives, and KTO is none"),
    (lambda: pair(1.2), r"p\[0\] = 1.2: expected a number in \[0, 1\]"),
    (lambda: pair(float("nan")), r"p\[0\] = nan: expected a number in \[0, 1\]"),
    (lambda: Pairs(torch.tensor([0, 2]), torch.tensor([1, 2]), vector(1, 1)), "pair 1: is one image twice"),
    (lambda: Unpaired(vector(0, 2)), r"desirable\[1\] = 2: expected a number in \[0, 1\]"),
    (lambda: Ranking(vector(1, 2, 3), GROUP), "group 1: holds 1 of the images; Ranking expects at least 2"),
    (lambda: Advantages(vector(1, 2), torch.tensor([0, 2])), "group 1: holds 0 of the images"),
    (lambda: do.DPO()(SEVERAL, Unpaired(vector(1, 0, 1, 0))), "DPO learns from Pairs, not from Unpaired"),
    (lambda: do.KTO()(PUBLISHED, pair()), "KTO learns from Unpaired, not from Pairs"),
    (lambda: do.Mixed(do.KTO())(PUBLISHED, pair()), "KTO learns from Unpaired, not from Pairs"),
    (lambda: do.RankDPO()(PUBLISHED, Ranking(vector(21, 19), GROUP[:2])), r"scores lie in \[19, 21\]: expected shares"),
    (lambda: do.DPO()(Errors(vector(1, 1)), pair()), "DPO compares with a reference, but there are no reference"),
    (lambda: do.CRD()(Errors(vector(1, 1)), Advantages(vector(1, 2), GROUP[:2])), "there are no old errors"),
    (lambda: do.DSPO()(PUBLISHED, pair()), "DSPO reads the inner products of residuals policy_reference"),
    (lambda: do.Safeguarded(do.DPO())(PUBLISHED, pair()), "inner products of residuals chosen_rejected"),
    (lambda: do.MADPO()(PUBLISHED, pair()), "reads the pairs' score gaps, and some pair has none"),
    (lambda: do.MADPO()(PUBLISHED, pair(score_gap=vector(math.nan))), "some pair has none"),
    (lambda: do.MaPO().check_reference(True), "MaPO is reference-free, but a reference was asked for"),
    (lambda: do.DPO().check_reference(False), "DPO compares with a reference, but none was asked for"),
]


@pytest.mark.parametrize(("act", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_refused_in_one_line(act: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_every_positive_number_is_required_to_be_one() -> None:
    for name in do.__all__:
        fields = getattr(getattr(do, name), "__dataclass_fields__", {})
        if "beta" in fields:
            others = {n: 1.0 for n, f in fields.items() if n != "beta" and f.default is dataclasses.MISSING}
            for bad in (0.0, -1.0, math.inf, math.nan):
                with pytest.raises(ValueError, match="beta"):
                    getattr(do, name)(beta=bad, **others)


def test_moving_a_judgement_keeps_it() -> None:
    ranking = Ranking(vector(1, 0, 0.5, 0.2), torch.tensor([0, 0, 1, 1]), weight=vector(1, 2))
    moved = to(ranking, torch.device("cpu"))
    assert (moved.groups, moved.bounds, len(moved)) == (2, (0.0, 1.0), 2)
    assert torch.equal(moved.scores, ranking.scores)
    known = {"weight": vector(1, 2), "score_gap": vector(0.5, -0.5)}
    pairs = Pairs(torch.tensor([0, 3]), torch.tensor([1, 2]), vector(1, 1), **known)
    moved = to(pairs, torch.device("cpu"))
    for field in dataclasses.fields(Pairs):
        assert torch.equal(getattr(moved, field.name), getattr(pairs, field.name))
        assert getattr(moved, field.name).dtype == getattr(pairs, field.name).dtype
    assert (moved.certain, moved.knows_gaps) == (True, True)
    meta = to(ranking, torch.device("meta"))  # a device that has no values to look at
    assert (meta.scores.device.type, len(meta), meta.bounds) == ("meta", 2, (0.0, 1.0))


def test_beta_of_every_source() -> None:
    shape = (4, 64, 64)
    assert convert_beta(5000, "DiffusionDPO", shape) == 5000
    assert convert_beta(2500, "diffusers-sd15", shape) == 5000
    assert convert_beta(500, "Diffusion-NPO-sd15") == 1000
    summed = convert_beta(5000, "diffalign", shape, target="Diffusion-DPO-pseudocode")
    assert summed == pytest.approx(0.5 * 5000 / (4 * 64 * 64))
    assert convert_beta(1, "Diffusion-DPO-equation-46", (16, 128, 128)) == 16 * 128 * 128
    for source in ("DiffusionDPO", "diffusers-sd15", "Diffusion-DPO-equation-46", "Diffusion-DPO-pseudocode"):
        there = convert_beta(1234.5, "diffalign", shape, target=source)
        assert convert_beta(there, source, shape) == pytest.approx(1234.5, rel=1e-15)


def test_unknown_conventions_are_refused() -> None:
    with pytest.raises(ValueError, match="beta of 'nobody': expected one of CRD"):
        convert_beta(1, "nobody", (4, 64, 64))
    with pytest.raises(ValueError, match="multiplies a sum: expected latent_shape"):
        convert_beta(1, "Diffusion-DPO-pseudocode")

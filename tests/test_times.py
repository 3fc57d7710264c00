"""Time laws against their densities, weightings against their formulas and against each other's parametrisations."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffalign.backbones.base import Backbone, errors
from diffalign.diffusion import VP, Flow, Noised
from diffalign.times import (
    AsEpsilon,
    Grid,
    InverseSNR,
    LogitNormal,
    MinSNR,
    Mode,
    Shifted,
    Skewed,
    TimeLaw,
    Uniform,
)

LAWS = [
    Uniform(), LogitNormal(), LogitNormal(-1.0, 0.5), Mode(), Mode(-1.0), Mode(0.0), Shifted(), Shifted(0.5),
    Skewed(), Skewed(1.0, 7), Skewed(1.2, 3), Grid(), Grid(50), Grid(1),
]  # fmt: skip
WEIGHTINGS = [MinSNR(), MinSNR(1.0), InverseSNR(), AsEpsilon()]
U = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_every_law_gives_quantiles_inside_the_unit_interval(law: TimeLaw) -> None:
    u = torch.cat([torch.tensor([1e-6, 1 - 1e-6], dtype=torch.float64), U])
    q = law(u)
    assert q.dtype == torch.float64
    assert ((q > 0) & (q < 1)).all()
    t = VP().time(q)
    assert t.min() >= 0
    assert t.max() <= 999
    assert torch.equal(law(u.flip(0)), q.flip(0)), "one time is drawn without a look at the others"


@pytest.mark.parametrize("law", [law for law in LAWS if not isinstance(law, Grid)], ids=repr)
def test_every_continuous_law_is_monotone(law: TimeLaw) -> None:
    steps = law(U).diff()
    assert (steps > 0).all() or (steps < 0).all()


def test_logit_normal() -> None:
    logit = torch.logit(LogitNormal(0.3, 2.0)(U))
    assert logit.mean().item() == pytest.approx(0.3, abs=1e-6)
    assert logit.std().item() == pytest.approx(2.0, rel=2e-3)


def test_mode_has_the_density_of_its_formula() -> None:
    scale = 1.29
    q = Mode(scale)(U)
    edges = torch.linspace(0, 1, 21, dtype=torch.float64)
    found = torch.histogram(q, edges).hist / len(q)
    v = torch.linspace(0, 1, 200001, dtype=torch.float64)
    inverse = np.interp(edges.numpy(), Mode(scale)(v.flip(0)).numpy(), v.flip(0).numpy())
    torch.testing.assert_close(found, torch.from_numpy(-np.diff(inverse)), atol=1e-4, rtol=0)
    assert found[10] > found[0], "positive scales favour the middle"
    assert torch.equal(Mode(0.0)(U), 1 - U)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted_scales_the_noise(shift: float) -> None:
    q = Shifted(shift)(U)
    torch.testing.assert_close(q / (1 - q), shift * U / (1 - U), rtol=1e-10, atol=0)
    both = Shifted(shift)(LogitNormal()(U))
    torch.testing.assert_close(both, LogitNormal(math.log(shift))(U), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("gamma", "categories"), [(0.9, 10), (0.5, 4), (1.0, 5), (1.5, 3)])
def test_skewed_draws_category_k_with_probability_gamma_to_the_k(gamma: float, categories: int) -> None:
    q = Skewed(gamma, categories)(U)
    k = ((1 - q) * categories).floor().long()
    wanted = torch.tensor([gamma**i for i in range(categories)], dtype=torch.float64)
    found = torch.bincount(k, minlength=categories) / len(q)
    torch.testing.assert_close(found.double(), wanted / wanted.sum(), atol=2e-4, rtol=0)
    for i in range(categories):
        within = (1 - q[k == i]) * categories - i
        assert within.mean().item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("points", "stride"), [(4, 250), (50, 20), (8, 125), (1, 1000)])
def test_grid_is_that_of_few_step_models(points: int, stride: int) -> None:
    t, counts = VP().time(Grid(points)(U)).unique(return_counts=True)
    assert t.tolist() == [stride * k + stride - 1 for k in range(points)]
    assert counts.min() == counts.max()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Skewed(0.0), lambda: Skewed(0.9, 0), lambda: Grid(0), lambda: Shifted(0.0), lambda: Mode(2.0),
        lambda: LogitNormal(0.0, 0.0), lambda: MinSNR(0.0), lambda: Skewed(math.nan), lambda: Shifted(math.inf),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_in_one_line(make) -> None:
    with pytest.raises(ValueError, match="expected") as found:
        make()
    assert "\n" not in str(found.value)


class Answering(Backbone):
    """A backbone whose denoiser answers with a fixed tensor."""

    def __init__(self, process: VP | Flow, answer: torch.Tensor) -> None:
        self.process, self.answer = process, answer

    def predict(self, denoiser, x_t, t, conditioning):
        return self.answer


Answering.__abstractmethods__ = frozenset()


def drawn(process: VP | Flow, t: torch.Tensor, seed: int = 0) -> Noised:
    rng = torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(len(t), 2, 3, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    return process.noise(x0, eps, t)


def error(process: VP, t: torch.Tensor) -> tuple[Noised, torch.Tensor]:
    """The error of one and the same network, which outputs epsilon, measured in the process's parametrisation."""
    noised = drawn(process, t)
    answer = torch.randn(noised.x_t.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return noised, errors(Answering(process, answer), nn.Identity(), noised, {})


@pytest.mark.parametrize("weighting", [MinSNR(5.0), AsEpsilon()], ids=repr)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_weighted_errors_do_not_depend_on_the_parametrisation(weighting, prediction: str) -> None:
    t = torch.tensor([0, 10, 200, 500, 800, 999])
    noised, plain = error(VP(), t)
    changed = VP(prediction=prediction)
    again, other = error(changed, t)
    torch.testing.assert_close(weighting(again, changed) * other, weighting(noised, VP()) * plain, rtol=1e-9, atol=0)


def test_flow_errors_as_epsilon() -> None:
    process, t = Flow(), torch.tensor([0.01, 0.3, 0.7, 0.99], dtype=torch.float64)
    noised = drawn(process, t)
    v = noised.target + torch.randn(noised.target.shape, generator=torch.Generator().manual_seed(1)).double()
    w = (1 - t)[:, None, None, None]
    eps, seen = noised.x_t + w * noised.target, noised.x_t + w * v
    found = AsEpsilon()(noised, process) * (v - noised.target).square().flatten(1).mean(1)
    torch.testing.assert_close(found, (seen - eps).square().flatten(1).mean(1), rtol=1e-12, atol=0)


def test_min_snr_against_its_formula() -> None:
    t = torch.arange(1000)
    noised = drawn(VP(), t)
    snr = torch.from_numpy(VP().bars / (1 - VP().bars))
    torch.testing.assert_close(MinSNR(5.0)(noised, VP()), snr.clamp(max=5) / snr, rtol=1e-9, atol=0)
    v = VP(network="v_prediction", prediction="v_prediction")
    torch.testing.assert_close(MinSNR(5.0)(noised, v), snr.clamp(max=5) / (snr + 1), rtol=1e-9, atol=0)


def test_inverse_snr_has_the_range_that_the_paper_plots() -> None:
    weight = InverseSNR()(drawn(VP(), torch.arange(1000)), VP())
    assert weight.mean().item() == pytest.approx(1, abs=1e-9)
    assert weight.max().item() == pytest.approx(2, abs=1e-9)
    assert weight.min().item() == pytest.approx(0.742, abs=5e-4)
    assert (weight.diff() > 0).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
@given(u=st.lists(st.floats(1e-6, 1 - 1e-6), min_size=1, max_size=4), zero=st.booleans(), flow=st.booleans())
def test_weights_are_finite_and_one_per_image(weighting, u: list[float], zero: bool, flow: bool) -> None:
    process = Flow() if flow else VP(zero_terminal_snr=zero)
    quantiles = torch.tensor([*u, 1 - 1e-6], dtype=torch.float64)
    weight = weighting(drawn(process, process.time(quantiles)), process)
    assert weight.shape == quantiles.shape
    assert weight.isfinite().all()
    assert (weight >= 0).all()


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    process = dataclasses.replace(VP(), zero_terminal_snr=True)
    noised = drawn(process, torch.tensor([999]))
    assert torch.equal(noised.x_t, noised.target)
    assert noised.snr.item() == 0
    assert process.bars[0] == pytest.approx(VP().bars[0], rel=1e-12)

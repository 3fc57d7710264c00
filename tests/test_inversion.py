"""Inversion against closed forms: constant noise, Gaussian data, the published grid, and back again by sampling."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffalign import dataset, states
from diffalign.diffusion import VP, Flow
from diffalign.inversion import Inversion, check, invert, levels
from diffalign.objectives import DPO
from diffalign.records import InputError
from diffalign.run import AdamW, LoRA, Run, States
from diffalign.trainer import Trainer

SHAPE = (2, 4, 4)


def images(n: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quiet(step: int) -> Tensor:
    raise AssertionError("no noise was asked for")


def bars(t: Tensor) -> Tensor:
    return torch.from_numpy(VP().bars)[t][:, None, None, None]


def gaussian(deviation: float):
    """The exact noise in x_t where data are normal with this standard deviation: E[eps | x_t]."""

    def epsilon(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        a = bars(t)
        return (1 - a).sqrt() * x / (a * deviation**2 + 1 - a)

    return epsilon


def flowed(x0: Tensor, t: Tensor, deviation: float) -> Tensor:
    """Where the probability flow of Gaussian data takes x0: x_t keeps its quantile."""
    a = bars(t)
    return x0 * (a * deviation**2 + 1 - a).sqrt() / deviation


@pytest.mark.parametrize("steps", [1, 3, 10, 1000])
@pytest.mark.parametrize("renoise", [0, 2])
def test_constant_noise_is_found_exactly_at_every_time(steps: int, renoise: int) -> None:
    t, x0 = torch.arange(1000), images(1000)
    constant = images(1000, seed=1)
    noised = invert(Inversion(steps=steps, renoise=renoise), VP(), lambda x, t, rows: constant[rows], x0, t, quiet)
    torch.testing.assert_close(noised.target, constant, rtol=0, atol=1e-9)
    a = bars(t)
    torch.testing.assert_close(noised.x_t, a.sqrt() * x0 + (1 - a).sqrt() * constant, rtol=0, atol=1e-11)
    assert torch.equal(noised.t, t)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_target_and_state_agree_in_every_parametrisation(prediction: str) -> None:
    process, t, x0 = VP(prediction=prediction), torch.tensor([0, 7, 250, 640, 999]), images(5)
    noised = invert(Inversion(steps=10), process, gaussian(0.5), x0, t, quiet)
    eps = invert(Inversion(steps=10), VP(), gaussian(0.5), x0, t, quiet).target
    expected = process.noise(x0, eps, t)
    torch.testing.assert_close(noised.target, expected.target, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(noised.x_t, expected.x_t, rtol=1e-12, atol=1e-12)


def gaussian_error(inversion: Inversion, t: Tensor) -> np.ndarray:
    """Largest error per time against the closed form."""
    x0 = images(len(t), 0.5)
    found = invert(inversion, VP(), gaussian(0.5), x0, t, quiet).x_t
    return (found - flowed(x0, t, 0.5)).abs().flatten(1).amax(1).numpy()


def test_error_falls_at_first_order_in_the_number_of_steps() -> None:
    t = torch.tensor([999, 799, 599, 399])
    curve = np.stack([gaussian_error(Inversion(steps=n), t) for n in (20, 40, 80, 160)])
    ratios = curve[:-1] / curve[1:]
    assert ((ratios > 1.8) & (ratios < 2.2)).all(), ratios


def test_a_second_look_takes_most_of_the_error_away() -> None:
    t = torch.tensor([999, 799, 599, 399])
    once, twice = (gaussian_error(Inversion(steps=20, renoise=r), t) for r in (0, 1))
    assert (twice < 0.35 * once).all(), (once, twice)


def sampled(epsilon, x: Tensor, t: int, steps: int) -> Tensor:
    """Deterministic DDIM from t down to x0, along the same grid, written out on its own."""
    grid = [level for level in levels(Inversion(steps=steps), 1000) if level < t] + [t]
    alpha = [1.0 if level < 0 else VP().bars[level] for level in grid]
    for i in range(len(grid) - 1, 0, -1):
        eps = epsilon(x, torch.full((len(x),), grid[i]), torch.arange(len(x)))
        x0 = (x - math.sqrt(1 - alpha[i]) * eps) / math.sqrt(alpha[i])
        x = math.sqrt(alpha[i - 1]) * x0 + math.sqrt(1 - alpha[i - 1]) * eps
    return x


@pytest.mark.parametrize("t", [3, 120, 555, 999])
def test_sampling_undoes_inversion(t: int) -> None:
    x0 = images(3)

    def away(steps: int) -> float:
        x_t = invert(Inversion(steps=steps), VP(), gaussian(1.0), x0, torch.full((3,), t), quiet).x_t
        return ((sampled(gaussian(1.0), x_t, t, steps) - x0).abs().max() / x0.abs().max()).item()

    coarse, fine = away(25), away(200)
    assert fine < 0.02
    assert t < 40 or 5 < coarse / fine < 12, "first order: an eighth of the step, an eighth of the error"


def test_a_mixture_of_times_is_inverted_as_each_alone() -> None:
    t, x0 = torch.tensor([0, 3, 3, 99, 100, 101, 512, 998, 999]), images(9)
    for inversion in (Inversion(steps=10), Inversion(steps=7, renoise=1), Inversion(steps=10, legacy=True)):
        together = invert(inversion, VP(), gaussian(0.7), x0, t, quiet)
        for i in range(len(t)):
            alone = invert(inversion, VP(), gaussian(0.7), x0[i : i + 1], t[i : i + 1], quiet)
            assert torch.equal(together.x_t[i], alone.x_t[0])
            assert torch.equal(together.target[i], alone.target[0])


def test_states_end_exactly_at_t_and_published_ones_beyond() -> None:
    def end(inversion: Inversion, t: int) -> tuple[list[int], int]:
        told: list[int] = []

        def silent(x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
            told.append(int(time[0]))
            return torch.zeros_like(x)

        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        noised = invert(inversion, VP(), silent, one, torch.tensor([t]), quiet)
        # with silent noise x is sqrt(alpha-bar of where it ended), over that of where it began
        start = VP().bars[0] if inversion.legacy else 1.0
        reached = noised.x_t.item() ** 2 * start
        return told, int(np.abs(VP().bars - reached).argmin())

    assert end(Inversion(steps=10), 0) == ([0], 0)
    assert end(Inversion(steps=10), 99) == ([0], 99)
    assert end(Inversion(steps=10), 100) == ([0, 99], 100)
    assert end(Inversion(steps=10), 250) == ([0, 99, 199], 250)
    assert end(Inversion(steps=10, legacy=True), 2) == ([-99, 1], 101)
    assert end(Inversion(steps=10, legacy=True), 250) == ([-99, 1, 101, 201], 301)
    assert end(Inversion(steps=10, legacy=True), 999) == ([-99, *range(1, 802, 100)], 901)
    calls = [len(end(Inversion(steps=10, legacy=True), t)[0]) for t in range(1000)]
    assert np.mean(calls) == pytest.approx(6.4, abs=0.1), "the mean number of network calls of the published code"


def published(x0: Tensor, t: int, epsilon, n: int, second: bool) -> Tensor:
    """eps* of the published loop for one pair, in numbers of its own: grid by rolling, levels t -> t + T / n."""
    alpha, stride = VP().bars, 1000 // n
    grid = np.roll(np.arange(n) * stride + 1, 1)
    grid[0] = grid[1] - stride
    x = x0.clone()
    for now in grid[grid < t]:
        a, b = alpha[now] if now >= 0 else alpha[0], alpha[now + stride]

        def step(eps: Tensor, a: float = a, b: float = b, x: Tensor = x) -> Tensor:
            return b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps

        told = torch.full((len(x),), int(now))
        eps = epsilon(x, told, torch.arange(len(x)))
        if second:
            eps = (eps + epsilon(step(eps), told, torch.arange(len(x)))) / 2
        x = step(eps)
    return (x - alpha[t] ** 0.5 * x0) / (1 - alpha[t]) ** 0.5


@pytest.mark.parametrize("t", [0, 1, 2, 50, 101, 102, 640, 901, 902, 999])
@pytest.mark.parametrize(("n", "second"), [(10, False), (10, True), (5, True)])
def test_legacy_is_the_published_loop(t: int, n: int, second: bool) -> None:
    def epsilon(x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        return torch.tanh(x) * (0.5 + time[:, None, None, None] / 2000)

    x0 = images(2)
    inversion = Inversion(steps=n, renoise=int(second), legacy=True)
    found = invert(inversion, VP(), epsilon, x0, torch.full((2,), t), quiet).target
    torch.testing.assert_close(found, published(x0, t, epsilon, n, second), rtol=1e-10, atol=1e-10)


def test_noise_term_has_the_posterior_deviation_of_each_step() -> None:
    grid, t = [-1, 99, 199, 250], torch.tensor([250])
    alpha = [1.0, *(VP().bars[i] for i in grid[1:])]
    expected = 0.0
    for low, high in zip(alpha, alpha[1:], strict=False):
        expected = expected * math.sqrt(high / low) + 0.1 * math.sqrt((1 - low) / (1 - high) * (1 - high / low))
    zero = torch.zeros(1, *SHAPE, dtype=torch.float64)
    seen: list[int] = []

    def ones(step: int) -> Tensor:
        seen.append(step)
        return torch.ones(1, *SHAPE)

    silent = lambda x, t, rows: torch.zeros_like(x)  # noqa: E731
    noised = invert(Inversion(steps=10, noise=0.1), VP(), silent, zero, t, ones)
    torch.testing.assert_close(noised.x_t, torch.full_like(zero, expected), rtol=1e-12, atol=0)
    assert seen == [0, 1, 2]


def test_what_cannot_be_inverted_is_refused_in_one_line() -> None:
    for process, inversion, text in [
        (Flow(), Inversion(steps=10), "is a flow"),
        (VP(steps=100), Inversion(steps=101), "has 100 steps"),
    ]:
        with pytest.raises(InputError, match=text) as found:
            check(inversion, process)
        assert "\n" not in str(found.value)
    check(Inversion(), Flow())
    for make in (
        lambda: Inversion(renoise=1), lambda: Inversion(legacy=True), lambda: Inversion(steps=-1),
        lambda: Inversion(steps=2, noise=-0.1), lambda: Inversion(steps=2, guidance=math.nan),
        lambda: States(inversion=Inversion(steps=2), noise="independent"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="steps|noise"):
            make()


@pytest.fixture(scope="module")
def run(models: dict[str, Path], pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(
        model=str(models["sdxl"]), objective=DPO(beta=2000.0), policy=LoRA(rank=2), data=str(pairs), steps=3, batch=4,
        resolution=32, optimizer=AdamW(lr=1e-2), out=str(tmp_path_factory.mktemp("inverted")),
        states=States(inversion=Inversion(steps=4, renoise=1, noise=0.1)),
    )  # fmt: skip


def inverted(run: Run, trainer: Trainer, **changes: object) -> states.Noised:
    inversion = dataclasses.replace(run.states.inversion, **changes)
    passes = dataclasses.replace(trainer.passes, run=dataclasses.replace(run, states=States(inversion=inversion)))
    visits = trainer.data.visits(run.seed, 0, run.batch)
    return passes.noised(visits, passes.conditioning(visits))


def test_inversion_in_training(run: Run, models: dict[str, Path]) -> None:
    trainer = Trainer(run)
    first = inverted(run, trainer)
    a, s = trainer.process.roots(first.t, first.x_t)
    visits = trainer.data.visits(run.seed, 0, run.batch)
    x0, _ = states.clean(run, trainer.process, trainer.material, visits)
    torch.testing.assert_close(first.x_t, a * x0 + s * first.target, rtol=1e-5, atol=1e-5)
    assert all(len(first.t[2 * i : 2 * i + 2].unique()) == 1 for i in range(4)), "one time per group"

    assert torch.equal(inverted(run, trainer, by="reference").x_t, first.x_t), "policy = reference at step 0"
    assert torch.equal(inverted(run, trainer).x_t, first.x_t), "the noise term is named, not drawn"
    assert not torch.equal(inverted(run, trainer, noise=0.0).x_t, first.x_t)
    assert not torch.equal(inverted(run, trainer, guidance=2.0).x_t, first.x_t)

    margins = [step.metrics["margin"].item() for step in trainer]
    assert margins[0] == 0
    assert all(math.isfinite(m) for m in margins)
    assert margins[1] != 0
    assert not torch.equal(inverted(run, trainer).x_t, first.x_t), "the policy that inverts has moved"
    assert torch.equal(inverted(run, trainer, by="reference").x_t, first.x_t)

    with pytest.raises(InputError, match="is a flow"):
        Trainer(dataclasses.replace(run, model=str(models["sd3"])))


def test_a_group_is_inverted_alone_as_in_a_batch(run: Run) -> None:
    trainer = Trainer(dataclasses.replace(run, out=f"{run.out}/exact", precision="float64"))
    visits = trainer.data.visits(run.seed, 0, run.batch)

    def reached(part: list[dataset.Visit]) -> Tensor:
        return trainer.passes.noised(part, trainer.passes.conditioning(part)).x_t

    alone = [reached([visit]) for visit in visits]
    torch.testing.assert_close(torch.cat(alone), reached(visits), rtol=1e-7, atol=1e-9)


def test_guidance_is_linear_in_the_two_branches(run: Run) -> None:
    trainer = Trainer(run)
    visits = trainer.data.visits(0, 0, 2)
    given, negative = trainer.passes.conditioning(visits), trainer.material.negative
    x = torch.randn(4, *trainer.backbone.latent_shape(32, 32), generator=torch.Generator().manual_seed(0))
    t, rows = torch.tensor([5, 5, 700, 700]), torch.arange(4)

    def looks(guidance: float) -> Tensor:
        with torch.no_grad():
            return states.epsilon(trainer.backbone, trainer.denoiser, given, negative, guidance)(x, t, rows)

    torch.testing.assert_close(looks(3.0), looks(0.0) + 3 * (looks(1.0) - looks(0.0)), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(looks(0.0), looks(1.0), atol=1e-4)

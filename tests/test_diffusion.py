"""Forward processes: three of them under the same laws, variance-preserving ones against diffusers too."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffalign.diffusion import EPSILON, SAMPLE, VP, Flow, Process, V, alphas_cumprod, draw_noise, draw_time
from diffalign.streams import normal, stream
from diffalign.times import LogitNormal, Uniform

SHAPE = (4, 3, 2)
PROCESSES: dict[str, Process] = {"epsilon": VP(), "v": VP(network=V, prediction=V), "flow": Flow()}
SCHEDULES = {
    "sd": ("scaled_linear", 0.00085, 0.012),
    "pixart": ("linear", 1e-4, 0.02),
    "cosine": ("squaredcos_cap_v2", 1e-4, 0.02),
}
seeds = st.integers(0, 2**31)
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def drawn(process: Process, seed: int, images: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    u = torch.from_numpy(np.random.default_rng(seed + 1).uniform(0.001, 0.999, images))
    return numbers(seed, images, *SHAPE), numbers(seed + 2, images, *SHAPE), process.time(u)


def ddpm(schedule: tuple[str, float, float], **changes: object) -> diffusers.DDPMScheduler:
    name, start, end = schedule
    return diffusers.DDPMScheduler(beta_schedule=name, beta_start=start, beta_end=end, **changes)


# --- against diffusers


@every_schedule
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_schedule_is_that_of_diffusers(schedule: tuple[str, float, float], zero_terminal_snr: bool) -> None:
    theirs = ddpm(schedule, rescale_betas_zero_snr=zero_terminal_snr).alphas_cumprod
    ours = alphas_cumprod(*schedule, 1000, zero_terminal_snr)
    # theirs is a float32 product of 1000 factors
    np.testing.assert_allclose(ours, theirs.double(), rtol=2e-4, atol=1e-9)
    if zero_terminal_snr:
        assert ours[-1] == 0
        assert np.isclose(ours[0], alphas_cumprod(*schedule, 1000, False)[0])


@every_schedule
@given(seed=seeds)
def test_noise_and_velocity_are_those_of_diffusers(schedule: tuple[str, float, float], seed: int) -> None:
    name, start, end = schedule
    process = VP(name, start, end, prediction=V, network=V)
    x0, eps, t = (v.float() if v.is_floating_point() else v for v in drawn(process, seed))
    noised, scheduler = process.noise(x0, eps, t), ddpm(schedule)
    torch.testing.assert_close(noised.x_t, scheduler.add_noise(x0, eps, t), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noised.target, scheduler.get_velocity(x0, eps, t), rtol=1e-4, atol=1e-4)
    assert torch.equal(dataclasses.replace(process, prediction=EPSILON, network=EPSILON).noise(x0, eps, t).target, eps)


@given(seed=seeds)
def test_flow_is_that_of_diffusers(seed: int) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    places = np.random.default_rng(seed).integers(0, 1000, 5)
    t = scheduler.sigmas[places].double()
    x0, eps = numbers(seed, 5, *SHAPE).float(), numbers(seed + 1, 5, *SHAPE).float()
    noised = Flow().noise(x0, eps, t)
    torch.testing.assert_close(noised.x_t, scheduler.scale_noise(x0, scheduler.timesteps[places], eps))
    torch.testing.assert_close(Flow().model_time(t), scheduler.timesteps[places].double())
    # one Euler step all the way down the true velocity lands on the picture
    torch.testing.assert_close(noised.x_t - t.float()[:, None, None, None] * noised.target, x0, rtol=1e-4, atol=1e-5)


# --- laws of all three


@every_process
@given(seed=seeds)
def test_time_runs_from_picture_to_noise(process: Process, seed: int) -> None:
    u = torch.from_numpy(np.sort(np.random.default_rng(seed).uniform(0.01, 0.99, 20)))
    x0, eps = numbers(seed, 20, *SHAPE), numbers(seed + 1, 20, *SHAPE)
    noised = process.noise(x0, eps, process.time(u))
    assert (noised.snr.diff() <= 0).all()
    assert (noised.snr > 0).all()
    early, late = (process.noise(x0, eps, process.time(torch.full((20,), q).double())).x_t for q in (1e-6, 1 - 1e-6))
    assert (early - x0).square().mean() < 0.01 * (early - eps).square().mean()
    assert (late - eps).square().mean() < 0.01 * (late - x0).square().mean()


@every_process
@given(seed=seeds)
def test_noisy_input_and_target_come_from_one_draw(process: Process, seed: int) -> None:
    """Two equations in x0 and eps: x_t and target give both back, and their ratio is the SNR."""
    x0, eps, t = drawn(process, seed)
    one, none = torch.ones_like(x0), torch.zeros_like(x0)
    a, s = process.noise(one, none, t).x_t, process.noise(none, one, t).x_t
    c, d = process.noise(one, none, t).target, process.noise(none, one, t).target
    noised = process.noise(x0, eps, t)
    determinant = a * d - s * c
    torch.testing.assert_close((d * noised.x_t - s * noised.target) / determinant, x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((a * noised.target - c * noised.x_t) / determinant, eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(((a / s) ** 2)[:, 0, 0, 0], noised.snr, rtol=1e-6, atol=0)


@every_process
@given(seed=seeds)
def test_images_do_not_touch_each_other(process: Process, seed: int) -> None:
    x0, eps, t = drawn(process, seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(5))
    straight, shuffled = process.noise(x0, eps, t), process.noise(x0[order], eps[order], t[order])
    for name in ("x_t", "target", "t", "snr"):
        assert torch.equal(getattr(straight, name)[order], getattr(shuffled, name))


@every_process
def test_precision_is_that_of_the_latents(process: Process) -> None:
    x0, eps, t = drawn(process, 0)
    for dtype in (torch.float32, torch.float64):
        noised = process.noise(x0.to(dtype), eps.to(dtype), t)
        assert noised.x_t.dtype == noised.target.dtype == noised.snr.dtype == dtype


@every_process
@given(seed=seeds)
def test_share_of_epsilon(process: Process, seed: int) -> None:
    """An error of the target is an error of the noise, times a number of the time alone."""
    x0, eps, t = drawn(process, seed)
    noised, slip = process.noise(x0, eps, t), numbers(seed + 3, 5, *SHAPE)
    one, none = torch.ones_like(x0), torch.zeros_like(x0)
    a, s = process.noise(one, none, t).x_t, process.noise(none, one, t).x_t
    c, d = process.noise(one, none, t).target, process.noise(none, one, t).target
    wrong = (a * (noised.target + slip) - c * noised.x_t) / (a * d - s * c)
    share = ((wrong - eps) ** 2).flatten(1).mean(1) / (slip**2).flatten(1).mean(1)
    torch.testing.assert_close(process.epsilon_share(noised), share, rtol=1e-6, atol=0)


# --- reparametrisation


@given(seed=seeds)
def test_v_error_is_epsilon_error_over_alpha_bar(seed: int) -> None:
    plain, as_v = VP(), VP(prediction=V)
    x0, eps, t = drawn(plain, seed)
    output = eps + 0.1 * numbers(seed + 3, 5, *SHAPE)
    square = {}
    for name, process in (("epsilon", plain), ("v", as_v)):
        noised = process.noise(x0, eps, t)
        square[name] = (process.express(output, noised) - noised.target).square().flatten(1).mean(1)
    bar = torch.from_numpy(plain.bars)[t]
    torch.testing.assert_close(square["v"], square["epsilon"] / bar, rtol=1e-9, atol=0)


@pytest.mark.parametrize("network", [EPSILON, V, SAMPLE])
@pytest.mark.parametrize("prediction", [EPSILON, V, SAMPLE])
@given(seed=seeds)
def test_a_right_network_is_right_in_every_parametrisation(network: str, prediction: str, seed: int) -> None:
    told, asked = VP(network=network, prediction=network), VP(network=network, prediction=prediction)
    x0, eps, t = drawn(told, seed)
    noised = asked.noise(x0, eps, t)
    said = asked.express(told.noise(x0, eps, t).target, noised)
    torch.testing.assert_close(said, noised.target, rtol=1e-7, atol=1e-7)
    if network == prediction:
        assert torch.equal(said, noised.target)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="prediction type 'flow': expected epsilon, v_prediction or sample"):
        VP(network="flow")
    with pytest.raises(ValueError, match="beta schedule 'exp': expected linear, scaled_linear or squaredcos_cap_v2"):
        _ = VP(schedule="exp").bars


# --- time and noise by name


def test_vp_time_covers_every_step_alike() -> None:
    t = VP().time((torch.arange(5000, dtype=torch.float64) + 0.5) / 5000)
    assert torch.equal(t.bincount(), torch.full((1000,), 5))
    assert VP().time(torch.tensor([1 - 1e-12, 0.0], dtype=torch.float64)).tolist() == [999, 0]


def test_time_laws() -> None:
    u = (torch.arange(9999, dtype=torch.float64) + 0.5) / 9999
    assert torch.equal(Uniform()(u), u)
    q = LogitNormal(mean=0.5, std=1.2)(u)
    logit = q.logit()
    assert abs(logit.mean() - 0.5) < 1e-3
    assert abs(logit.std() - 1.2) < 1e-2
    assert (q.diff() > 0).all()


def test_noise_is_a_function_of_names() -> None:
    base = draw_noise(3, "group", 2, None, SHAPE)
    assert base.dtype == np.float32
    assert base.shape == SHAPE
    assert np.array_equal(base, draw_noise(3, "group", 2, None, SHAPE))
    names = [(4, "group", 2, None), (3, "other", 2, None), (3, "group", 3, None), (3, "group", 2, "image")]
    others = [draw_noise(*n, SHAPE) for n in names]
    assert len({o.tobytes() for o in (base, *others)}) == 5
    assert draw_time(3, "group", 2) == draw_time(3, "group", 2)
    times = {draw_time(*n[:3]) for n in names[:3]} | {draw_time(3, "group", 2)}
    assert len(times) == 4
    assert all(0 < t < 1 for t in times)


def test_names_do_not_run_into_each_other() -> None:
    """("ab", "c") and ("a", "bc") are two streams, and a number is its digits wherever it comes from."""
    assert stream("noise", 0, "ab", "c").random() != stream("noise", 0, "a", "bc").random()
    assert stream("noise", 0, "a").random() != stream("time", 0, "a").random()
    assert stream("noise", 1, 2).random() == stream("noise", 1, "2").random()


def test_noise_is_standard_normal_and_uncorrelated_between_names() -> None:
    many = np.stack([draw_noise(0, f"group{i}", 0, None, (4, 8, 8)).ravel() for i in range(200)])
    assert abs(many.mean()) < 0.01
    assert abs(many.std() - 1) < 0.01
    correlation = np.corrcoef(many)
    assert np.abs(correlation[~np.eye(200, dtype=bool)]).max() < 0.35


def test_streams_never_change() -> None:
    """Published runs are repeated by name: these numbers are part of the format."""
    assert normal("noise", 0, "a", 1, shape=(3,)).tolist() == [
        -1.291609525680542,
        0.9333643317222595,
        -0.22349464893341064,
    ]
    assert draw_time(7, "group", 3) == 0.777571694223865

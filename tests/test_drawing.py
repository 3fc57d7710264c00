"""Drawing: any scheduler, guidance where it is asked for, stacks of adapters, a second denoiser, step caches."""

import functools
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from diffalign import adapters, backbones, drawing, plan
from diffalign.backbones import schedulers, stack
from diffalign.backbones.base import Backbone
from diffalign.drawing import Artist, Sampler
from diffalign.plan import Negative, Plan
from diffalign.records import InputError, Prompt, prompt_id
from diffalign.streams import normal

PROMPTS = [Prompt(prompt_id(t), t) for t in ("a red circle", "the blue square", "large green")]
WORK = [(p.id, 0) for p in PROMPTS]


@pytest.fixture(scope="module")
def load(models: dict[str, Path]) -> Callable[[str], Backbone]:
    """A family's tiny backbone, loaded once for all tests that leave it as it is."""
    return functools.cache(lambda family: backbones.load(str(models[family])))


def artist(backbone: Backbone, **changes: object) -> Artist:
    options = {"steps": 4, "guidance": 4.0, "height": 32, "width": 32} | changes
    negative = options.pop("negative", None)
    found = Artist(backbone, Sampler(**options), seed=3, negative=negative, decode=options.pop("decode", 16))
    found.encode(PROMPTS)
    return found


def counted(module: nn.Module, calls: list[int]) -> None:
    """Note how many rows each call of a UNet has."""
    module.register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))


# --- schedulers

VP = """DDIMScheduler DDPMScheduler DEISMultistepScheduler DPMSolverMultistepScheduler DPMSolverSinglestepScheduler
DPMSolverMultistepScheduler,algorithm_type=sde-dpmsolver++,use_karras_sigmas=true EulerDiscreteScheduler
EulerAncestralDiscreteScheduler,timestep_spacing=trailing HeunDiscreteScheduler KDPM2DiscreteScheduler
KDPM2AncestralDiscreteScheduler LCMScheduler PNDMScheduler TCDScheduler UniPCMultistepScheduler SASolverScheduler"""
FLOW = """FlowMatchEulerDiscreteScheduler FlowMatchHeunDiscreteScheduler FlowMatchLCMScheduler UniPCMultistepScheduler
DPMSolverMultistepScheduler FlowMatchEulerDiscreteScheduler,stochastic_sampling=true"""
CASES = [("sd", name) for name in VP.split()] + [(f, name) for f in ("sd3", "flux") for name in FLOW.split()]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_any_scheduler_draws_pictures_that_depend_on_their_names_alone(
    models: dict[str, Path], load: Callable[[str], Backbone], family: str, name: str
) -> None:
    backbone = load(family)
    own = backbone.pipe.scheduler
    try:
        schedulers.replace(backbone, name)
        assert type(backbone.pipe.scheduler).__name__ == name.split(",")[0]
        pictures = artist(backbone).draw(WORK)
        assert np.abs(artist(backbone).draw(WORK[:0:-1])[::-1].astype(int) - pictures[1:]).max() <= 1
        assert len(np.unique(pictures)) > 20
    finally:
        backbone.pipe.register_modules(scheduler=own)


def test_schedulers_that_the_model_cannot_use_are_refused(load: Callable[[str], Backbone]) -> None:
    def refused(family: str, name: str) -> str:
        backbone = load(family)
        own = backbone.pipe.scheduler
        try:
            with pytest.raises(InputError) as caught:
                schedulers.replace(backbone, name)
        finally:
            backbone.pipe.register_modules(scheduler=own)
        return str(caught.value)

    assert "did you mean EulerDiscreteScheduler?" in refused("sd", "EulerDiscretScheduler")
    assert "does not run a variance-preserving model" in refused("sd", "FlowMatchEulerDiscreteScheduler")
    assert "does not run a rectified flow" in refused("sd3", "DDIMScheduler")
    assert "goes from the picture to noise" in refused("sd", "DDIMInverseScheduler")
    assert "another noise schedule" in refused("sd", "DDIMScheduler,beta_end=0.5")
    assert "has no option 'karras'" in refused("sd", "DDIMScheduler,karras=true")
    if importlib.util.find_spec("torchsde") is None:
        assert "needs torch and torchsde" in refused("sd", "DPMSolverSDEScheduler")
    assert "'x', expected option=value" in refused("sd", "DDIMScheduler,x")
    assert "scheduler DPMSolverMultistepScheduler: can" in refused("sd", "DPMSolverMultistepScheduler,algorithm_type=x")


def test_a_dynamic_shift_is_that_of_the_size(load: Callable[[str], Backbone]) -> None:
    """flux shifts by size: Euler's times by mu are those of a solver that is told exp(mu)."""
    backbone = load("flux")
    own, shape = backbone.pipe.scheduler, backbone.latent_shape(32, 32)
    try:
        schedulers.replace(backbone, "DPMSolverMultistepScheduler,timestep_spacing=trailing")
        times = backbone.solver(1000, shape).timesteps
    finally:
        backbone.pipe.register_modules(scheduler=own)
    torch.testing.assert_close(times.float(), backbone.solver(1000, shape).timesteps.float(), rtol=0, atol=2.0)


def test_a_unet_that_was_distilled_for_guidance_is_told_of_it(tmp_path: Path) -> None:
    import diffusers

    pipe = tiny.sd()
    unet = diffusers.UNet2DConditionModel.from_config(pipe.unet.config, time_cond_proj_dim=8)
    pipe.register_modules(unet=unet, scheduler=diffusers.LCMScheduler.from_config(pipe.scheduler.config))
    pipe.save_pretrained(tmp_path)
    backbone = backbones.load(str(tmp_path))
    ours, calls = artist(backbone, guidance=8.5, steps=2), []
    counted(backbone.denoiser, calls)
    noise = torch.stack([ours.noise(*cell) for cell in WORK])
    picture = ours.draw(WORK)
    assert calls == [3, 3], "no unconditional branch"
    own = backbone.pipeline(backbone.denoiser)
    own.set_progress_bar_config(disable=True)
    expected = own(
        [p.text for p in PROMPTS], num_inference_steps=1, guidance_scale=8.5, height=32, width=32, latents=noise,
        output_type="np",
    ).images  # fmt: skip
    one = artist(backbone, guidance=8.5, steps=1).draw(WORK)
    assert np.array_equal(one, (expected * 255).round().astype(np.uint8))
    assert not np.array_equal(picture, artist(backbone, guidance=2.0, steps=2).draw(WORK))


# --- guidance


def test_guidance_interval(load: Callable[[str], Backbone]) -> None:
    backbone = load("sdxl")
    calls: list[int] = []
    hook = backbone.denoiser.register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))
    some = artist(backbone, interval=(0.25, 0.75)).draw(WORK)
    assert calls == [3, 6, 6, 3], "one row a picture where there is no guidance"
    hook.remove()
    assert not np.array_equal(some, artist(backbone).draw(WORK))
    whole = artist(backbone, interval=(0.0, 1.0)).draw(WORK)
    assert np.array_equal(whole, artist(backbone).draw(WORK))
    with pytest.raises(InputError, match="expected 0 <= from < to <= 1"):
        artist(backbone, interval=(0.5, 0.5))
    with pytest.raises(InputError, match="no unconditional branch"):
        artist(load("flux"), interval=(0.0, 0.5))


def test_prompts_are_encoded_once_and_the_empty_one_once(
    load: Callable[[str], Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, seen = load("sdxl"), []
    encode, negative = type(backbone).encode_prompts, type(backbone).encode_negative
    monkeypatch.setattr(type(backbone), "encode_prompts", lambda b, texts: seen.extend(texts) or encode(b, texts))
    monkeypatch.setattr(type(backbone), "encode_negative", lambda b: seen.append("") or negative(b))
    found = artist(backbone)
    for index in range(3):
        found.encode(PROMPTS)
        found.draw([(p.id, index) for p in PROMPTS])
    assert sorted(seen) == sorted(["", *(p.text for p in PROMPTS)])
    monkeypatch.setattr(drawing, "ROOM", 0)
    other = [Prompt(str(i), f"a small {i}") for i in range(2)]
    found.encode(other)
    assert set(found.rows) == {"0", "1"}, "what is not needed now is forgotten where there is no room"


# --- adapters


def adapter(backbone: Backbone, seed: int) -> adapters.Adapter:
    found = {}
    for name, module in backbone.denoiser.named_modules():
        if name.endswith("to_q"):
            shapes = {"down": (2, module.in_features), "up": (module.out_features, 2)}
            drawn = {k: torch.from_numpy(normal("noise", seed, name, k, shape=s)) for k, s in shapes.items()}
            found[name] = adapters.Factors(drawn["down"], drawn["up"] * 0.5, 2.0)
    return found


def saved(backbone: Backbone, seed: int, folder: Path) -> str:
    folder.mkdir()
    backbone.save_lora(folder, *adapters.peft(adapter(backbone, seed)))
    return str(folder)


def weights_of(denoiser: nn.Module) -> dict[str, Tensor]:
    """The weights with their adapters fused, float64."""
    found = adapters.of(denoiser)
    plain = {n.replace(".base_layer", ""): v.double() for n, v in denoiser.state_dict().items() if ".lora_" not in n}
    for name, factors in found.items():
        plain[f"{name}.weight"] = plain[f"{name}.weight"] + factors.baked().up.double() @ factors.down.double()
    return plain


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-5)


def moved(state: dict[str, Tensor], *changes: tuple[float, dict[str, Tensor]]) -> dict[str, Tensor]:
    """state + sum of factor * change."""
    return {n: v + sum(f * c[n] for f, c in changes if n in c) for n, v in state.items()}


def delta(found: adapters.Adapter) -> dict[str, Tensor]:
    return {f"{n}.weight": f.baked().up.double() @ f.down.double() for n, f in found.items()}


@pytest.mark.parametrize("family", ["sdxl", "pixart"])
def test_stacks_and_negatives_are_sums_of_weights(models: dict[str, Path], tmp_path: Path, family: str) -> None:
    """theta + sum of w_i delta_i; and theta_neg = theta_npo + (1 - a)(theta_pos - theta_base), in float64."""
    bare = backbones.load(str(models[family]))
    base, first, second = weights_of(bare.denoiser), delta(adapter(bare, 1)), delta(adapter(bare, 2))
    files = [saved(bare, seed, tmp_path / str(seed)) for seed in (1, 2)]
    asked = Plan(str(models[family]), lora=(files[0], f"{files[1]}=-0.5"), steps=2)
    close(weights_of(plan.artist(asked, 0, 16, "cpu").backbone.denoiser), moved(base, (1, first), (-0.5, second)))
    asked = Plan(str(models[family]), lora=(files[0],), negative=Negative((files[1],), offset=0.25), steps=2)
    made = plan.artist(asked, 0, 16, "cpu")
    close(weights_of(made.backbone.denoiser), moved(base, (1, first)))
    close(weights_of(made.other), moved(base, (1, second), (0.75, first)))
    shared = {p.data_ptr() for p in made.backbone.denoiser.parameters()}
    assert sum(p.data_ptr() in shared for p in made.other.parameters()) == len(base), "the weights are there once"


def test_negatives_of_whole_models(models: dict[str, Path]) -> None:
    """Each of theta_npo, theta_pos and theta_base a network of its own."""
    pos, npo, base = (backbones.load(str(models["sd"])) for _ in range(3))
    for seed, one in enumerate((pos, npo)):
        adapters.fuse(one.denoiser, adapter(one, seed))
    states = [weights_of(b.denoiser) for b in (pos, npo, base)]
    wanted = {n: states[1][n] + 0.75 * (states[0][n] - states[2][n]) for n in states[0]}
    close(weights_of(stack.negative(pos, {}, {}, 0.25, npo.denoiser, base.denoiser)), wanted)
    wanted = {n: 0.25 * states[2][n] + 0.75 * states[0][n] for n in states[0]}
    close(weights_of(stack.negative(pos, {}, {}, 0.25, None, base.denoiser)), wanted)
    close(weights_of(stack.negative(pos, {}, {}, 0.25, npo.denoiser, None)), states[1])
    close(weights_of(pos.denoiser), states[0])
    with pytest.raises(InputError, match="of another architecture"):
        stack.negative(pos, {}, {}, 0.0, backbones.load(str(models["sdxl"])).denoiser, None)


def test_a_second_denoiser_is_the_unconditional_branch(load: Callable[[str], Backbone]) -> None:
    """The same denoiser in both branches draws the picture of one; another one is guide(other(""), own(prompt))."""
    backbone = load("sdxl")
    same = artist(backbone, negative=backbone.denoiser).draw(WORK)
    assert np.abs(same.astype(int) - artist(backbone).draw(WORK)).max() <= 1
    other = stack.negative(backbone, {}, adapter(backbone, 5), 0.0, None, None)
    seen: list[int] = []
    other.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    assert not np.array_equal(artist(backbone, negative=other).draw(WORK), same)
    assert seen == [3] * 4
    with pytest.raises(InputError, match="no unconditional branch"):
        artist(backbone, negative=other, guidance=1.0)


def test_odd_plans_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    model = str(models["sd"])
    file = saved(backbones.load(model), 1, tmp_path / "one")
    with pytest.raises(InputError, match=r"lora .*: 'much', expected FILE or FILE=weight"):
        plan.identity(Plan(model, lora=(f"{file}=much",)))
    with pytest.raises(InputError, match="no such adapter file"):
        plan.identity(Plan(model, lora=(f"{tmp_path}/none=0.5",)))
    with pytest.raises(InputError, match="share from 0 to 1"):
        Plan(model, negative=Negative((file,), offset=2.0))
    with pytest.raises(InputError, match="a tuning that offset is a share of"):
        Plan(model, negative=Negative((file,), offset=0.5))
    with pytest.raises(InputError, match=r"adapts a 'unet', but this model's denoiser is its transformer"):
        plan.artist(Plan(str(models["sd3"]), lora=(file,)), 0, 16, "cpu")
    names = {plan.identity(Plan(model, lora=(f"{file}={w}",))).adapter for w in (0.5, 1)}
    assert len(names) == 2


# --- step caches, compiled blocks, memory


@pytest.mark.parametrize("name", ["FirstBlockCache,threshold=9", "TaylorSeerCache,cache_interval=3", "none"])
def test_step_caches_spare_blocks(models: dict[str, Path], name: str) -> None:
    backbone = backbones.load(str(models["qwen_image"]))
    found = artist(backbone, steps=6)
    plain = found.draw(WORK)
    if name != "none":
        found.enable(backbone.denoiser, name)
    calls: list[int] = []
    inner = backbone.denoiser.transformer_blocks[1].attn
    inner.to_q.register_forward_hook(lambda *_: calls.append(1))
    first, again = found.draw(WORK), found.draw(WORK)
    assert np.array_equal(first, again), "nothing of one batch is left for the next"
    assert (len(calls) < 12) == (name != "none")
    assert np.array_equal(first, plain) == (name == "none")


def test_step_caches_where_there_are_none(load: Callable[[str], Backbone]) -> None:
    with pytest.raises(InputError, match="expected one of FasterCache, FirstBlockCache"):
        artist(load("sdxl")).enable(load("sdxl").denoiser, "DeepCache")
    with pytest.raises(InputError, match="no step caches for a UNet2DConditionModel"):
        artist(load("sdxl")).enable(load("sdxl").denoiser, "FirstBlockCache")
    with pytest.raises(InputError, match="step_cache FirstBlockCache: .*much"):
        artist(load("flux")).enable(load("flux").denoiser, "FirstBlockCache,much=1")


@pytest.mark.parametrize("family", ["sdxl", "sd3", "sana", "pixart", "zimage"])
def test_only_the_repeated_blocks_are_compiled(
    models: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    asked = Plan(str(models[family]), steps=2, compile=True)
    denoiser = plan.artist(asked, 0, 16, "cpu").backbone.denoiser
    assert compiled
    assert set(compiled) < {type(m).__name__ for m in denoiser.modules()}
    assert all("Block" in name for name in compiled)


def test_decoding_goes_on_in_smaller_runs_where_memory_is_short(
    load: Callable[[str], Backbone], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backbone, sizes, room = load("sdxl"), [], [2]
    decode = type(backbone).decode_latents

    def narrow(self: Backbone, latents: Tensor) -> Tensor:
        sizes.append(len(latents))
        if len(latents) > room[0]:
            raise torch.OutOfMemoryError("no more")
        return decode(self, latents)

    work = [(p.id, index) for index in range(3) for p in PROMPTS]
    whole = artist(backbone).draw(work)
    monkeypatch.setattr(type(backbone), "decode_latents", narrow)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(artist(backbone).draw(work), whole)
    assert sizes == [9, 4, 2, 2, 2, 3, 1, 1, 1] or max(sizes[2:]) <= 3
    assert "short of memory" in caplog.text
    room[0] = 0
    with pytest.raises(InputError, match="does not fit the device's memory"):
        artist(backbone).draw(WORK)


def test_pictures_that_are_not_numbers_are_refused_by_name(load: Callable[[str], Backbone]) -> None:
    found = artist(load("sdxl"))
    found.noise = lambda prompt, index: torch.full(found.shape, torch.nan if prompt == WORK[1][0] else 0.0)
    with pytest.raises(InputError, match=rf"prompt {WORK[1][0]}, index 0: its latents are not finite"):
        found.draw(WORK)


# --- what the encoder reads


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_what_is_cut_off_changes_nothing_and_what_is_read_does(load: Callable[[str], Backbone], family: str) -> None:
    backbone = load(family)
    assert backbone.unread("a red circle") == ""
    long = " ".join(["a red circle", *["the blue square and"] * 400, "end"])
    cut = backbone.unread(long)
    assert long.endswith(cut)
    assert len(cut) > 100
    read = long[: -len(cut)]
    shown = [backbone.encode_prompts([text, "a red circle"]) for text in (long, read + " photo" * 9, read[:-9])]
    for name, value in shown[0].items():
        if family not in ("sd3", "flux", "flux_schnell") or name != "pooled":
            torch.testing.assert_close(value[0], shown[1][name][0], rtol=0, atol=0)
    assert not all(torch.equal(v[0], shown[2][n][0]) for n, v in shown[0].items())

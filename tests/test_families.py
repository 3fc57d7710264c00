"""What is particular to one family: numbers that only it has, against its own pipeline."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import tiny
import torch

from diffalign import backbones, views
from diffalign.backbones import latents
from diffalign.backbones.base import Backbone, select
from diffalign.diffusion import VP, Flow
from diffalign.objectives import DPO
from diffalign.records import InputError, Prompt, prompt_id
from diffalign.run import AdamW, LoRA, Run
from diffalign.sampling import Artist, Sampler
from diffalign.training import train

PROMPTS = ("a red circle", "the small blue square on the right and a large green circle on the left")


def artist(backbone: Backbone, guidance: float, steps: int = 3) -> Artist:
    found = Artist(backbone, Sampler(steps=steps, guidance=guidance, height=32, width=32), seed=3)
    found.encode([Prompt(prompt_id(p), p) for p in PROMPTS])
    return found


def draw(backbone: Backbone, guidance: float, *cells: tuple[int, int]) -> np.ndarray:
    """Pictures of (number of the prompt, index)."""
    return artist(backbone, guidance).draw([(prompt_id(PROMPTS[p]), i) for p, i in cells])


def changed(folder: Path, out: Path, part: str, **changes: Any) -> Path:
    """A copy of a model folder, some values of one part's configuration changed."""
    shutil.copytree(folder, out)
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    path = out / part / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return out


# --- Sana


def test_sanas_text_is_a_number_in_float64(models: dict[str, Path]) -> None:
    narrow, wide = (backbones.load(str(models["sana"]), dtype=d) for d in (torch.float32, torch.float64))
    for one, two in ((b.encode_prompts(PROMPTS), b.encode_negative()) for b in (narrow, wide)):
        assert one["prompt_embeds"].isfinite().all()
        assert two["prompt_embeds"].isfinite().all()
    found = wide.encode_prompts(PROMPTS)["prompt_embeds"]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), narrow.encode_prompts(PROMPTS)["prompt_embeds"])


# --- SD, SDXL


def test_the_process_is_the_schedulers(models: dict[str, Path]) -> None:
    one, two = (backbones.load(str(models[family])).process for family in ("sd", "sd_v"))
    assert one == VP(network="epsilon", prediction="epsilon")
    assert two == VP(network="v_prediction", prediction="v_prediction")
    scheduler = diffusers.DDIMScheduler.from_pretrained(models["sd"] / "scheduler")
    torch.testing.assert_close(torch.from_numpy(one.bars).float(), scheduler.alphas_cumprod, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "magic"}, "prediction type 'magic': expected"),
        ({"beta_schedule": "exp"}, "beta schedule 'exp'|cannot be loaded"),
        ({"trained_betas": [0.1, 0.2]}, "own betas"),
    ],
)
def test_schedules_that_are_not_known_are_refused(
    models: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        _ = backbones.load(str(changed(models["sd"], tmp_path / "m", "scheduler", **changes))).process.bars
    assert "\n" not in str(error.value)


def test_a_flow_scheduler_on_a_unet_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    pipe = tiny.sd()
    pipe.register_modules(scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    pipe.save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="no beta schedule; expected the scheduler of a variance-preserving process"):
        backbones.load(str(tmp_path / "m"))


def test_schedulers_that_add_noise_name_it_by_the_picture(tmp_path: Path) -> None:
    """SDXL-Turbo's: its noise on the way, too, is a function of (seed, prompt, index), whatever else is drawn."""
    pipe = tiny.sdxl()
    config = dict(pipe.scheduler.config) | {"timestep_spacing": "trailing"}
    pipe.register_modules(scheduler=diffusers.EulerAncestralDiscreteScheduler.from_config(config))
    pipe.save_pretrained(tmp_path / "turbo")
    backbone = backbones.load(str(tmp_path / "turbo"))
    both = draw(backbone, 1.0, (0, 0), (1, 4))
    torch.manual_seed(77)
    turned = draw(backbone, 1.0, (1, 4), (0, 0), (0, 1))
    assert np.array_equal(both, turned[[1, 0]])
    assert not np.array_equal(turned[1], turned[2])
    assert backbone.solver(3, (4, 16, 16)).draws


def test_no_safety_checker_is_loaded(models: dict[str, Path], tmp_path: Path) -> None:
    """It judges pictures and draws none, and real folders name one."""
    folder = tmp_path / "m"
    shutil.copytree(models["sd"], folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert backbones.load(str(folder)).pipe.safety_checker is None


@pytest.mark.parametrize("at", [(0.5, 0.5), (0.2549, 0.0698), (1.0, 1.0)])
@pytest.mark.parametrize("size", [(64, 32), (32, 64), (96, 32), (32, 32)])
def test_sdxl_is_told_of_the_crop_that_is_made(
    models: dict[str, Path], size: tuple[int, int], at: tuple[float, float]
) -> None:
    """A picture whose colours are its coordinates, cut by the data set: its first pixel is the corner."""
    rows, columns = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    picture = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    view = views.View(32, 32, *at)
    pixels = views.pixels(PIL.Image.fromarray(picture), view)
    corner = pixels[:2, 0, 0].tolist()
    backbone = backbones.load(str(models["sdxl"]), encoders=False)
    told = backbone.size_conditioning([size], (32, 32), (view.y, view.x))["time_ids"][0].tolist()
    assert told == [*size, *corner, 32, 32]


def test_sdxl_counts_the_corner_in_the_scaled_picture(models: dict[str, Path]) -> None:
    told = backbones.load(str(models["sdxl"])).size_conditioning([(120, 64), (61, 97)], (32, 32))["time_ids"]
    assert told.tolist() == [[120, 64, 14, 0, 32, 32], [61, 97, 0, 9, 32, 32]]


def test_a_refiner_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(models["sdxl"], folder)
    index = json.loads((folder / "model_index.json").read_text())
    none = {"text_encoder": [None, None], "tokenizer": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index | none))
    with pytest.raises(InputError, match="a refiner.*expected an SDXL base model"):
        backbones.load(str(folder))
    index["_class_name"] = "StableDiffusionXLImg2ImgPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="which draws from a picture .*; expected one of StableDiffusionPipeline"):
        backbones.load(str(folder))


# --- FLUX


def test_flux_dev_is_told_its_guidance_and_needs_no_second_branch(models: dict[str, Path]) -> None:
    backbone = backbones.load(str(models["flux"]))
    assert backbone.guidance_conditioning(2.5)["guidance"].tolist() == [[2.5]]
    assert not backbone.unconditional(4.0)
    assert not np.array_equal(draw(backbone, 1.5, (0, 0)), draw(backbone, 8.0, (0, 0)))
    told = backbone.encode_prompts(PROMPTS)
    x, t = torch.randn(2, *backbone.latent_shape(32, 32)), torch.tensor([300.0, 700.0])
    with torch.no_grad():
        trained = backbone.predict(backbone.denoiser, x, t, told)
        given = backbone.predict(backbone.denoiser, x, t, told | {"guidance": torch.full((2, 1), 3.5)})
    assert torch.equal(trained, given), "in training it is told the pipeline's default"


def test_flux_schnell_is_told_none(models: dict[str, Path]) -> None:
    backbone = backbones.load(str(models["flux_schnell"]))
    assert backbone.guidance_conditioning(3.5) == {}
    assert np.array_equal(draw(backbone, 1.0, (0, 0)), draw(backbone, 8.0, (0, 0)))


def test_packing_is_the_pipelines_and_is_undone() -> None:
    x = torch.arange(2 * 4 * 6 * 8, dtype=torch.float32).view(2, 4, 6, 8)
    theirs = diffusers.FluxPipeline._pack_latents(x, 2, 4, 6, 8)
    assert torch.equal(latents.pack(x), theirs)
    assert torch.equal(latents.unpack(theirs, 6, 8), x)


def test_flux2_latents_are_normalised_patches(models: dict[str, Path]) -> None:
    """Against the pipeline's own encoding of a picture that is its input."""
    backbone = backbones.load(str(models["flux2_klein"]))
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        theirs = backbone.pipe._encode_vae_image(pixels, None)
    assert torch.equal(backbone.encode_images(pixels), theirs)
    assert tuple(theirs.shape[1:]) == backbone.latent_shape(32, 32)


def test_a_distilled_klein_has_no_unconditional_branch(models: dict[str, Path], tmp_path: Path) -> None:
    tiny.flux2_klein(distilled=True).save_pretrained(tmp_path / "m")
    distilled, base = backbones.load(str(tmp_path / "m")), backbones.load(str(models["flux2_klein"]))
    assert (distilled.unconditional(4.0), base.unconditional(4.0), base.unconditional(1.0)) == (False, True, False)


# --- PixArt, Sana


def test_pixart_leaves_the_learned_variance_out(models: dict[str, Path]) -> None:
    backbone = backbones.load(str(models["pixart"]))
    assert backbone.denoiser.config.out_channels == 2 * backbone.denoiser.config.in_channels
    told = backbone.encode_prompts(PROMPTS)
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([300, 700])
    with torch.no_grad():
        before = backbone.predict(backbone.denoiser, x, t, told)
        variance = backbone.denoiser.proj_out.weight.view(2, 2, 8, -1)[:, :, 4:]
        variance += 1.0
        assert torch.equal(backbone.predict(backbone.denoiser, x, t, told), before)
    assert before.shape == x.shape


def test_pixart_alpha_is_told_of_the_size_that_it_draws(models: dict[str, Path]) -> None:
    told = backbones.load(str(models["pixart_alpha"])).size_conditioning([(40, 50), (7, 9)], (64, 32))
    assert told["resolution"].tolist() == [[64, 32]] * 2
    assert told["aspect_ratio"].tolist() == [[2.0]] * 2
    assert backbones.load(str(models["pixart"])).size_conditioning([(40, 50)], (64, 32)) == {}


@pytest.mark.parametrize("family", ["pixart", "sana", "qwen_image"])
def test_what_a_mask_hides_is_not_seen(models: dict[str, Path], family: str) -> None:
    """And masks that come back from disk as floating-point numbers say the same."""
    backbone = backbones.load(str(models[family]))
    told = backbone.encode_prompts(PROMPTS)
    x, t = torch.randn(2, *backbone.latent_shape(64, 64)), torch.tensor([300, 700])
    with torch.no_grad():
        seen = backbone.predict(backbone.denoiser, x, t, told)
        hidden = told["prompt_embeds"] + 100 * (1 - told["mask"])[:, :, None]
        for other in ({"prompt_embeds": hidden}, {"mask": told["mask"].float()}):
            torch.testing.assert_close(backbone.predict(backbone.denoiser, x, t, told | other), seen, rtol=0, atol=1e-5)
        blind = told | {"prompt_embeds": told["prompt_embeds"] + 100 * told["mask"][:, :, None]}
        assert (backbone.predict(backbone.denoiser, x, t, blind) - seen).abs().max() > 1e-3


def test_sana_puts_its_instruction_before_prompts_alone(models: dict[str, Path]) -> None:
    backbone = backbones.load(str(models["sana"]))
    assert backbone.instruction[0].startswith("Given a user prompt")
    empty = backbone.encode_prompts([""])["prompt_embeds"]
    assert not torch.equal(empty, backbone.encode_negative()["prompt_embeds"])


def test_sana_reads_its_flow_from_either_scheduler(models: dict[str, Path], tmp_path: Path) -> None:
    """The published models carry a multistep solver with flow sigmas."""
    pipe = tiny.sana()
    solver = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    pipe.register_modules(scheduler=diffusers.DPMSolverMultistepScheduler(**solver))
    pipe.save_pretrained(tmp_path / "m")
    backbone = backbones.load(str(tmp_path / "m"))
    assert backbone.process == Flow(scale=1000.0)
    assert draw(backbone, 4.0, (0, 0)).std() > 1
    wrong = changed(tmp_path / "m", tmp_path / "w", "scheduler", prediction_type="epsilon", use_flow_sigmas=False)
    with pytest.raises(InputError, match="prediction type 'epsilon'; expected flow_prediction"):
        backbones.load(str(wrong))


# --- Qwen-Image, Z-Image


@pytest.mark.parametrize("family", ["qwen_image", "zimage"])
def test_padding_is_undone(models: dict[str, Path], family: str) -> None:
    """Conditioning lies on disk in rows of one length; a short prompt is computed as if it were alone."""
    backbone = backbones.load(str(models[family]))
    both = backbone.encode_prompts(PROMPTS)
    alone = backbone.encode_prompts(PROMPTS[:1])
    assert both["prompt_embeds"].shape[1] == both["mask"].shape[1] == backbone.tokens == 512
    assert both["mask"].sum(1).tolist()[0] == alone["mask"].sum().item() < both["mask"].sum(1).tolist()[1]
    x, t = torch.randn(2, *backbone.latent_shape(32, 32)), torch.tensor([300.0, 700.0])
    seen = []
    handle = backbone.denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[2] if args else [kwargs["encoder_hidden_states"]]), with_kwargs=True
    )
    with torch.no_grad():
        first = backbone.predict(backbone.denoiser, x, t, both)[:1]
        lonely = backbone.predict(backbone.denoiser, x[:1], t[:1], select(both, torch.tensor([0])))
    handle.remove()
    torch.testing.assert_close(first, lonely, rtol=0, atol=1e-5)
    lengths = [max(rows.shape[-2] for rows in call) for call in seen]
    assert lengths == [both["mask"].sum(1).max(), alone["mask"].sum()]


def test_qwen_guidance_keeps_the_length_of_each_patch(models: dict[str, Path]) -> None:
    backbone = backbones.load(str(models["qwen_image"]))
    without, given = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    guided = backbone.guide(without, given, 4.0)
    torch.testing.assert_close(latents.pack(guided).norm(dim=-1), latents.pack(given).norm(dim=-1))
    direction = latents.pack(without + 4.0 * (given - without))
    cosine = torch.nn.functional.cosine_similarity(latents.pack(guided), direction, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_zimage_counts_guidance_from_the_conditional_branch(models: dict[str, Path]) -> None:
    backbone = backbones.load(str(models["zimage"]))
    assert [backbone.unconditional(scale) for scale in (0.0, 0.5, 1.0)] == [False, True, True]
    without, given = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(backbone.guide(without, given, 1.0), 2 * given - without)


# --- training


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_trains(models: dict[str, Path], pairs: Path, tmp_path: Path, family: str) -> None:
    """Two steps by LoRA, conditioning read from disk: at first policy and reference are one, then they are not."""
    run = Run(
        str(models[family]),
        DPO(beta=100.0),
        policy=LoRA(rank=2, alpha=2.0),
        data=str(pairs),
        out=str(tmp_path / "run"),
        steps=2,
        batch=2,
        resolution=32,
        optimizer=AdamW(lr=1e-2),
        caption_dropout=0.5,
        log_every=1,
    )
    train(run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert lines[0]["gradient_norm"] > 0
    assert lines[1]["loss"] != lines[0]["loss"]
    backbone = backbones.load(str(models[family]))
    backbone.load_lora(tmp_path / "run" / "policy" / "pytorch_lora_weights.safetensors")

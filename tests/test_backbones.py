"""What every model family owes: to call its denoiser as its own pipeline does, and nothing beyond that.

The oracle is the pipeline itself: its denoiser's forward is recorded while it draws a picture, and so is ours.
"""

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from torch import Tensor, nn

from diffalign import backbones, weights
from diffalign.backbones import latents
from diffalign.backbones.base import Backbone, errors, residuals, select
from diffalign.policy import Policy
from diffalign.records import InputError, Prompt, prompt_id
from diffalign.run import Full
from diffalign.sampling import Artist, Sampler

PROMPTS = ("a red circle", "the small blue square on the right and a large green circle on the left")
FOUR = (*PROMPTS, "green", "a large red square")
SIZE = 32
TALL = (64, 32)  # height and width are told apart
GUIDANCE = 4.0
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)

# how a family's pipeline wants the noise that we draw as (images, channels, height, width)
AS_TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    "flux": latents.pack,
    "flux_schnell": latents.pack,
    "qwen_image": latents.pack,
}


@pytest.fixture(scope="module")
def loaded(models: dict[str, Path]) -> dict[str, Backbone]:
    """Every family, loaded once; tests leave them as they are."""
    return {family: backbones.load(str(folder)) for family, folder in models.items()}


@pytest.fixture(scope="module")
def told(loaded: dict[str, Backbone]) -> dict[str, dict[str, Tensor]]:
    """What each family's denoiser is told of FOUR; the first two are PROMPTS."""
    return {family: conditioning(backbone, FOUR) for family, backbone in loaded.items()}


def conditioning(backbone: Backbone, prompts: tuple[str, ...] = PROMPTS) -> dict[str, Tensor]:
    known = backbone.encode_prompts(prompts)
    return known | backbone.size_conditioning([(SIZE, SIZE)] * len(prompts), (SIZE, SIZE))


def first(told: dict[str, Tensor], rows: int = 2) -> dict[str, Tensor]:
    return {name: value[:rows] for name, value in told.items()}


def drawn(backbone: Backbone, images: int, size: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """(x0, noise, time) of some images."""
    torch.manual_seed(1)
    shape = (images, *backbone.latent_shape(size, size))
    t = backbone.process.time(torch.linspace(0.2, 0.9, images, dtype=torch.float64))
    return torch.randn(shape), torch.randn(shape), t


@contextmanager
def recorded(denoiser: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """What the denoiser is told and says while this is open, one entry a call, by the names of its parameters."""
    calls: list[dict[str, Any]] = []
    original = denoiser.forward
    signature = inspect.signature(original)

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        told = signature.bind(*args, **kwargs).arguments
        calls.append({**told, "says": out[0]})
        return out

    denoiser.forward = forward
    try:
        yield calls
    finally:
        del denoiser.forward


def flat(name: str, value: Any, rows: int) -> dict[str, Tensor]:
    """A call's argument as named tensors with one row an image, without what only shapes the answer."""
    if value is None or name in ("return_dict", "joint_attention_kwargs", "cross_attention_kwargs", "attention_kwargs"):
        return {}
    if isinstance(value, dict):
        return {k: v for n, inner in value.items() for k, v in flat(f"{name}.{n}", inner, rows).items()}
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return {f"{name}[{i}]": v for i, v in enumerate(value)}
    if isinstance(value, Tensor):
        value = value.double()
        return {name: value.expand(rows) if value.ndim == 0 else value}
    return {name: torch.tensor(np.asarray(value))}


def listed(call: dict[str, Any]) -> dict[str, Tensor]:
    says = call["says"]
    if isinstance(says, list) and len(says) > 2:  # lists of images: this pipeline has the conditional branch in front
        half = len(says) // 2
        first = min(range(len(says)), key=lambda i: len(call["cap_feats"][i]))
        turn = half if first < half else 0
        call = {k: v[turn:] + v[:turn] if isinstance(v, list) else v for k, v in call.items()}
    return {k: v for n, value in call.items() for k, v in flat(n, value, len(says)).items()}


def artist(backbone: Backbone, guidance: float = GUIDANCE) -> Artist:
    found = Artist(backbone, Sampler(steps=2, guidance=guidance, height=TALL[0], width=TALL[1]), seed=3)
    found.encode([Prompt(prompt_id(p), p) for p in PROMPTS])
    return found


def pipeline_picture(family: str, backbone: Backbone, noise: Tensor, guidance: float) -> np.ndarray:
    """The picture of the family's own pipeline from this noise."""
    pipe = backbone.pipeline(backbone.denoiser)
    pipe.set_progress_bar_config(disable=True)
    known = inspect.signature(type(pipe).__call__).parameters
    options = {"true_cfg_scale": guidance, "negative_prompt": [" "] * 2} if family == "qwen_image" else {}
    options = options or {"guidance_scale": guidance}
    for name in ("use_resolution_binning", "clean_caption"):
        options |= {name: False} if name in known else {}
    start = AS_TOKENS.get(family, lambda x: x)(noise)
    if isinstance(backbone, backbones.SD3):
        options["max_sequence_length"] = backbone.max_sequence_length
    height, width = TALL
    out = pipe(
        prompt=list(PROMPTS), height=height, width=width, num_inference_steps=2, latents=start, output_type="np",
        **options,
    )  # fmt: skip
    return (out.images * 255).round().astype(np.uint8)


# --- against the family's own pipeline


@every_family
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
def test_draws_the_pipelines_picture(loaded: dict[str, Backbone], family: str, guided: bool) -> None:
    backbone = loaded[family]
    guidance = GUIDANCE if guided else 0.0 if family == "zimage" else 1.0
    ours = artist(backbone, guidance)
    noise = torch.stack([ours.noise(prompt_id(p), 0) for p in PROMPTS])
    with recorded(backbone.denoiser) as here:
        picture = ours.draw([(prompt_id(p), 0) for p in PROMPTS])
    with recorded(backbone.denoiser) as there:
        expected = pipeline_picture(family, backbone, noise, guidance)
    assert len(here) == 2
    assert len(there) in (len(here), 2 * len(here)), "at most, a pipeline asks for each branch by itself"
    if len(there) == len(here):
        for a, b in zip(map(listed, here), map(listed, there), strict=True):
            assert a.keys() == b.keys()
            for name in a:
                # we encode the empty prompt once, the pipeline in a batch: that differs in the last bits
                torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    # for the same reason a value that lies at a half may fall either way
    apart = np.abs(picture.astype(int) - expected)
    assert apart.max() <= guided
    assert (apart > 0).mean() < 1e-3
    assert picture.std() > 1


def own_encoding(family: str, pipe: Any, prompts: list[str]) -> list[Tensor]:
    """The prompt encoding that the family's `__call__` makes, one tensor a thing that the denoiser is told."""
    match family:
        case "sd" | "sd_v":
            return [pipe.encode_prompt(prompts, "cpu", 1, False)[0]]
        case "sdxl" | "sd3":
            known = {} if family == "sdxl" else {"prompt_2": None, "prompt_3": None}
            found = pipe.encode_prompt(prompts, **known, do_classifier_free_guidance=False)
            return [found[0], found[2]]
        case "flux" | "flux_schnell":
            return list(pipe.encode_prompt(prompts, None)[:2])
        case "pixart" | "pixart_alpha":
            length = inspect.signature(type(pipe).__call__).parameters["max_sequence_length"].default
            return list(pipe.encode_prompt(prompts, False, max_sequence_length=length)[:2])
        case "sana":
            instruction = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
            return list(pipe.encode_prompt(prompts, False, complex_human_instruction=instruction)[:2])
        case "qwen_image" | "flux2_klein":
            return [v for v in pipe.encode_prompt(prompts)[:2] if family == "qwen_image" or v.ndim == 3][:2]
        case "zimage":
            return list(pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)[0])
    raise AssertionError(f"{family}: say here how its pipeline encodes prompts")


@every_family
def test_prompts_are_encoded_as_the_pipeline_does(loaded: dict[str, Backbone], family: str) -> None:
    backbone = loaded[family]
    ours = backbone.encode_prompts(PROMPTS)
    with torch.no_grad():
        theirs = own_encoding(family, backbone.pipe, list(PROMPTS))
    assert all(len(v) == len(PROMPTS) for v in ours.values())
    if family == "zimage":  # a list of rows of unequal length there, padded rows and a mask here
        rows = [r[m.bool()] for r, m in zip(ours["prompt_embeds"], ours["mask"], strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(rows, theirs, strict=True))
        return
    if family == "qwen_image":  # the longest prompt of the batch there, of all batches here
        theirs[1] = theirs[1] if theirs[1] is not None else torch.ones(theirs[0].shape[:2])
        assert torch.equal(ours["mask"].sum(1), theirs[1].sum(1).long())
        width = theirs[0].shape[1]
        assert torch.equal(ours["prompt_embeds"][:, :width] * theirs[1][..., None], theirs[0] * theirs[1][..., None])
        return
    for a, b in zip(ours.values(), theirs, strict=False):
        assert torch.equal(a, b)


@every_family
def test_unconditional_branch_is_one_row_of_the_same_things(loaded: dict[str, Backbone], family: str) -> None:
    backbone = loaded[family]
    ours, negative = backbone.encode_prompts(PROMPTS), backbone.encode_negative()
    assert {k: (1, *v.shape[1:]) for k, v in ours.items()} == {k: tuple(v.shape) for k, v in negative.items()}
    assert all(torch.equal(v, backbone.encode_negative()[k]) for k, v in negative.items())
    assert not all(torch.equal(v[:1], negative[k]) for k, v in ours.items())


def test_the_empty_prompt_of_sdxl_is_zeros_where_its_pipeline_says_so(loaded: dict[str, Backbone]) -> None:
    backbone = loaded["sdxl"]
    assert backbone.pipe.config.force_zeros_for_empty_prompt
    assert not any(v.any() for v in backbone.encode_negative().values())


def test_the_empty_prompt_of_sdxl_is_encoded_where_its_pipeline_says_so(
    models: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(models["sdxl"], tmp_path / "model")
    edit(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    backbone = backbones.load(str(folder))
    negative, empty = backbone.encode_negative(), backbone.encode_prompts([""])
    assert all(torch.equal(v, empty[k]) and v.any() for k, v in negative.items())


@every_family
def test_says_whether_its_pipeline_loads_adapters(loaded: dict[str, Backbone], family: str) -> None:
    assert loaded[family].loads_adapters == callable(getattr(loaded[family].pipe, "load_lora_weights", None))


# --- errors


class Oracle(nn.Module):
    """A denoiser that says what the family's convention makes of `answer` for the images that it is shown."""

    def __init__(self, backbone: Backbone, answer: Tensor) -> None:
        super().__init__()
        self.backbone, self.answer = backbone, answer

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any]:
        family = self.backbone.family
        if family in ("flux", "qwen-image"):
            return (latents.pack(self.answer),)
        if family == "flux2-klein":
            return (self.answer.flatten(2).permute(0, 2, 1),)
        if family == "z-image":
            return ([-row[:, None] for row in self.answer],)
        if family == "pixart":  # a learned variance that nobody reads
            return (torch.cat([self.answer, torch.full_like(self.answer, 7.0)], 1),)
        return (self.answer,)


@every_family
def test_a_denoiser_that_returns_the_target_has_error_zero(
    loaded: dict[str, Backbone], told: dict[str, dict[str, Tensor]], family: str
) -> None:
    backbone = loaded[family]
    x0, eps, t = drawn(backbone, 2)
    noised = backbone.process.noise(x0, eps, t)
    right = Oracle(backbone, noised.target)
    assert torch.equal(errors(backbone, right, noised, first(told[family])), torch.zeros(2))
    slip = torch.randn(x0.shape)
    wrong = Oracle(backbone, noised.target + slip)
    expected = (noised.target + slip - noised.target).square().flatten(1).mean(1)
    assert torch.equal(errors(backbone, wrong, noised, first(told[family])), expected)


@every_family
def test_images_of_a_batch_do_not_touch_each_other(
    loaded: dict[str, Backbone], told: dict[str, dict[str, Tensor]], family: str
) -> None:
    backbone = loaded[family]
    known = told[family]
    x0, eps, t = drawn(backbone, 4)
    noised, order = backbone.process.noise(x0, eps, t), torch.tensor([2, 0, 3, 1])
    moved = backbone.process.noise(x0[order], eps[order], t[order])
    with torch.no_grad():
        straight = residuals(backbone, backbone.denoiser, noised, known)
        shuffled = residuals(backbone, backbone.denoiser, moved, select(known, order))
        changed = {k: v.clone() for k, v in known.items()}
        for name, value in changed.items():
            value[3] = value[0] if name in ("mask", "prompt_embeds") else value[3] + 1
        other = residuals(backbone, backbone.denoiser, noised, changed)
        alone = backbone.process.noise(x0[:1], eps[:1], t[:1])
        lonely = residuals(backbone, backbone.denoiser, alone, select(known, torch.tensor([0])))
    torch.testing.assert_close(lonely, straight[:1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shuffled, straight[order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other[:3], straight[:3], rtol=1e-5, atol=1e-5)
    assert (other[3] - straight[3]).abs().max() > 1e-5, "the denoiser listens to its prompt"


@every_family
def test_every_image_and_its_time_are_listened_to(
    loaded: dict[str, Backbone], told: dict[str, dict[str, Tensor]], family: str
) -> None:
    backbone = loaded[family]
    known = first(told[family])
    x0, eps, t = drawn(backbone, 2)
    noised = backbone.process.noise(x0, eps, t)
    with torch.no_grad():
        time = backbone.process.model_time(t)
        said = backbone.predict(backbone.denoiser, noised.x_t, time, known)
        later = backbone.predict(backbone.denoiser, noised.x_t, time.roll(1), known)
    assert said.shape == x0.shape
    assert (said - later).flatten(1).abs().max(1).values.min() > 1e-6


@every_family
def test_full_training_moves_what_a_gradient_reaches(
    models: dict[str, Path], told: dict[str, dict[str, Tensor]], family: str
) -> None:
    backbone = backbones.load(str(models[family]), encoders=False)
    policy = Policy(backbone, Full(), 0, reference=None)
    assert all(p.requires_grad for p in policy.parameters.values())
    backbone.denoiser.requires_grad_(True)  # the idle ones too: they must be idle
    x0, eps, t = drawn(backbone, 2)
    errors(backbone, backbone.denoiser, backbone.process.noise(x0, eps, t), first(told[family])).sum().backward()
    reached = {n for n, p in backbone.denoiser.named_parameters() if p.grad is not None}
    assert reached == set(policy.parameters)
    assert {n for n, _ in backbone.denoiser.named_parameters()} - reached == set(policy.idle)


def test_errors_are_wide_where_the_network_is_narrow(loaded: dict[str, Backbone]) -> None:
    backbone = loaded["sdxl"]
    x0, eps, t = drawn(backbone, 2)
    noised = backbone.process.noise(x0, eps, t)
    narrow = Oracle(backbone, noised.target.bfloat16())
    assert errors(backbone, narrow, noised, conditioning(backbone)).dtype == torch.float32


def test_float64_throughout(models: dict[str, Path]) -> None:
    for family in ("sdxl", "sd3"):
        backbone = backbones.load(str(models[family]), dtype=torch.float64)
        x0, eps, t = drawn(backbone, 2)
        noised = backbone.process.noise(x0.double(), eps.double(), t)
        with torch.no_grad():
            assert errors(backbone, backbone.denoiser, noised, conditioning(backbone)).dtype == torch.float64
        assert backbone.encode_images(torch.zeros(1, 3, SIZE, SIZE).double()).dtype == torch.float64


# --- latents


@every_family
def test_latents_and_pixels(loaded: dict[str, Backbone], family: str) -> None:
    """What is encoded has the announced shape, is the posterior's mean, and decoding undoes scale and shift."""
    backbone = loaded[family]
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, SIZE, 2 * SIZE) * 2 - 1
    found = backbone.encode_images(pixels)
    assert tuple(found.shape[1:]) == backbone.latent_shape(SIZE, 2 * SIZE)
    assert torch.equal(found, backbone.encode_images(pixels)), "no draw from the posterior"
    decoded = backbone.decode_latents(found)
    assert decoded.shape == pixels.shape
    inner: list[Tensor] = []
    vae = backbone.pipe.vae
    original = vae.decode
    vae.decode = lambda z, *args, **kwargs: inner.append(z) or original(z, *args, **kwargs)
    try:
        backbone.decode_latents(found)
    finally:
        del vae.decode
    with torch.no_grad():
        frames = pixels[:, :, None] if family == "qwen_image" else pixels
        encoded = vae.encode(frames)
        raw = encoded.latent if family == "sana" else encoded.latent_dist.mode()
    torch.testing.assert_close(inner[0], raw, rtol=1e-5, atol=1e-6)


@every_family
def test_sizes_that_the_model_cannot_draw_are_refused(loaded: dict[str, Backbone], family: str) -> None:
    backbone = loaded[family]
    channels, height, width = backbone.latent_shape(SIZE, SIZE)
    assert (channels > 0, height) == (True, width)
    for size in ((SIZE + 1, SIZE), (SIZE, 0), (-SIZE, SIZE)):
        with pytest.raises(InputError, match=rf"size {size[0]}x{size[1]}: this model draws multiples of \d+ pixels"):
            backbone.latent_shape(*size)
    assert backbone.latent_shape(backbone.native_size(), backbone.native_size())


def test_sdxl_is_told_of_sizes(loaded: dict[str, Backbone]) -> None:
    """Original size, corner of the crop after fitting, target size: in the order of the pipeline."""
    backbone = loaded["sdxl"]
    ours = backbone.size_conditioning([(32, 32), (64, 96), (96, 64), (48, 64)], (32, 32))["time_ids"]
    corners = [(0, 0), (0, 8), (8, 0), (0, 5)]
    expected = [
        backbone.pipe._get_add_time_ids(size, corner, (32, 32), torch.float32, text_encoder_projection_dim=32)
        for size, corner in zip(((32, 32), (64, 96), (96, 64), (48, 64)), corners, strict=True)
    ]
    assert torch.equal(ours, torch.cat(expected))


# --- loading


@pytest.fixture
def copy(models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny SDXL that a test may spoil."""
    return Path(shutil.copytree(models["sdxl"], tmp_path / "model"))


def refused(model: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        backbones.load(str(model))
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)
    return str(caught.value)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_folder_without_an_index_is_refused(copy: Path) -> None:
    (copy / "model_index.json").unlink()
    assert "model_index.json" in refused(copy)


@pytest.mark.parametrize("name", ["model.ckpt", "diffusion_pytorch_model.bin", "model.pt"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert "is a pickle" in refused(tmp_path / name)


def test_a_component_that_is_only_there_as_a_pickle_is_refused(copy: Path) -> None:
    whole = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(whole), copy / "unet" / "diffusion_pytorch_model.bin")
    whole.unlink()
    assert "diffusion_pytorch_model.bin: is a pickle" in refused(copy)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder_2"])
def test_truncated_weights_are_refused(copy: Path, part: str) -> None:
    file = next((copy / part).glob("*.safetensors"))
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    assert str(file) in refused(copy)
    file.unlink()
    assert part in refused(copy)


def test_an_unknown_pipeline_is_refused_by_name(copy: Path) -> None:
    edit(copy / "model_index.json", _class_name="KandinskyPipeline")
    assert "is a KandinskyPipeline; expected one of StableDiffusionPipeline, " in refused(copy)
    (copy / "model_index.json").write_text("{")
    assert "cannot be read" in refused(copy)
    (copy / "model_index.json").write_text("{}")
    assert "field _class_name is missing" in refused(copy)


def test_a_scheduler_that_we_do_not_know_is_refused(copy: Path) -> None:
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type="rectified")
    assert "prediction type 'rectified'" in _scheduler_message(copy)
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type="epsilon", beta_schedule="exponential")
    assert "exponential" in _scheduler_message(copy)


def _scheduler_message(model: Path) -> str:
    with pytest.raises(InputError) as caught:
        backbones.load(str(model))
    return str(caught.value)


def test_what_is_nowhere_is_refused(tmp_path: Path) -> None:
    assert "no such model" in refused(tmp_path / "nowhere")


def test_loaded_weights_are_frozen_ours_and_at_rest(loaded: dict[str, Backbone]) -> None:
    for backbone in loaded.values():
        modules = [m for m in backbone.pipe.components.values() if isinstance(m, nn.Module)]
        assert not any(p.requires_grad for m in modules for p in m.parameters())
        assert not any(m.training for m in modules)


def test_weights_read_from_disk_compute_what_those_in_memory_do(models: dict[str, Path]) -> None:
    for family in ("sdxl", "sd3"):
        folder = models[family]
        backbone = backbones.load(str(folder))
        made = getattr(tiny.FAMILIES[family](), backbone.part).eval()
        x0, eps, t = drawn(backbone, 2)
        noised, known = backbone.process.noise(x0, eps, t), conditioning(backbone)
        with torch.no_grad():
            read = residuals(backbone, backbone.denoiser, noised, known)
            assert torch.equal(read, residuals(backbone, weights.settle(made), noised, known))


def test_fingerprint_is_of_the_content_alone(copy: Path, models: dict[str, Path]) -> None:
    before = weights.fingerprint(models["sdxl"])
    assert weights.fingerprint(copy) == before
    edit(copy / "scheduler" / "scheduler_config.json", steps_offset=0)
    assert weights.fingerprint(copy) != before


# --- adapters


def adapter(backbone: Backbone, folder: Path) -> Path:
    """A LoRA file that moves the values of every attention."""
    layers = {}
    for name, layer in backbone.denoiser.named_modules():
        if name.endswith("to_v"):
            layers[f"{name}.lora_A.weight"] = torch.eye(2, layer.in_features)
            layers[f"{name}.lora_B.weight"] = torch.ones(layer.out_features, 2)
    safetensors.torch.save_file({f"{backbone.part}.{k}": v for k, v in layers.items()}, folder / "lora.safetensors")
    return folder / "lora.safetensors"


@every_family
def test_adapters_are_put_on_the_denoiser(models: dict[str, Path], tmp_path: Path, family: str) -> None:
    backbone = backbones.load(str(models[family]))
    x0, eps, t = drawn(backbone, 2)
    noised, known = backbone.process.noise(x0, eps, t), first_known(backbone)
    with torch.no_grad():
        before = residuals(backbone, backbone.denoiser, noised, known)
        backbone.load_lora(adapter(backbone, tmp_path))
        after = residuals(backbone, backbone.denoiser, noised, known)
    assert (before - after).abs().max() > 1e-6


def first_known(backbone: Backbone) -> dict[str, Tensor]:
    """A made-up conditioning of the right shapes: one short prompt, twice."""
    known = backbone.encode_negative() | backbone.size_conditioning([(SIZE, SIZE)], (SIZE, SIZE))
    return {name: value.expand(2, *value.shape[1:]) for name, value in known.items()}


def test_adapters_of_another_family_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    file = adapter(backbones.load(str(models["sd3"])), tmp_path)
    backbone = backbones.load(str(models["sdxl"]))
    with pytest.raises(InputError, match="adapts a 'transformer', but this model's denoiser is its unet"):
        backbone.load_lora(file)
    other = backbones.load(str(models["flux"]))
    with pytest.raises(InputError, match="it is of another model"):
        other.load_lora(file)


def test_damaged_adapters_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    backbone = backbones.load(str(models["sdxl"]))
    file = adapter(backbone, tmp_path)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"lora.safetensors: "):
        backbone.load_lora(file)
    safetensors.torch.save_file({}, file)
    with pytest.raises(InputError, match=r"lora.safetensors: "):
        backbone.load_lora(file)

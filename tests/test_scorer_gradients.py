"""Scores with a gradient: the value is the exact mode's, the gradient that of finite differences."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tiny_scorers
import tiny_vlm
import torch
import worlds

from diffalign import scorers
from diffalign.places import asset
from diffalign.records import InputError
from diffalign.scorers import Scorer, hpsv3, pixels

NAMES = ("pickscore", "clipscore", "hpsv2", "hpsv2_aliased", "imagereward", "aesthetic", "aesthetic_v2.5", "icthp",
         "mps", "shapes_clip", "trained")  # fmt: skip
TEXTS = ["a red circle", "the blue square", "a house"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_scorers.all_places(tmp_path_factory.mktemp("scorers")) | {"shapes_clip": "shapes_clip"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[PIL.Image.Image]:
    place = tmp_path_factory.mktemp("pictures")
    for n in range(3):
        (place / f"{n}.png").write_bytes(worlds.png(n, (37, 48)))
    return [PIL.Image.open(place / f"{n}.png").convert("RGB") for n in range(3)]


def tensors(images: list[PIL.Image.Image]) -> torch.Tensor:
    return torch.stack([pixels.unit(image) for image in images])


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient(name: str, places: dict[str, str], pictures: list[PIL.Image.Image]) -> None:
    judge, x = scorers.load(places[name]), tensors(pictures)
    exact = judge(pictures, TEXTS)
    given = x.clone().requires_grad_()
    value = judge.differentiable(given, TEXTS)
    np.testing.assert_allclose(value.detach().numpy(), exact, rtol=1e-5, atol=1e-5)
    near = judge.differentiable((x + 0.4 / 255).clamp(0, 1), TEXTS).detach().numpy()
    np.testing.assert_allclose(near, exact, rtol=1e-5, atol=1e-5, err_msg="pixels are rounded to 8 bits")
    (uphill,) = torch.autograd.grad(value.sum(), given)
    step = (x + 4 / 255 * uphill.sign()).clamp(0, 1)
    assert (judge.differentiable(step, TEXTS).detach().numpy() > exact).all(), "uphill is better in the exact mode"

    function, wide = judge.function, x.double().requires_grad_()
    function.cast(torch.float64)
    forget(function)
    (slope,) = torch.autograd.grad(judge.differentiable(wide, TEXTS).sum(), wide)
    there = pixels.through(function.preprocess, wide).detach()

    def along(amount: float) -> torch.Tensor:
        """The score where the smooth pixels have moved that far from the exact ones."""
        moved = [function.preprocess.smooth(a) - function.preprocess.smooth(b) for a, b in
                 zip(wide.detach() + amount * way, wide.detach(), strict=True)]  # fmt: skip
        with torch.no_grad():
            return function.weigh(function.see(there + torch.stack(moved)), TEXTS).double()

    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # so short a way, because the embedded CLIP has kinks
    wanted = (along(1e-7) - along(-1e-7)) / 2e-7
    found = (slope * way).flatten(1).sum(1)
    assert float(found.abs().min()) > 1e-6
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def forget(value: object) -> None:
    """Texts read in float32 are read again."""
    for part in vars(value).values():
        if type(part).__name__ == "Remembered":
            part.clear()
        elif type(part).__name__ == "Towers":
            forget(part)
        elif isinstance(part, list):
            for one in part:
                forget(one)


def test_prompts_have_no_gradient_and_weights_none(places: dict[str, str], pictures: list[PIL.Image.Image]) -> None:
    judge = scorers.load(places["imagereward"])
    given = tensors(pictures).requires_grad_()
    judge.differentiable(given, TEXTS).sum().backward()
    assert given.grad is not None
    assert all(p.grad is None for tower in judge.function.towers for p in tower.parameters())


@pytest.mark.parametrize(
    "resize",
    [
        pixels.Cropped(24, True),
        pixels.Cropped(24, False),
        pixels.Squashed(24),
        pixels.Padded(24, True),
        pixels.Squashed(24, bilinear=True),
    ],
)
def test_smooth_pixels_miss_only_the_rounding(resize: pixels.Preprocess, pictures: list[PIL.Image.Image]) -> None:
    for image in pictures:
        exact, smooth = resize(image), resize.smooth(pixels.unit(image))
        # one 8-bit level, in units of the smallest deviation
        assert float((exact - smooth).abs().max()) < 1.1 / 255 / 0.26
    x = tensors(pictures)
    assert torch.equal(pixels.through(resize, x), torch.stack([resize(image) for image in pictures]))


# --- judges that are vision-language models


@pytest.fixture(scope="module")
def vlms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("vlms")
    file, base, _, _ = tiny_vlm.hpsv3(place / "hpsv3")
    return {"hpsv3": f"hpsv3={file},{base}", "vqascore": f"vqascore={tiny_vlm.folder(place / 'vlm', loud=8.0)}"}


@pytest.fixture(params=["hpsv3", "vqascore"])
def vlm(request: pytest.FixtureRequest, vlms: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Scorer:
    monkeypatch.setattr(hpsv3, "PIXELS", 9 * 64)
    return scorers.load(vlms[request.param])


def test_vlms_value_is_the_exact_modes_and_uphill_is_better(vlm: Scorer, pictures: list[PIL.Image.Image]) -> None:
    exact, x = vlm(pictures, TEXTS), tensors(pictures)
    given = x.clone().requires_grad_()
    value = vlm.differentiable(given, TEXTS)
    close = {"rtol": 1e-5, "atol": 1e-7}
    np.testing.assert_allclose(value.detach().numpy(), exact, **close)
    near = vlm.differentiable((x + 0.4 / 255).clamp(0, 1), TEXTS).detach().numpy()
    np.testing.assert_allclose(near, exact, **close, err_msg="pixels are rounded to 8 bits")
    (uphill,) = torch.autograd.grad(value.sum(), given)
    stepped = (x + 4 / 255 * uphill.sign()).clamp(0, 1)
    assert (vlm([pixels.rounded(one) for one in stepped], TEXTS) > exact).all(), "uphill is better in the exact mode"
    assert all(float(one.abs().max()) > 0 for one in uphill)
    singles = [vlm.differentiable(x[n : n + 1], TEXTS[n : n + 1]).item() for n in range(3)]
    np.testing.assert_allclose(singles, exact, **close)


def test_vlms_gradient_is_that_of_pixels_which_miss_only_the_rounding(
    vlm: Scorer, pictures: list[PIL.Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    # the smooth pixels alone, of which differences have a meaning
    monkeypatch.setattr(pixels, "straight", lambda exact, smooth: seen.append((exact, smooth)) or smooth)
    given = tensors(pictures).requires_grad_()
    (slope,) = torch.autograd.grad(vlm.differentiable(given, TEXTS).sum(), given)
    assert seen
    for exact, smooth in seen:
        # rounded once along each axis: two 8-bit levels, in units of the smallest deviation
        assert float((exact - smooth).detach().abs().max()) < 2 / 255 / 0.26
    for n, (one, up) in enumerate(zip(given.detach(), slope, strict=True)):
        way = 0.3 * up / up.norm()
        ends = [vlm.differentiable((one + sign * way)[None], [TEXTS[n]]).item() for sign in (1, -1)]
        # the models normalise in float32, so that steps cannot be short
        assert (ends[0] - ends[1]) / 2 == pytest.approx(float((up * way).sum()), rel=0.02)


@pytest.mark.parametrize("size", [(16, 24), (32, 8)])
def test_patches_are_qwen2_vls(size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(noise)
    how = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2)
    wanted = how(image, do_resize=False, return_tensors="pt")["pixel_values"]
    found = pixels.patched(pixels.unit(image), image.height, image.width, how)
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-7)


def test_other_vlms_have_no_gradient(vlms: dict[str, str]) -> None:
    from transformers import CLIPImageProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    class Mine(Qwen2VLImageProcessor):
        pass

    judge = scorers.load(vlms["vqascore"])
    processor = judge.function.local.processor
    for other, said in (
        (CLIPImageProcessor(), "its image processor CLIPImageProcessor has no gradient here"),
        (Mine(), "its image processor Mine has no gradient here"),
        (Qwen2VLImageProcessor(resample=2), "does not resize as Qwen2-VL's"),
        (Qwen2VLImageProcessor(do_normalize=False), "does not resize as Qwen2-VL's"),
    ):
        processor.image_processor = other
        with pytest.raises(InputError, match=said):
            judge.differentiable(torch.zeros(1, 3, 24, 24), ["a red circle"])


def test_judges_without_a_gradient_say_so() -> None:
    with pytest.raises(InputError, match="scorer gold: has no gradient"):
        scorers.load("gold").differentiable(torch.zeros(1, 3, 8, 8), ["a red circle"])


def test_a_tower_that_resizes_its_own_way_says_so(tmp_path: Path) -> None:
    folder = shutil.copytree(asset("shapes/clip"), tmp_path / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["interpolation"] = "bilinear"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="resizes in a way that has no gradient"):
        scorers.load(f"clip={folder}").differentiable(torch.zeros(1, 3, 64, 64), ["a red circle"])

"""What a picture becomes before a judge sees it, bit for bit against the libraries its authors used."""

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision.transforms.v2.functional as functional
import worlds
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from diffalign.scorers import pixels

# squares, odd and even margins in both directions, enlargements, and the sizes of SDXL's buckets in small
SIZES = [
    (64, 64),
    (83, 121),
    (121, 83),
    (100, 77),
    (77, 100),
    (24, 24),
    (25, 24),
    (24, 27),
    (9, 30),
    (200, 31),
    (1, 40),
]
every = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")


def picture(size: tuple[int, int]) -> PIL.Image.Image:
    """Noise, in which every mistake of a pixel shows."""
    return PIL.Image.fromarray(np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def openai(size: int) -> transforms.Compose:
    return transforms.Compose([
        transforms.Resize(size, interpolation=InterpolationMode.BICUBIC), transforms.CenterCrop(size),
        transforms.ToTensor(), transforms.Normalize(pixels.CLIP_MEAN, pixels.CLIP_STD),
    ])  # fmt: skip


@every
def test_floor_crop_is_transformers(size: tuple[int, int]) -> None:
    image = picture(size)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    wanted = torch.as_tensor(np.asarray(processor(image)["pixel_values"][0]))
    found = pixels.Cropped(24, floor=True)(image)
    # the library multiplies by 1/255 where this divides: the last bit of a float, four millionths at most
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-7)


@every
def test_rounded_crop_is_torchvisions(size: tuple[int, int]) -> None:
    assert torch.equal(pixels.Cropped(24, floor=False)(picture(size)), openai(24)(picture(size)))


def test_croppers_differ_where_the_margin_is_odd() -> None:
    # 83 x 121 -> 24 x 34, a margin of 10; 100 x 77 -> 31 x 24, one of 7, of which the half is rounded to the even 4
    for size, same in (((83, 121), True), ((100, 77), False), ((64, 64), True)):
        floor, rounded = (pixels.Cropped(24, floor=f)(picture(size)) for f in (True, False))
        assert torch.equal(floor, rounded) == same


@every
@pytest.mark.parametrize("bilinear", [False, True])
def test_squashed_is_siglips(size: tuple[int, int], bilinear: bool) -> None:
    image = picture(size)
    processor = SiglipImageProcessorPil(size={"height": 24, "width": 24}, resample=2 if bilinear else 3)
    wanted = torch.as_tensor(np.asarray(processor(image)["pixel_values"][0]))
    torch.testing.assert_close(pixels.Squashed(24, bilinear=bilinear)(image), wanted, rtol=0, atol=5e-7)


@every
@pytest.mark.parametrize("antialias", [True, False])
def test_padded_is_torchvision_on_floats(size: tuple[int, int], antialias: bool) -> None:
    image = picture(size)
    x = transforms.ToTensor()(image)
    scale = 24 / max(x.shape[1:])
    new = [max(1, round(n * scale)) for n in x.shape[1:]]
    x = functional.resize(x, new, interpolation=InterpolationMode.BICUBIC, antialias=antialias) if scale != 1 else x
    height, width = 24 - new[0], 24 - new[1]
    x = functional.pad(x, [width // 2, height // 2, width - width // 2, height - height // 2])
    wanted = transforms.Normalize(pixels.CLIP_MEAN, pixels.CLIP_STD)(x)
    found = pixels.Padded(24, antialias=antialias)(image)
    assert found.shape == (3, 24, 24)
    assert torch.equal(found, wanted)


def test_antialiasing_changes_a_small_picture() -> None:
    smooth, rough = (pixels.Padded(24, antialias=a)(picture((96, 96))) for a in (True, False))
    assert (smooth - rough).abs().mean() > 0.1


def test_bars_are_black_before_normalisation() -> None:
    x = pixels.Padded(24, antialias=True)(PIL.Image.new("RGB", (48, 24), "white"))
    black = (-torch.tensor(pixels.CLIP_MEAN) / torch.tensor(pixels.CLIP_STD))[:, None, None]
    assert torch.equal(x[:, :6], black.expand(3, 6, 24))
    assert torch.equal(x[:, 18:], black.expand(3, 6, 24))
    assert (x[:, 6:18] > 1.5).all()


def test_what_is_transparent_lies_on_white() -> None:
    white = pixels.Squashed(4)(PIL.Image.new("RGB", (4, 4), "white"))
    assert torch.equal(pixels.Squashed(4)(PIL.Image.new("RGBA", (4, 4), (10, 20, 30, 0))), white)


def test_pictures_of_files_are_read_the_same(tmp_path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(worlds.png(3, (50, 40)))
    opened = PIL.Image.open(path)
    assert torch.equal(pixels.Cropped(24, floor=True)(opened), pixels.Cropped(24, floor=True)(opened.convert("RGB")))

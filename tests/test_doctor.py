"""What a run needs, before anything is allocated: counts of published architectures, and what follows from them."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from diffalign import counting
from diffalign.backbones.hollow import configurations, hollow
from diffalign.doctor import Consultation, doctor
from diffalign.needs import CARDS, _passes, needs
from diffalign.objectives import SFT
from diffalign.recipes import load_recipe
from diffalign.records import InputError
from diffalign.run import Full, LoRA, Run

GIB = 2**30


@pytest.fixture(scope="module")
def sd15() -> Run:
    return dataclasses.replace(load_recipe("sd15_dpo").run, resolution=512, batch=8, micro_batch=4, policy=Full())


def test_counts_of_a_published_architecture(sd15: Run) -> None:
    """Stable Diffusion 1.5 at 512 pixels: 0.860 B parameters, 2.47 TFLOP an image both ways, 0.80 forward."""
    found = needs(sd15, "h200")
    assert found.parameters == found.trained == 859_520_964
    assert found.images == 2
    assert found.flops["policy forward and backward"] == pytest.approx(2 * 2.4698e12, rel=1e-4)
    assert found.flops["reference"] == pytest.approx(2 * 0.80327e12, rel=1e-4)
    assert found.memory["gradients"] == 4 * found.trained
    assert found.memory["optimizer's two moments"] == 8 * found.trained
    by = {(s.micro, s.checkpointing): s for s in found.settings}
    assert by[2, "off"].activations == 2 * by[1, "off"].activations
    assert by[8, "full"].activations < by[8, "selective"].activations < by[8, "off"].activations
    assert by[1, "full"].activations == 2 * found.trained, "the working copy's gradients, when activations are gone"
    assert found.memory["past selves"] == 2 * found.trained, "the reference is no wider than what computes"
    assert found.before == 4 * 83_653_863 + 2 * 123_060_480, "autoencoder in float32, text encoder"
    assert by[4, "off"].speed > by[1, "off"].speed, "launches are shared"
    assert found.disk["latents of a thousand"] == 1000 * 4 * 64 * 64 * 4


def test_what_is_said(sd15: Run) -> None:
    said = doctor(Consultation(sd15, "4090"), name="mine")
    assert said.startswith("mine on stable-diffusion-v1-5/stable-diffusion-v1-5: 0.860 B parameters, 859.5 M trained")
    assert "memory on 4090 (23.5 GiB), micro_batch 4, gradient_checkpointing off:" in said
    parts = [float(x) for x in re.findall(r"^  .* ([\d.]+) GiB$", said, re.M)]
    assert sum(parts[:-1]) == pytest.approx(parts[-1], abs=0.05)
    advice = said.splitlines()[-1]
    assert advice.startswith("suggested: --micro-batch ")
    assert float(re.search(r"\(([\d.]+) GiB", advice)[1]) <= CARDS["4090"][0]


def test_less_is_needed_by_less(sd15: Run) -> None:
    lora = needs(dataclasses.replace(sd15, policy=LoRA(rank=4)), "h200")
    assert lora.trained < 2_000_000
    assert lora.memory["past selves"] == 0, "the adapters are off"
    assert lora.fixed < 4 * GIB
    assert _passes(dataclasses.replace(sd15, objective=SFT()))["reference"] == 0


def test_a_local_folder_is_read_without_its_weights(models: dict[str, Path], tmp_path: Path) -> None:
    for family in ("sdxl", "sd3", "flux"):
        found = hollow(str(models[family]))
        denoiser = found.backbone.denoiser
        assert all(p.is_meta for p in denoiser.parameters())
        told, x = found.told(2, torch.float32), found.latents(2, 32, torch.float32)
        time = torch.empty(2, device="meta")
        assert found.backbone.predict(denoiser, x, time, told).shape == x.shape
        assert set(found.frozen) >= {"vae", "text_encoder"}
    assert configurations(str(models["sd"]))["unet"]["_class_name"] == "UNet2DConditionModel"
    with pytest.raises(InputError, match="no such model folder"):
        hollow(str(tmp_path / "nowhere"))


def test_a_counter_counts() -> None:
    a, b = (torch.empty(4, 8, device="meta"), torch.empty(8, 16, device="meta"))
    seen = counting.counted(lambda: a @ b, a, b)
    assert (seen.flops, seen.kernels, seen.moved) == (2 * 4 * 8 * 16, 1, 4 * (32 + 128 + 64))
    assert seen.peak == 4 * 64
    assert seen.seconds(1.0, 1e9) == 2 * 4 * 8 * 16
    plain = torch.nn.functional.scaled_dot_product_attention
    q = torch.empty(1, 2, 64, 32, device="meta")
    held = counting.counted(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q), q)
    assert held.flops == 4 * 2 * 64 * 64 * 32
    assert held.peak < 2 * 64 * 64 * 4, "no matrix of all pairs"
    assert torch.nn.functional.scaled_dot_product_attention is plain

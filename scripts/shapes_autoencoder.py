"""The autoencoder of the embedded models: 64 px pictures <-> 8 x 8 latents of 12 channels, mean 0 and variance 1."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from shapes_fitting import Fit, train
from torch import Tensor, nn

from diffalign.shapes.scene import render, sample_scene

CHANNELS = 12
# Noise that the decoder sees, in standard deviations of each channel: neighbouring latents decode alike.
NOISE = 0.1
GENERATED = 0.4


def pictures(rng: np.random.Generator, count: int) -> Tensor:
    """Fresh renders, (count, 3, 64, 64), in [-1, 1]."""
    return pixels(np.stack([render(sample_scene(rng)) for _ in range(count)]))


def pixels(images: np.ndarray) -> Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in [-1, 1], stored channels last."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def images(pixels: Tensor) -> np.ndarray:
    """float (n, 3, h, w) in [-1, 1] -> uint8 (n, h, w, 3)."""
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def network() -> AutoencoderKL:
    """1.7 M parameters, half of them for the decoder; no scaling, no shift: the latents are normalised by `fold`."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        layers_per_block=1,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
    ).to(memory_format=torch.channels_last)


def difference(drawn: Tensor, picture: Tensor, weight: float) -> Tensor:
    """mean w (|gap| + 2 gap^2) + mean |gradient of the gap|; w is `weight` where there is an object, 1 elsewhere."""
    gap = drawn - picture
    seen = (picture - picture[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.1
    edges = gap.diff(dim=2).abs().mean() + gap.diff(dim=3).abs().mean()
    return ((1 + (weight - 1) * seen) * (gap.abs() + 2 * gap.square())).mean() + edges


def noisy(mean: Tensor, strength: float) -> Tensor:
    """mean + strength * (the batch's standard deviation of each channel) * standard normal."""
    return mean + strength * mean.detach().std((0, 2, 3), keepdim=True) * torch.randn_like(mean)


def train_both(work: Path, steps: int) -> None:
    """Train encoder and decoder together, first with every pixel alike, then for the objects; normalise the latents.

    The first half learns backgrounds and outlines. Objects are a tenth of a picture, and noise in the latents
    hides faint differences: with more weight and less noise the second half learns to tell all colours apart.
    """
    torch.manual_seed(0)
    vae = network()

    def loss(weight: float, noise: float, rng: np.random.Generator) -> Tensor:
        picture = pictures(rng, 32)
        mean = vae.encode(picture).latent_dist.mean
        return difference(vae.decode(noisy(mean, noise)).sample, picture, weight) + 1e-5 * mean.square().mean()

    first = Fit("vae-outlines", steps // 2, rate=2e-3)
    train(first, vae, lambda step, rng: loss(1.0, NOISE, rng), work)
    second = Fit("vae-colours", steps - first.steps, rate=1.5e-3, warmup=50)
    train(second, vae, lambda step, rng: loss(5.0, NOISE / 5, rng), work)
    fold(vae)
    vae.save_pretrained(work / "vae-latents")


@torch.no_grad()
def fold(vae: AutoencoderKL, count: int = 4096) -> None:
    """Rescale quant_conv and post_quant_conv: each latent channel gets mean 0, variance 1, and posterior std NOISE."""
    rng = np.random.default_rng(1)
    means = torch.cat([vae.encode(pictures(rng, 64)).latent_dist.mean for _ in range(count // 64)])
    mean, std = means.mean((0, 2, 3)), means.std((0, 2, 3))
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:CHANNELS] /= std.view(-1, 1, 1, 1)
    before.bias[:CHANNELS] = (before.bias[:CHANNELS] - mean) / std
    before.weight[CHANNELS:] = 0
    before.bias[CHANNELS:] = 2 * float(np.log(NOISE))
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std.view(1, -1, 1, 1)


def train_decoder(work: Path, steps: int) -> None:
    """Train the decoder on, for the latents as they now are: whatever learns on those need not wait for it.

    It sees noise of a strength drawn per picture, up to GENERATED standard deviations: what a generator draws is not
    quite a picture's latents, and a decoder that never saw such makes blobs of it.
    """
    vae = AutoencoderKL.from_pretrained(work / "vae-latents").to(memory_format=torch.channels_last)
    vae.requires_grad_(False)
    learner = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)

    def loss(step: int, rng: np.random.Generator) -> Tensor:
        picture = pictures(rng, 32)
        with torch.no_grad():
            mean = vae.encode(picture).latent_dist.mean
            latents = mean + GENERATED * torch.rand(len(mean), 1, 1, 1) * torch.randn_like(mean)
        return difference(vae.decode(latents).sample, picture, 5.0)

    train(Fit("decoder", steps, rate=1.5e-3, average=0.995), learner, loss, work)
    vae.save_pretrained(work / "vae" / "model")

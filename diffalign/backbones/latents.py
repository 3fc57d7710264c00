"""What families share in handling latents: the scale and shift of an autoencoder, and 2x2 patches as tokens."""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """((mean - shift) * scale, std * scale), shift and scale from the autoencoder's own config (no shift means 0)."""
    found, shift, scale = encoded(vae, pixels), vae.config.shift_factor, vae.config.scaling_factor
    return (found.mode() if shift is None else found.mode() - shift) * scale, found.std * scale


def encoded(vae: Any, pixels: Tensor) -> Any:
    """The autoencoder's posterior of pixels, as diffusers gives it."""
    return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pixels of latents / scale + shift: the inverse of `encode`."""
    scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
    shifted = scaled if vae.config.shift_factor is None else scaled + vae.config.shift_factor
    return vae.decode(shifted, return_dict=False)[0]


def pack(latents: Tensor) -> Tensor:
    """Latents (n, c, h, w) -> tokens (n, h/2 w/2, 4c): each a 2x2 patch, channels outermost."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (n, h/2 w/2, 4c) -> latents (n, c, h, w): the inverse of `pack`."""
    n, _, channels = tokens.shape
    patches = tokens.view(n, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(n, channels // 4, height, width)


def padded(rows: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Rows (l_i, d) of unequal length -> (n, length, d) with zeros behind, and the mask (n, length) of what is real."""
    values = torch.stack([torch.cat([row, row.new_zeros(length - len(row), row.shape[1])]) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=values.device)
    return values, (torch.arange(length, device=values.device) < lengths[:, None]).long()

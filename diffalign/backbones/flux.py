"""FLUX.1 dev and schnell: a multimodal DiT on 2x2 patches, told of its guidance where it was distilled for it."""

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from diffalign import adapters
from diffalign.backbones import latents as images
from diffalign.backbones import mmdit_file, texts
from diffalign.backbones.base import Backbone, Conditioning, Solver
from diffalign.backbones.loading import flow_of, read_pipeline, shape_of
from diffalign.backbones.lora import read_lora
from diffalign.backbones.schedulers import flow_solver, shift
from diffalign.diffusion import Flow
from diffalign.weights import Source

GUIDANCE = 3.5


@final
class Flux(Backbone):
    """predict(x_t, t) = unpack(DiT(pack(x_t), t; T5 states, pooled CLIP state, guidance, positions)).

    dev is distilled: guidance is a number that the denoiser is told, not a second branch. Where the conditioning has no
    row `guidance` (in training) it is 3.5, the pipeline's own default. schnell is told none.
    """

    family = "flux"
    part = "transformer"
    targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    kohya = staticmethod(adapters.kohya_flux)
    single_file = staticmethod(mmdit_file.write)

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        self.pipe = read_pipeline(FluxPipeline, source, dtype, device)
        self.denoiser: nn.Module = self.pipe.transformer
        self.process: Flow = flow_of(self.pipe.scheduler.config, source)
        self.tokens: int = inspect.signature(FluxPipeline.__call__).parameters["max_sequence_length"].default

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.pipe.vae_scale_factor
        return shape_of(height, width, self.denoiser.config.in_channels // 4, factor, 2 * factor)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        embeds, pooled, _ = self.pipe.encode_prompt(list(prompts), None, self.pipe.text_encoder.device)
        return {"prompt_embeds": embeds, "pooled": pooled}

    def encode_negative(self) -> Conditioning:
        return self.encode_prompts([""])

    def unread(self, prompt: str) -> str:
        return texts.unread(self.pipe.tokenizer_2, prompt, self.tokens)

    def size_conditioning(
        self, original: Sequence[tuple[int, int]], target: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)
    ) -> Conditioning:
        return {}

    def guidance_conditioning(self, scale: float) -> Conditioning:
        return {"guidance": torch.tensor([[scale]])} if self.denoiser.config.guidance_embeds else {}

    def unconditional(self, scale: float) -> bool:
        return False

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return images.posterior(self.pipe.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return images.decode(self.pipe.vae, latents)

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        n, _, height, width = x_t.shape
        embeds, guidance = conditioning["prompt_embeds"], None
        if self.denoiser.config.guidance_embeds:
            told = conditioning.get("guidance")
            guidance = torch.full((n,), GUIDANCE, device=x_t.device) if told is None else told.flatten().float()
        output = denoiser(
            hidden_states=images.pack(x_t),
            timestep=t.to(x_t.dtype) / 1000,
            guidance=guidance,
            pooled_projections=conditioning["pooled"],
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=x_t.device, dtype=embeds.dtype),
            img_ids=positions_on(height // 2, width // 2, x_t.device, embeds.dtype),
            return_dict=False,
        )[0]
        return images.unpack(output, height, width)

    def native_size(self) -> int:
        return self.pipe.default_sample_size * self.pipe.vae_scale_factor

    def solver(self, steps: int, latent_shape: tuple[int, int, int]) -> Solver:
        patches = latent_shape[1] * latent_shape[2] // 4
        sigmas = np.linspace(1.0, 1 / steps, steps)
        return flow_solver(
            self.pipe.scheduler, steps, shift(self.pipe.scheduler.config, patches), self.denoiser.device, sigmas
        )

    def save_lora(self, folder: Path, layers: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.pipe.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)

    def load_lora(self, file: Path) -> None:
        read_lora(self.pipe, file, self.part)

    def pipeline(self, denoiser: nn.Module) -> FluxPipeline:
        return type(self.pipe)(**{**self.pipe.components, "transformer": denoiser})


@functools.cache
def positions_on(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`positions` on a device, sent there once: every copy from the host is waited for."""
    return positions(height, width).to(device, dtype)


def positions(height: int, width: int) -> Tensor:
    """(0, row, column) of each patch, row by row, (height width, 3)."""
    return torch.cartesian_prod(torch.zeros(1), torch.arange(height).float(), torch.arange(width).float())

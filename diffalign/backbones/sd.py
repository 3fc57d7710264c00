"""Stable Diffusion 1.x and 2.x: a UNet told of one text encoder's states; epsilon or v by the scheduler's config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from diffalign import adapters
from diffalign.backbones import latents as images
from diffalign.backbones import single_file, texts
from diffalign.backbones.base import Backbone, Conditioning, Solver
from diffalign.backbones.loading import process_of, read_pipeline, shape_of
from diffalign.backbones.lora import read_lora
from diffalign.backbones.schedulers import vp_solver
from diffalign.diffusion import VP
from diffalign.weights import Source


@final
class SD(Backbone):
    """predict(x_t, t) = UNet(x_t, t; text states). The safety checker is not loaded: it draws nothing."""

    family = "sd"
    part = "unet"
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    kohya = staticmethod(adapters.kohya)
    single_file = staticmethod(single_file.write)

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        self.pipe = read_pipeline(StableDiffusionPipeline, source, dtype, device)
        self.denoiser: nn.Module = self.pipe.unet
        self.process: VP = process_of(self.pipe.scheduler.config, source)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        multiple = self.pipe.vae_scale_factor * 2 ** (len(self.denoiser.config.block_out_channels) - 1)
        return shape_of(height, width, self.denoiser.config.in_channels, self.pipe.vae_scale_factor, multiple)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        embeds, _ = self.pipe.encode_prompt(list(prompts), self.pipe.text_encoder.device, 1, False)
        return {"prompt_embeds": embeds}

    def encode_negative(self) -> Conditioning:
        return self.encode_prompts([""])

    def unread(self, prompt: str) -> str:
        return texts.unread(self.pipe.tokenizer, prompt, self.pipe.tokenizer.model_max_length)

    def size_conditioning(
        self, original: Sequence[tuple[int, int]], target: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)
    ) -> Conditioning:
        return {}

    def guidance_conditioning(self, scale: float) -> Conditioning:
        return texts.told(self.pipe, scale)

    def unconditional(self, scale: float) -> bool:
        return scale > 1 and self.denoiser.config.time_cond_proj_dim is None

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return images.posterior(self.pipe.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return images.decode(self.pipe.vae, latents)

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return denoiser(
            x_t,
            t,
            encoder_hidden_states=conditioning["prompt_embeds"],
            timestep_cond=conditioning.get("guidance"),
            return_dict=False,
        )[0]

    def native_size(self) -> int:
        return self.denoiser.config.sample_size * self.pipe.vae_scale_factor

    def solver(self, steps: int, latent_shape: tuple[int, int, int]) -> Solver:
        return vp_solver(self.pipe.scheduler, steps, self.denoiser.device)

    def save_lora(self, folder: Path, layers: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.pipe.save_lora_weights(folder, unet_lora_layers=layers, unet_lora_adapter_metadata=metadata)

    def load_lora(self, file: Path) -> None:
        read_lora(self.pipe, file, self.part)

    def pipeline(self, denoiser: nn.Module) -> StableDiffusionPipeline:
        parts = {**self.pipe.components, "unet": denoiser}
        return type(self.pipe)(**parts, requires_safety_checker=False)

"""Sana: a linear-attention DiT with masked Gemma states on latents that are 32 times smaller than the picture."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from diffusers import SanaPipeline
from torch import Tensor, nn

from diffalign.backbones import texts
from diffalign.backbones.base import Backbone, Conditioning, Solver
from diffalign.backbones.loading import flow_of, read_pipeline, shape_of
from diffalign.backbones.lora import read_lora
from diffalign.backbones.schedulers import flow_solver, shift
from diffalign.diffusion import Flow
from diffalign.weights import Source


@final
class Sana(Backbone):
    """predict(x_t, t) = DiT(x_t, s t; Gemma states, mask), s the transformer's own timestep scale.

    Prompts are preceded by the pipeline's default instruction, as its users' prompts are; the empty prompt of guidance
    is not.
    """

    family = "sana"
    part = "transformer"
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    comfyui = False

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        self.pipe = read_pipeline(SanaPipeline, source, dtype, device)
        self.denoiser: nn.Module = self.pipe.transformer
        self.process: Flow = flow_of(self.pipe.scheduler.config, source)
        if dtype == torch.float64:
            # its Gemma masks with the lowest float64, which its float32 softmax cannot hold
            self.pipe.text_encoder.float()
        self.instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
        self.tokens: int = inspect.signature(SanaPipeline.__call__).parameters["max_sequence_length"].default

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        config, factor = self.denoiser.config, self.pipe.vae_scale_factor
        return shape_of(height, width, config.in_channels, factor, factor * config.patch_size)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        embeds, mask, _, _ = self.pipe.encode_prompt(
            list(prompts), False, device=self.pipe.text_encoder.device, complex_human_instruction=self.instruction
        )
        return {"prompt_embeds": embeds.to(self.denoiser.dtype), "mask": mask}

    @torch.no_grad()
    def encode_negative(self) -> Conditioning:
        embeds, mask, _, _ = self.pipe.encode_prompt(
            [""], False, device=self.pipe.text_encoder.device, complex_human_instruction=None
        )
        return {"prompt_embeds": embeds.to(self.denoiser.dtype), "mask": mask}

    def unread(self, prompt: str) -> str:
        instruction = "\n".join(self.instruction)
        length = len(self.pipe.tokenizer.encode(instruction)) + self.tokens - 2
        return texts.unread(self.pipe.tokenizer, prompt, length, instruction + prompt)

    def size_conditioning(
        self, original: Sequence[tuple[int, int]], target: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)
    ) -> Conditioning:
        return {}

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.pipe.vae.encode(pixels.to(self.pipe.vae.device, self.pipe.vae.dtype), return_dict=False)[0]
        return latent * self.pipe.vae.config.scaling_factor, torch.zeros_like(latent)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        scaled = latents.to(self.pipe.vae.device, self.pipe.vae.dtype) / self.pipe.vae.config.scaling_factor
        return self.pipe.vae.decode(scaled, return_dict=False)[0]

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        output = denoiser(
            x_t,
            encoder_hidden_states=conditioning["prompt_embeds"],
            encoder_attention_mask=conditioning["mask"],
            timestep=t * self.denoiser.config.timestep_scale,
            return_dict=False,
        )[0]
        return output[:, : x_t.shape[1]]

    def native_size(self) -> int:
        return self.denoiser.config.sample_size * self.pipe.vae_scale_factor

    def solver(self, steps: int, latent_shape: tuple[int, int, int]) -> Solver:
        patches = latent_shape[1] * latent_shape[2] // self.denoiser.config.patch_size**2
        return flow_solver(self.pipe.scheduler, steps, shift(self.pipe.scheduler.config, patches), self.denoiser.device)

    def save_lora(self, folder: Path, layers: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.pipe.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)

    def load_lora(self, file: Path) -> None:
        read_lora(self.pipe, file, self.part)

    def pipeline(self, denoiser: nn.Module) -> SanaPipeline:
        return type(self.pipe)(**{**self.pipe.components, "transformer": denoiser})

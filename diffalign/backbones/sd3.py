"""Stable Diffusion 3 and 3.5: a multimodal DiT with rectified flow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from diffalign.backbones import latents as images
from diffalign.backbones import mmdit_file, texts
from diffalign.backbones.base import Backbone, Conditioning, Solver
from diffalign.backbones.loading import flow_of, read_pipeline, shape_of
from diffalign.backbones.lora import read_lora
from diffalign.backbones.schedulers import flow_solver, shift
from diffalign.diffusion import Flow
from diffalign.weights import Source


@final
class SD3(Backbone):
    """predict(x_t, t) = DiT(x_t, 1000 t; CLIP and T5 states, pooled states); zeros stand for a T5 that is not there."""

    family = "sd3"
    part = "transformer"
    targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    single_file = staticmethod(mmdit_file.write)

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        self.pipe = read_pipeline(StableDiffusion3Pipeline, source, dtype, device)
        self.denoiser: nn.Module = self.pipe.transformer
        self.process: Flow = flow_of(self.pipe.scheduler.config, source)

    @property
    def max_sequence_length(self) -> int:
        """Tokens of the T5 part: 256 as the pipeline has it; where there is no T5, nor CLIP's full length, one zero."""
        small = self.pipe.text_encoder_3 is None and self.pipe.tokenizer.model_max_length < 77
        return 1 if small else 256

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        config = self.denoiser.config
        return shape_of(
            height,
            width,
            config.in_channels,
            self.pipe.vae_scale_factor,
            self.pipe.vae_scale_factor * config.patch_size,
        )

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), None, None, device=self.pipe.text_encoder.device, do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )  # fmt: skip
        return {"prompt_embeds": embeds, "pooled": pooled}

    def encode_negative(self) -> Conditioning:
        return self.encode_prompts([""])

    def unread(self, prompt: str) -> str:
        if self.pipe.text_encoder_3 is None:
            return texts.unread(self.pipe.tokenizer, prompt, self.pipe.tokenizer.model_max_length)
        return texts.unread(self.pipe.tokenizer_3, prompt, self.max_sequence_length)

    def size_conditioning(
        self, original: Sequence[tuple[int, int]], target: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)
    ) -> Conditioning:
        return {}

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found, config = images.encoded(self.pipe.vae, pixels), self.pipe.vae.config
        return (found.mode() - config.shift_factor) * config.scaling_factor, found.std * config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        scaled = latents.to(self.pipe.vae.device, self.pipe.vae.dtype) / self.pipe.vae.config.scaling_factor
        return self.pipe.vae.decode(scaled + self.pipe.vae.config.shift_factor, return_dict=False)[0]

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        embeds, pooled = conditioning["prompt_embeds"], conditioning["pooled"]
        return denoiser(
            hidden_states=x_t, timestep=t, encoder_hidden_states=embeds, pooled_projections=pooled, return_dict=False
        )[0]

    def native_size(self) -> int:
        return self.denoiser.config.sample_size * self.pipe.vae_scale_factor

    def solver(self, steps: int, latent_shape: tuple[int, int, int]) -> Solver:
        patches = latent_shape[1] * latent_shape[2] // self.denoiser.config.patch_size**2
        return flow_solver(self.pipe.scheduler, steps, shift(self.pipe.scheduler.config, patches), self.denoiser.device)

    def save_lora(self, folder: Path, layers: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.pipe.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)

    def load_lora(self, file: Path) -> None:
        read_lora(self.pipe, file, self.part)

    def pipeline(self, denoiser: nn.Module) -> StableDiffusion3Pipeline:
        return type(self.pipe)(**{**self.pipe.components, "transformer": denoiser})

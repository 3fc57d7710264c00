"""FLUX.2 Klein: a multimodal DiT on normalised 2x2 patches, with states from three layers of a language model."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor, nn

from diffalign.backbones import texts
from diffalign.backbones.base import Backbone, Conditioning, Solver
from diffalign.backbones.loading import flow_of, read_pipeline, shape_of
from diffalign.backbones.lora import read_lora
from diffalign.backbones.schedulers import flow_solver
from diffalign.diffusion import Flow
from diffalign.weights import Source


@final
class Flux2Klein(Backbone):
    """predict(x_t, t) = DiT(x_t as tokens, t; text states, positions).

    Latents are 2x2 patches of the autoencoder's, (4c, h/2, w/2), normalised by its batch statistics: noise is drawn
    there, as in the pipeline. A distilled Klein, by its pipeline's config, has no unconditional branch.
    """

    family = "flux2-klein"
    part = "transformer"
    targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        "to_qkv_mlp_proj",
    )

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        self.pipe = read_pipeline(Flux2KleinPipeline, source, dtype, device)
        self.denoiser: nn.Module = self.pipe.transformer
        self.process: Flow = flow_of(self.pipe.scheduler.config, source)
        self.tokens: int = inspect.signature(Flux2KleinPipeline.__call__).parameters["max_sequence_length"].default

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = 2 * self.pipe.vae_scale_factor
        return shape_of(height, width, self.denoiser.config.in_channels, factor, factor)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        return {"prompt_embeds": self.pipe.encode_prompt(list(prompts), self.pipe.text_encoder.device)[0]}

    def encode_negative(self) -> Conditioning:
        return self.encode_prompts([""])

    def unread(self, prompt: str) -> str:
        framed = texts.chat(self.pipe.tokenizer, prompt, thinking=False)
        return texts.unread(self.pipe.tokenizer, prompt, self.tokens, framed)

    def size_conditioning(
        self, original: Sequence[tuple[int, int]], target: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)
    ) -> Conditioning:
        return {}

    def unconditional(self, scale: float) -> bool:
        return scale > 1 and not self.pipe.config.is_distilled

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = self.pipe.vae.encode(pixels.to(self.pipe.vae.device, self.pipe.vae.dtype)).latent_dist
        mean, std = self._statistics(found.mode())
        return (_patches(found.mode()) - mean) / std, _patches(found.std) / std

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        n, c, h, w = latents.shape
        patches = (latents * std + mean).view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
        return self.pipe.vae.decode(patches.reshape(n, c // 4, 2 * h, 2 * w).to(self.pipe.vae.dtype)).sample

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.pipe.vae
        std = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()
        return vae.bn.running_mean.view(1, -1, 1, 1).to(like), std.to(like)

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        n, c, height, width = x_t.shape
        embeds = conditioning["prompt_embeds"]
        zero, rows, columns = torch.arange(1), torch.arange(height), torch.arange(width)
        text = torch.cartesian_prod(zero, zero, zero, torch.arange(embeds.shape[1]))
        output = denoiser(
            hidden_states=x_t.reshape(n, c, height * width).permute(0, 2, 1),
            timestep=t.to(x_t.dtype) / 1000,
            guidance=None,
            encoder_hidden_states=embeds,
            txt_ids=text.to(x_t.device).expand(n, -1, -1),
            img_ids=torch.cartesian_prod(zero, rows, columns, zero).to(x_t.device).expand(n, -1, -1),
            return_dict=False,
        )[0]
        return output.permute(0, 2, 1).reshape(n, -1, height, width)

    def native_size(self) -> int:
        return self.pipe.default_sample_size * self.pipe.vae_scale_factor

    def solver(self, steps: int, latent_shape: tuple[int, int, int]) -> Solver:
        mu = compute_empirical_mu(latent_shape[1] * latent_shape[2], steps)
        return flow_solver(self.pipe.scheduler, steps, mu, self.denoiser.device, np.linspace(1.0, 1 / steps, steps))

    def save_lora(self, folder: Path, layers: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.pipe.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)

    def load_lora(self, file: Path) -> None:
        read_lora(self.pipe, file, self.part)

    def pipeline(self, denoiser: nn.Module) -> Flux2KleinPipeline:
        parts = {**self.pipe.components, "transformer": denoiser}
        return type(self.pipe)(**parts, is_distilled=self.pipe.config.is_distilled)


def _patches(latents: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, 4c, h/2, w/2): 2x2 patches as channels."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)

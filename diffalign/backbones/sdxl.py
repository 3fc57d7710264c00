"""Stable Diffusion XL: a UNet told of pooled text and of sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from diffalign import adapters
from diffalign.backbones import latents as images
from diffalign.backbones import single_file, texts
from diffalign.backbones.base import Backbone, Conditioning, Solver
from diffalign.backbones.loading import process_of, read_pipeline, shape_of
from diffalign.backbones.lora import read_lora
from diffalign.backbones.schedulers import vp_solver
from diffalign.diffusion import VP
from diffalign.records import InputError
from diffalign.weights import Source


@final
class SDXL(Backbone):
    """predict(x_t, t) = UNet(x_t, t; both encoders' penultimate states, pooled state of the second, six sizes)."""

    family = "sdxl"
    part = "unet"
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    kohya = staticmethod(adapters.kohya)
    single_file = staticmethod(single_file.write)

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        self.pipe = read_pipeline(StableDiffusionXLPipeline, source, dtype, device)
        if self.pipe.text_encoder is None:
            raise InputError(f"{source.folder}: has no first text encoder (a refiner?); expected an SDXL base model")
        self.denoiser: nn.Module = self.pipe.unet
        self.process: VP = process_of(self.pipe.scheduler.config, source)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        multiple = self.pipe.vae_scale_factor * 2 ** (len(self.denoiser.config.block_out_channels) - 1)
        return shape_of(height, width, self.denoiser.config.in_channels, self.pipe.vae_scale_factor, multiple)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.pipe.text_encoder.device, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds, "pooled": pooled}

    @torch.no_grad()
    def encode_negative(self) -> Conditioning:
        _, embeds, _, pooled = self.pipe.encode_prompt(
            [""], device=self.pipe.text_encoder.device, do_classifier_free_guidance=True
        )
        return {"prompt_embeds": embeds, "pooled": pooled}

    def unread(self, prompt: str) -> str:
        return texts.unread(self.pipe.tokenizer, prompt, self.pipe.tokenizer.model_max_length)

    def size_conditioning(
        self, original: Sequence[tuple[int, int]], target: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)
    ) -> Conditioning:
        rows = [(*size, *_corner(size, target, at), *target) for size in original]
        return {"time_ids": torch.tensor(rows, dtype=torch.promote_types(self.denoiser.dtype, torch.float32))}

    def guidance_conditioning(self, scale: float) -> Conditioning:
        return texts.told(self.pipe, scale)

    def unconditional(self, scale: float) -> bool:
        return scale > 1 and self.denoiser.config.time_cond_proj_dim is None

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found, scale = images.encoded(self.pipe.vae, pixels), self.pipe.vae.config.scaling_factor
        return found.mode() * scale, found.std * scale

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        scaled = latents.to(self.pipe.vae.device, self.pipe.vae.dtype) / self.pipe.vae.config.scaling_factor
        return self.pipe.vae.decode(scaled, return_dict=False)[0]

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        added = {"text_embeds": conditioning["pooled"], "time_ids": conditioning["time_ids"]}
        embeds = conditioning["prompt_embeds"]
        return denoiser(
            x_t,
            t,
            encoder_hidden_states=embeds,
            timestep_cond=conditioning.get("guidance"),
            added_cond_kwargs=added,
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

    def pipeline(self, denoiser: nn.Module) -> StableDiffusionXLPipeline:
        return type(self.pipe)(**{**self.pipe.components, "unet": denoiser})


def _corner(original: tuple[int, int], target: tuple[int, int], at: tuple[float, float]) -> tuple[int, int]:
    """(top, left) of the crop of `target` from a picture scaled to cover it, at the shares `at` of what is over."""
    scale = max(t / o for t, o in zip(target, original, strict=True))
    sides = zip(target, original, at, strict=True)
    return tuple(int((max(t, round(o * scale)) - t) * share) for t, o, share in sides)

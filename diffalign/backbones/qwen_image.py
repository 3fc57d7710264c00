"""Qwen-Image: a multimodal DiT on 2x2 patches with masked states of a vision-language model."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from diffusers import QwenImagePipeline
from torch import Tensor, nn

from diffalign import adapters
from diffalign.backbones import latents as images
from diffalign.backbones import texts
from diffalign.backbones.base import Backbone, Conditioning, Solver
from diffalign.backbones.loading import flow_of, read_pipeline, shape_of
from diffalign.backbones.lora import read_lora
from diffalign.backbones.schedulers import flow_solver, shift
from diffalign.diffusion import Flow
from diffalign.weights import Source


@final
class QwenImage(Backbone):
    """predict(x_t, t) = unpack(DiT(pack(x_t), t; text states, mask, grid)).

    Text states lie on disk padded to the pipeline's longest prompt; `predict` cuts a batch back to its own longest, as
    the pipeline batches them. Guidance rescales each patch to the length that it has without guidance.
    """

    family = "qwen-image"
    part = "transformer"
    targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    kohya = staticmethod(adapters.kohya)

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        self.pipe = read_pipeline(QwenImagePipeline, source, dtype, device)
        self.denoiser: nn.Module = self.pipe.transformer
        self.process: Flow = flow_of(self.pipe.scheduler.config, source)
        self.tokens: int = inspect.signature(QwenImagePipeline.__call__).parameters["max_sequence_length"].default

    @property
    def idle(self) -> tuple[str, ...]:
        # the text stream ends with the last block's attention
        last = f"transformer_blocks.{len(self.denoiser.transformer_blocks) - 1}"
        return f"{last}.attn.to_add_out", f"{last}.txt_mlp.net.0.proj", f"{last}.txt_mlp.net.2"

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.pipe.vae_scale_factor
        return shape_of(height, width, self.denoiser.config.in_channels // 4, factor, 2 * factor)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        embeds, mask = self.pipe.encode_prompt(
            list(prompts), device=self.pipe.text_encoder.device, max_sequence_length=self.tokens
        )
        lengths = [embeds.shape[1]] * len(embeds) if mask is None else mask.sum(1).tolist()
        rows, mask = images.padded([row[:n] for row, n in zip(embeds, lengths, strict=True)], self.tokens)
        return {"prompt_embeds": rows, "mask": mask}

    def encode_negative(self) -> Conditioning:
        # the space is what the model's own examples pass where there is nothing to avoid
        return self.encode_prompts([" "])

    def unread(self, prompt: str) -> str:
        framed = self.pipe.prompt_template_encode.format(prompt)
        length = self.tokens + self.pipe.prompt_template_encode_start_idx
        return texts.unread(self.pipe.tokenizer, prompt, length, framed)

    def size_conditioning(
        self, original: Sequence[tuple[int, int]], target: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)
    ) -> Conditioning:
        return {}

    def guide(self, without: Tensor, given: Tensor, scale: float) -> Tensor:
        plain, moved = images.pack(given), images.pack(without + scale * (given - without))
        scaled = moved * (plain.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True))
        return images.unpack(scaled, *given.shape[2:])

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = images.encoded(self.pipe.vae, pixels[:, :, None])
        mean, std = self._statistics(found.mode())
        return ((found.mode() - mean) / std)[:, :, 0], (found.std / std)[:, :, 0]

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        frames = latents.to(self.pipe.vae.device, self.pipe.vae.dtype)[:, :, None]
        mean, std = self._statistics(frames)
        # the pipeline divides by a reciprocal, and so do we, for the same last bits
        return self.pipe.vae.decode(frames / (1 / std) + mean, return_dict=False)[0][:, :, 0]

    def _statistics(self, like: Tensor) -> list[Tensor]:
        config = self.pipe.vae.config
        return [torch.tensor(v).view(1, -1, 1, 1, 1).to(like) for v in (config.latents_mean, config.latents_std)]

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        n, _, height, width = x_t.shape
        mask = conditioning["mask"].bool()
        longest = int(mask.sum(1).max())
        mask = mask[:, :longest]
        output = denoiser(
            hidden_states=images.pack(x_t),
            timestep=t.to(x_t.dtype) / 1000,
            encoder_hidden_states_mask=None if mask.all() else mask,
            encoder_hidden_states=conditioning["prompt_embeds"][:, :longest],
            img_shapes=[[(1, height // 2, width // 2)]] * n,
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

    def pipeline(self, denoiser: nn.Module) -> QwenImagePipeline:
        return type(self.pipe)(**{**self.pipe.components, "transformer": denoiser})

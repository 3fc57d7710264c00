"""Z-Image: a single-stream DiT on lists of images and of prompts, each of its own length."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from diffusers import ZImagePipeline
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
class ZImage(Backbone):
    """predict(x_t, t) = -DiT([x_t], 1 - t; [text states]): its time runs from noise to picture, and so its velocity.

    Text states lie on disk padded to the pipeline's longest prompt, beside their mask. Guidance counts from the
    conditional branch, given + scale * (given - without), so that 0 means none; Turbo wants 0.
    """

    family = "z-image"
    part = "transformer"
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    kohya = staticmethod(adapters.kohya)

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        self.pipe = read_pipeline(ZImagePipeline, source, dtype, device)
        self.denoiser: nn.Module = self.pipe.transformer
        self.process: Flow = flow_of(self.pipe.scheduler.config, source)
        self.tokens: int = inspect.signature(ZImagePipeline.__call__).parameters["max_sequence_length"].default

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.pipe.vae_scale_factor
        return shape_of(height, width, self.denoiser.config.in_channels, factor, 2 * factor)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        # a fresh list: the pipeline writes its template into the one that it is given
        rows, _ = self.pipe.encode_prompt(
            list(prompts),
            self.pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.tokens,
        )
        embeds, mask = images.padded(rows, self.tokens)
        return {"prompt_embeds": embeds, "mask": mask}

    def encode_negative(self) -> Conditioning:
        return self.encode_prompts([""])

    def unread(self, prompt: str) -> str:
        framed = texts.chat(self.pipe.tokenizer, prompt, thinking=True)
        return texts.unread(self.pipe.tokenizer, prompt, self.tokens, framed)

    def size_conditioning(
        self, original: Sequence[tuple[int, int]], target: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)
    ) -> Conditioning:
        return {}

    def unconditional(self, scale: float) -> bool:
        return scale > 0

    def guide(self, without: Tensor, given: Tensor, scale: float) -> Tensor:
        return given + scale * (given - without)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return images.posterior(self.pipe.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return images.decode(self.pipe.vae, latents)

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        lengths = conditioning["mask"].sum(1).long().tolist()
        prompts = [row[:n] for row, n in zip(conditioning["prompt_embeds"], lengths, strict=True)]
        output = denoiser(list(x_t[:, :, None].unbind(0)), (1000 - t) / 1000, prompts, return_dict=False)[0]
        return -torch.stack(output)[:, :, 0]

    def native_size(self) -> int:
        return 1024

    def solver(self, steps: int, latent_shape: tuple[int, int, int]) -> Solver:
        patches = latent_shape[1] * latent_shape[2] // 4
        sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
        return flow_solver(
            self.pipe.scheduler, steps, shift(self.pipe.scheduler.config, patches), self.denoiser.device, sigmas
        )

    def save_lora(self, folder: Path, layers: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.pipe.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)

    def load_lora(self, file: Path) -> None:
        read_lora(self.pipe, file, self.part)

    def pipeline(self, denoiser: nn.Module) -> ZImagePipeline:
        return type(self.pipe)(**{**self.pipe.components, "transformer": denoiser})

"""PixArt-alpha and PixArt-Sigma: a DiT with masked T5 states, epsilon, and variance channels that are not used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline
from diffusers.loaders import SanaLoraLoaderMixin
from torch import Tensor, nn

from diffalign import weights
from diffalign.backbones import latents as images
from diffalign.backbones import texts
from diffalign.backbones.base import Backbone, Conditioning, Solver
from diffalign.backbones.loading import process_of, read_pipeline, shape_of
from diffalign.backbones.lora import adapt
from diffalign.backbones.schedulers import vp_solver
from diffalign.diffusion import VP
from diffalign.weights import Source

TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}


@final
class PixArt(Backbone):
    """predict(x_t, t) = first half of the channels of DiT(x_t, t; T5 states, mask[, size and aspect ratio]).

    The second half is a learned variance, which no sampler of the pipelines reads. alpha at 1024 pixels is told of the
    size that it draws, as its pipeline does.
    """

    family = "pixart"
    part = "transformer"
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    loads_adapters = False

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        name = weights.index(source.folder)["_class_name"]
        kind = PixArtAlphaPipeline if name == "PixArtAlphaPipeline" else PixArtSigmaPipeline
        self.pipe = read_pipeline(kind, source, dtype, device)
        self.denoiser: nn.Module = self.pipe.transformer
        self.process: VP = process_of(self.pipe.scheduler.config, source)
        self.tokens = TOKENS[name]
        self.told_of_size = kind is PixArtAlphaPipeline and self.denoiser.config.sample_size == 128

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        config, factor = self.denoiser.config, self.pipe.vae_scale_factor
        return shape_of(height, width, config.in_channels, factor, factor * config.patch_size)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        embeds, mask, _, _ = self.pipe.encode_prompt(
            list(prompts), False, device=self.pipe.text_encoder.device, max_sequence_length=self.tokens
        )
        return {"prompt_embeds": embeds, "mask": mask}

    def encode_negative(self) -> Conditioning:
        return self.encode_prompts([""])

    def unread(self, prompt: str) -> str:
        return texts.unread(self.pipe.tokenizer, prompt, self.tokens)

    def size_conditioning(
        self, original: Sequence[tuple[int, int]], target: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)
    ) -> Conditioning:
        if not self.told_of_size:
            return {}
        rows, dtype = len(original), torch.promote_types(self.denoiser.dtype, torch.float32)
        sizes = torch.tensor([target] * rows, dtype=dtype)
        return {"resolution": sizes, "aspect_ratio": torch.tensor([[target[0] / target[1]]] * rows, dtype=dtype)}

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return images.posterior(self.pipe.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return images.decode(self.pipe.vae, latents)

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        output = denoiser(
            x_t,
            encoder_hidden_states=conditioning["prompt_embeds"],
            encoder_attention_mask=conditioning["mask"],
            timestep=t,
            added_cond_kwargs={name: conditioning.get(name) for name in ("resolution", "aspect_ratio")},
            return_dict=False,
        )[0]
        return output[:, : x_t.shape[1]]

    def native_size(self) -> int:
        return self.denoiser.config.sample_size * self.pipe.vae_scale_factor

    def solver(self, steps: int, latent_shape: tuple[int, int, int]) -> Solver:
        return vp_solver(self.pipe.scheduler, steps, self.denoiser.device)

    def save_lora(self, folder: Path, layers: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        # PixArt's pipelines have no loader of their own; the layout is that of every other DiT
        SanaLoraLoaderMixin.save_lora_weights(
            folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata
        )

    def load_lora(self, file: Path) -> None:
        adapt(self.denoiser, file, self.part)

    def pipeline(self, denoiser: nn.Module) -> PixArtAlphaPipeline | PixArtSigmaPipeline:
        return type(self.pipe)(**{**self.pipe.components, "transformer": denoiser})

"""What a backbone is, and the one function through which policy and reference both go."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from diffalign import wrapping
from diffalign.adapters import Adapter
from diffalign.diffusion import Noised, Process

Conditioning = dict[str, Tensor]


@dataclass(frozen=True)
class Solver:
    """A sampler at work: times as the denoiser expects them, scale of the first noise, input scaling, step.

    `draws` says that `step` takes `generator`, for schedulers that add noise on the way.
    """

    timesteps: Tensor
    sigma: float | Tensor
    scale: Callable[[Tensor, Tensor], Tensor]
    step: Callable[..., Any]
    draws: bool = False


class Backbone(ABC):
    """A model family's calling convention around one denoiser: its encoders, its latents, its pipeline.

    One final subclass a family. It never hears of pairs. `family` is its name, `part` the folder of the denoiser in
    diffusers' layout ("unet" or "transformer"), `targets` the modules that a LoRA adapts unless told otherwise,
    `loads_adapters` whether diffusers' own pipeline can. What others load of it: `comfyui`, whether ComfyUI knows it;
    `kohya`, (adapter, denoiser) -> tensors under kohya's names, and `single_file`, which writes (pipeline, file), each
    None where nobody reads such a file.
    """

    family: ClassVar[str]
    part: ClassVar[str]
    targets: ClassVar[tuple[str, ...]]
    loads_adapters: ClassVar[bool] = True
    comfyui: ClassVar[bool] = True
    kohya: ClassVar[Callable[[Adapter, nn.Module], dict[str, Tensor]] | None] = None
    single_file: ClassVar[Callable[[Any, Path], None] | None] = None
    pipe: Any
    process: Process
    denoiser: nn.Module

    @property
    def idle(self) -> tuple[str, ...]:
        """Modules whose output nobody reads, so that no gradient reaches them: no adapter is put on them, and full
        training leaves them as they are.
        """
        return ()

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of a picture's latents; raises InputError on a size the model cannot divide."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """What the denoiser is told of each prompt; the first axis of every tensor is the prompt."""

    @abstractmethod
    def encode_negative(self) -> Conditioning:
        """What the denoiser is told in the unconditional branch of guidance, one row, as the family's pipeline does."""

    @abstractmethod
    def unread(self, prompt: str) -> str:
        """The end of a prompt that lies behind what any of the text encoders reads; "" mostly."""

    @abstractmethod
    def size_conditioning(
        self, original: Sequence[tuple[int, int]], target: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)
    ) -> Conditioning:
        """What the denoiser is told of sizes and crops, one row per (height, width) of `original`; {} for most
        families. `at` is the share of what is over that lies above and left of the crop.
        """

    def move(self, device: torch.device | str, *parts: Literal["text_encoder", "vae"]) -> None:
        """Put the text encoders, the autoencoder or both on a device."""
        for name, module in self.pipe.components.items():
            if isinstance(module, nn.Module) and name.startswith(parts):
                module.to(device)

    def guidance_conditioning(self, scale: float) -> Conditioning:
        """What a denoiser that was distilled for guidance is told of its scale, one row; {} for most families."""
        return {}

    def unconditional(self, scale: float) -> bool:
        """Whether guidance at `scale` needs the unconditional branch."""
        return scale > 1

    def guide(self, without: Tensor, given: Tensor, scale: float) -> Tensor:
        """without + scale * (given - without), of outputs; `scale` counts as in the family's pipeline."""
        return without + scale * (given - without)

    @abstractmethod
    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels in [-1, 1], (images, 3, height, width) -> (mean, standard deviation) of the latents, scaled as the
        denoiser expects; the deviation is 0 where the autoencoder knows none.
        """

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels in [-1, 1], (images, 3, height, width) -> posterior mean, scaled as the denoiser expects."""
        return self.posterior(pixels)[0]

    def release(self) -> None:
        """Free the weights of autoencoder and text encoders: nothing is encoded or decoded any more."""
        self.move("meta", "text_encoder", "vae")

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents -> pixels in [-1, 1]."""

    @abstractmethod
    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output at (x_t, t): the family's calling convention and nothing else; t as the denoiser
        expects it.
        """

    @abstractmethod
    def native_size(self) -> int:
        """Height and width in pixels that the model draws by itself."""

    @abstractmethod
    def solver(self, steps: int, latent_shape: tuple[int, int, int]) -> Solver:
        """The model's own diffusers scheduler, fresh, its timesteps set."""

    @abstractmethod
    def save_lora(self, folder: Path, layers: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Write `pytorch_lora_weights.safetensors` in diffusers' layout; without the metadata alpha would be lost."""

    @abstractmethod
    def load_lora(self, file: Path) -> None:
        """Put an adapter file on the denoiser; raises InputError where it does not fit."""

    @abstractmethod
    def pipeline(self, denoiser: nn.Module) -> Any:
        """A diffusers pipeline around `denoiser`, for sampling elsewhere and for export."""


def errors(backbone: Backbone, denoiser: nn.Module, noised: Noised, conditioning: Conditioning) -> Tensor:
    """e = mean over channels and pixels of (prediction - target)^2, (images,).

    Policy and reference both go through here, so both sides of a difference are rounded alike. float32, or float64
    where the network is; prediction and target are cast before they are subtracted.
    """
    return residuals(backbone, denoiser, noised, conditioning).square().flatten(1).mean(1)


def residuals(backbone: Backbone, denoiser: nn.Module, noised: Noised, conditioning: Conditioning) -> Tensor:
    """prediction - target, (images, c, h, w), in float32 (float64 where the network is).

    The network sees x_t in the dtype of its weights; x_t itself, by which outputs are re-expressed, is not rounded.
    """
    process, time = backbone.process, backbone.process.model_time(noised.t)
    dtype = wrapping.dtype(denoiser, noised.x_t)  # x_t's own where nothing is learned
    output = backbone.predict(denoiser, noised.x_t.to(dtype), time, conditioning)
    wide = torch.float64 if output.dtype == torch.float64 else torch.float32
    # a narrow output is widened as it is subtracted, without a copy
    said = process.express(output.to(wide), noised) if process.restates else output
    return said - noised.target.to(wide)


def select(conditioning: Conditioning, rows: Tensor) -> Conditioning:
    """The rows of a conditioning, in the order asked for."""
    return {name: value[rows] for name, value in conditioning.items()}

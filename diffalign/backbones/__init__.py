"""What is aligned: one file a model family, found by the class that the model's own index names."""

from pathlib import Path

import torch

from diffalign import weights
from diffalign.backbones.base import Backbone
from diffalign.backbones.flux import Flux
from diffalign.backbones.flux2 import Flux2Klein
from diffalign.backbones.pixart import PixArt
from diffalign.backbones.qwen_image import QwenImage
from diffalign.backbones.sana import Sana
from diffalign.backbones.sd import SD
from diffalign.backbones.sd3 import SD3
from diffalign.backbones.sdxl import SDXL
from diffalign.backbones.zimage import ZImage
from diffalign.records import InputError

__all__ = [
    *("FAMILIES", "SD", "SD3", "SDXL", "Flux", "Flux2Klein", "PixArt", "QwenImage", "Sana", "ZImage", "load"),
]

FAMILIES: dict[str, type[Backbone]] = {
    "StableDiffusionPipeline": SD,
    "StableDiffusionXLPipeline": SDXL,
    "StableDiffusion3Pipeline": SD3,
    "FluxPipeline": Flux,
    "Flux2KleinPipeline": Flux2Klein,
    "PixArtAlphaPipeline": PixArt,
    "PixArtSigmaPipeline": PixArt,
    "QwenImagePipeline": QwenImage,
    "SanaPipeline": Sana,
    "ZImagePipeline": ZImage,
}


def load(model: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Backbone:
    """The backbone of a model folder or hub id; raises InputError on a pipeline class without a file here."""
    folder: Path = weights.locate(model)
    name = weights.index(folder)["_class_name"]
    if name not in FAMILIES:
        raise InputError(f"{folder}: is a {name}; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name](folder, dtype, torch.device(device))

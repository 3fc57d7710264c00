"""What is aligned: one file a model family, found by the class that the model's own index names."""

from pathlib import Path

import torch

from diffalign import weights
from diffalign.backbones.base import Backbone
from diffalign.backbones.sd3 import SD3
from diffalign.backbones.sdxl import SDXL
from diffalign.records import InputError

__all__ = ["FAMILIES", "SD3", "SDXL", "load"]

FAMILIES: dict[str, type[Backbone]] = {
    "StableDiffusionXLPipeline": SDXL,
    "StableDiffusion3Pipeline": SD3,
}


def load(model: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Backbone:
    """The backbone of a model folder or hub id; raises InputError on a pipeline class without a file here."""
    folder: Path = weights.locate(model)
    name = weights.index(folder)["_class_name"]
    if name not in FAMILIES:
        raise InputError(f"{folder}: is a {name}; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name](folder, dtype, torch.device(device))

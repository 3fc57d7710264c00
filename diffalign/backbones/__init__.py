"""What is aligned: one file a model family, found by the class that the model's own index names."""

import dataclasses

import torch

from diffalign import weights
from diffalign.backbones import kinds, mmdit_file, single_file
from diffalign.backbones.base import Backbone
from diffalign.backbones.flux import Flux
from diffalign.backbones.flux2 import Flux2Klein
from diffalign.backbones.loading import hollow_parts
from diffalign.backbones.pixart import PixArt
from diffalign.backbones.qwen_image import QwenImage
from diffalign.backbones.sana import Sana
from diffalign.backbones.sd import SD
from diffalign.backbones.sd3 import SD3
from diffalign.backbones.sdxl import SDXL
from diffalign.backbones.zimage import ZImage
from diffalign.records import InputError

__all__ = [
    *("FAMILIES", "SD", "SD3", "SDXL", "Flux", "Flux2Klein", "PixArt", "QwenImage", "Sana", "ZImage"),
    *("check_family", "expect", "load", "of_class"),
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


OTHERS = {
    "StableDiffusionXLImg2ImgPipeline": "draws from a picture (the refiner, say), not from text alone",
    "StableDiffusionImg2ImgPipeline": "draws from a picture, not from text alone",
    "StableDiffusionInpaintPipeline": "fills in pictures",
    "StableDiffusionXLInpaintPipeline": "fills in pictures",
    "FluxFillPipeline": "fills in pictures",
    "FluxKontextPipeline": "edits pictures",
    "QwenImageEditPipeline": "edits pictures",
    "QwenImageEditPlusPipeline": "edits pictures",
}


def load(
    model: str,
    *,
    config: str = "",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    encoders: bool = True,
) -> Backbone:
    """The backbone of a model folder, a hub id, or a single file that the folder `config` describes.

    Without `encoders` the weights of autoencoder and text encoders are not read, so nothing can be encoded.
    Raises InputError on a pipeline class without a file here, or a file that `config` does not describe.
    """
    source = dataclasses.replace(weights.locate(model, config), encoders=encoders)
    return _kind(source)(source, dtype, torch.device(device))


def of_class(name: str, model: object) -> type[Backbone]:
    """The backbone of a pipeline class; raises InputError naming the model where there is none here."""
    if name not in FAMILIES:
        what = f", which {OTHERS[name]}" if name in OTHERS else ""
        raise InputError(f"{model}: is a {name}{what}; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def expect(family: str, model: str, config: str = "") -> None:
    """Raise InputError where a model is not of `family` ("any" asks nothing). Only its index is read, or fetched."""
    if family != "any":
        check_family(_kind(weights.locate(model, config, whole=False)), family, model)


def check_family(kind: type[Backbone], family: str, model: object) -> None:
    """Raise InputError where `kind`, which is that of `model`, is not of `family` ("any" asks nothing)."""
    if family not in ("any", kind.family):
        raise InputError(
            f"{model}: is of the family {kind.family}, but the recipe's numbers (resolution, beta, learning rate) are "
            f"for {family}; name a model of that family or a recipe for this one, or say --family {kind.family} to "
            "train by these numbers nevertheless"
        )


def _kind(source: weights.Source) -> type[Backbone]:
    if source.file is not None:
        _check_file(source)
    return of_class(weights.index(source.folder)["_class_name"], source.folder)


def _check_file(source: weights.Source) -> None:
    """Raise InputError unless the folder of `source` says what its single file holds, and has what that lacks."""
    kind, parts = kinds.check(source), hollow_parts(source, denoiser=True)
    part = FAMILIES[kind.pipeline].part
    if part not in parts:
        raise InputError(f"{source.folder / 'model_index.json'}: names no {part}; copy the whole folder")
    if kind.pipeline in mmdit_file.ENCODERS:
        mmdit_file.check(source, kind, {n: m for n, m in parts.items() if source.encoders or n == part})
    else:
        single_file.check(source, parts[part], kind.example)

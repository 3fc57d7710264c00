"""Files in the layouts that others read -> the tensors of a policy by its own names, and a whole network back."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffalign.records import InputError


def fits(source: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], where: str) -> None:
    """Raise InputError naming the first tensor that is missing, foreign or of another shape."""
    for name in sorted(set(source) | set(shapes)):
        if name not in source or name not in shapes or source[name].shape != shapes[name]:
            raise InputError(f"{where}: tensor {name} does not fit this policy")


def adapter(file: Path, part: str, rank: int, alpha: float) -> dict[str, Tensor]:
    """The tensors of an adapter in diffusers' layout under the names they have in a policy of this rank and alpha, B
    scaled to its alpha / rank.
    """
    tensors, metadata = _tensors(file)
    try:
        config = dict(json.loads(metadata.get("lora_adapter_metadata", "{}")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file}: its lora_adapter_metadata is no JSON object ({error})") from None
    there = config.get(f"{part}.r", rank)
    if there != rank:
        raise InputError(f"{file}: has rank {there}, expected that of the policy, {rank}")
    scale = config.get(f"{part}.lora_alpha", there) / alpha
    named = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(f"{part}.").replace(".lora_A.", ".lora_A.default.")
        named[inner.replace(".lora_B.", ".lora_B.default.")] = tensor * scale if ".lora_B." in name else tensor
    return named


def folder(place: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of these names from a denoiser's folder in diffusers' layout; raises InputError where none is."""
    found: dict[str, Tensor] = {}
    for part in sorted(place.glob("*.safetensors")):
        found |= {n: t for n, t in _tensors(part)[0].items() if n in names}
    if not found:
        raise InputError(f"{place}: holds no safetensors of the denoiser")
    return found


def write_like(denoiser: Any, place: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a network like a sharded one, with these whole tensors."""
    kind = next(c for c in type(denoiser).__mro__ if c.__module__.startswith("diffusers."))
    with torch.device("meta"):
        plain = kind.from_config(denoiser.config)
    plain.load_state_dict(tensors, assign=True)
    plain.save_pretrained(place)


def _tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file."""
    try:
        with safe_open(file, "pt") as found:
            return {k: found.get_tensor(k) for k in found.keys()}, found.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: is not a whole safetensors file ({str(error)[:80]})") from None

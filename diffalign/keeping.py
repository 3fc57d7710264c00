"""Latents beside the pictures that were decoded from them: training takes them as they are, and encodes nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffalign import folders, weights
from diffalign.records import InputError


def place(folder: Path, index: int) -> Path:
    """Where the latents of part `index` of the images lie."""
    return folder / "latents" / f"part-{index:05d}.safetensors"


def write(folder: Path, index: int, latents: Mapping[str, Tensor]) -> None:
    """Write the latents of one part by image id, float32, (c, h, w) each, atomically."""
    tensors = {name: value.float().contiguous() for name, value in latents.items()}
    folders.write_atomically(place(folder, index), save(tensors))


def is_whole(folder: Path, index: int, ids: Sequence[str]) -> bool:
    """Whether the latents of all these images are there."""
    try:
        return set(weights.header(place(folder, index))) == set(ids)
    except InputError:
        return False


def read(folder: Path, index: int, ids: Sequence[str]) -> dict[str, Tensor]:
    """The latents of a part's images by id; those that are not there are left out."""
    file = place(folder, index)
    try:
        with safe_open(file, "pt") as found:
            known = set(found.keys())
            return {name: found.get_tensor(name).clone() for name in ids if name in known}
    except (OSError, SafetensorError):
        return {}


def of(folder: Path, ids: Sequence[str], shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """The kept latents of images of `folder` or its ancestors, of those that have some, of this shape and finite."""
    wanted, found = set(ids), {}
    for ancestor in folders.lineage(folder):
        for file in sorted((ancestor / "latents").glob("part-*.safetensors")):
            known = weights.header(file)
            here = [name for name in known if name in wanted and tuple(known[name]) == shape]
            if here:
                found |= read(ancestor, int(file.stem.removeprefix("part-")), here)
    return {name: value for name, value in found.items() if bool(torch.isfinite(value).all())}

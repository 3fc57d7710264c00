"""Latents beside the pictures that were decoded from them: training takes them as they are, and encodes nothing."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
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
        return rows(dict.fromkeys(weights.header(file), file), ids)
    except InputError:
        return {}


def index(folder: Path, ids: Collection[str], model: str) -> dict[str, Path]:
    """In which file the latents of images of `folder` or its ancestors are kept, of those that `model` (its content
    hash) drew and that have some.

    Raises InputError on a file that is damaged.
    """
    wanted, found = set(ids), {}
    drawn = [p for p in folders.lineage(folder) if folders.load(p).arguments.get("model") == model]
    for ancestor in drawn:
        for file in sorted((ancestor / "latents").glob("part-*.safetensors")):
            found |= {name: file for name in weights.header(file) if name in wanted}
    return found


def rows(found: Mapping[str, Path], ids: Sequence[str]) -> dict[str, Tensor]:
    """The kept latents of those of the ids that have some, by what `index` found."""
    kept = {}
    for file in dict.fromkeys(found[name] for name in ids if name in found):
        with safe_open(file, "pt") as tensors:
            kept |= {name: tensors.get_tensor(name).clone() for name in ids if found.get(name) == file}
    return kept

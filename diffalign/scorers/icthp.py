"""ICT and HP: how much of the text an image contains, and how well made it is whatever the text says."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from diffalign.records import InputError
from diffalign.scorers.base import Scorer
from diffalign.scorers.checkpoints import WEIGHTS, file_in, folder_of, locate, read, revision
from diffalign.scorers.heads import LAYERS, folded
from diffalign.scorers.tokens import openai
from diffalign.scorers.towers import VOCABULARY, Towers

ICT, HP = "8y/ICT", "8y/HP"
_HEAD = "hp_scorer/mlp_pytorch_model.bin"


def ict(place: str) -> Scorer:
    """cos(image, prompt), at most 1, of a CLIP trained towards the share of the text that the image contains.

    `place` is a folder in transformers' layout or a hub id. Its authors state no probability.
    Source: Ba et al. 2025 (ICTHP), section 3; MIT licence.
    """
    folder = folder_of(locate(place, ICT, ("config.json", *WEIGHTS, "*.safetensors")))
    return Scorer("ict", revision(folder), "PIL bicubic, floor crop", lambda: Ict(folder))


def hp(place: str) -> Scorer:
    """sigmoid(head(f(image))), in [0, 1]: the quality of an image, whatever the prompt says.

    `place` is a folder with `hp_backbone/` and `hp_scorer/`, or a hub id. Its authors state no probability.
    Source: Ba et al. 2025 (ICTHP), section 3; MIT licence.
    """
    folder = locate(place, HP, ("hp_backbone/*", _HEAD))
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file, expected a folder with hp_backbone/ and hp_scorer/")
    tower, head = folder_of(folder / "hp_backbone"), file_in(folder, _HEAD)
    return Scorer("hp", revision(head, tower), "PIL bicubic, floor crop", lambda: Hp(tower, head))


def icthp(place: str) -> Scorer:
    """ICT · HP, the product of both; `place` is "ICT,HP", each a folder or hub id."""
    first, _, second = place.partition(",")
    parts = ict(first), hp(second)
    return Scorer("icthp", "".join(p.revision for p in parts), parts[0].preprocessing, lambda: Product(parts))


class Ict:
    """The loaded scorer; open_clip's tokenizer, as the authors' inference has it, and transformers' crop."""

    def __init__(self, folder: Path) -> None:
        self.towers = Towers(folder, openai(), "floor", VOCABULARY)

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """Scores, float32, (images,)."""
        return self.towers.cosine(images, prompts).cpu().numpy()


class Hp:
    """The loaded scorer; its head sees the embedding as it is, not normalised."""

    def __init__(self, tower: Path, head: Path) -> None:
        self.towers = Towers(tower, openai(), "floor", VOCABULARY)
        width = self.towers.model.config.projection_dim
        self.head = folded(read(head), LAYERS, width, head)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """Scores, float64, (images,)."""
        weight, bias = self.head
        return torch.sigmoid(self.towers.seen(images).cpu().double() @ weight + bias).numpy()


class Product:
    """The product of scorers' scores."""

    def __init__(self, parts: Sequence[Scorer]) -> None:
        self.parts = [part.function for part in parts]

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """Scores, (images,)."""
        return np.prod([np.asarray(part(images, prompts), np.float64) for part in self.parts], axis=0)

"""ICT and HP: how much of the text an image contains, and how well made it is whatever the text says."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffalign.records import InputError
from diffalign.scorers.base import Scorer
from diffalign.scorers.checkpoints import WEIGHTS, file_in, folder_of, locate, read, revision
from diffalign.scorers.networks import Networks

if TYPE_CHECKING:
    import torch

ICT, HP = "8y/ICT", "8y/HP"
_HEAD = "hp_scorer/mlp_pytorch_model.bin"


def ict(place: str) -> Scorer:
    """cos(image, prompt), at most 1, of a CLIP trained towards the share of the text that the image contains.

    `place` is a folder in transformers' layout or a hub id. Its authors state no probability.
    Source: Ba et al. 2025 (ICTHP), section 3; MIT licence.
    """
    folder = folder_of(locate(place, ICT, ("config.json", *WEIGHTS, "*.safetensors")))
    return Scorer("ict", revision(folder), "PIL bicubic, floor crop", lambda: Ict(folder), towers=True)


def hp(place: str) -> Scorer:
    """sigmoid(head(f(image))), in [0, 1]: the quality of an image, whatever the prompt says.

    `place` is a folder with `hp_backbone/` and `hp_scorer/`, or a hub id. Its authors state no probability.
    Source: Ba et al. 2025 (ICTHP), section 3; MIT licence.
    """
    folder = locate(place, HP, ("hp_backbone/*", _HEAD))
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file, expected a folder with hp_backbone/ and hp_scorer/")
    tower, head = folder_of(folder / "hp_backbone"), file_in(folder, _HEAD)
    opened = revision(head, tower)
    return Scorer("hp", opened, "PIL bicubic, floor crop", lambda: Hp(tower, head), blind=True, towers=True)


def icthp(place: str) -> Scorer:
    """ICT · HP, the product of both; `place` is "ICT,HP", each a folder or hub id."""
    first, _, second = place.partition(",")
    parts = ict(first), hp(second)
    opened = "".join(part.revision for part in parts)
    return Scorer("icthp", opened, parts[0].preprocessing, lambda: Product(parts), towers=True)


class Ict(Networks):
    """The loaded scorer; open_clip's tokenizer, as the authors' inference has it, and transformers' crop."""

    def __init__(self, folder: Path) -> None:
        from diffalign.scorers.tokens import openai
        from diffalign.scorers.towers import VOCABULARY, Towers

        self.clip = Towers(folder, openai(), "floor", VOCABULARY)
        self.preprocess, self.towers = self.clip.preprocess, self.clip.parts

    def see(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Embeddings, (images, dimension)."""
        return self.clip.seen(pixels)

    def weigh(self, seen: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Scores, float32, (images,)."""
        return self.clip.cosine(seen, prompts)


class Hp(Networks):
    """The loaded scorer; its head sees the embedding as it is, not normalised."""

    def __init__(self, tower: Path, head: Path) -> None:
        from diffalign.scorers.heads import LAYERS, folded
        from diffalign.scorers.tokens import openai
        from diffalign.scorers.towers import VOCABULARY, Towers

        self.clip = Towers(tower, openai(), "floor", VOCABULARY)
        self.preprocess, self.towers = self.clip.preprocess, self.clip.parts
        self.head = folded(read(head), LAYERS, self.clip.model.config.projection_dim, head)

    def see(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Embeddings, (images, dimension)."""
        return self.clip.seen(pixels)

    def weigh(self, seen: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Scores, float64, (images,)."""
        weight, bias = (part.to(seen.device) for part in self.head)
        return (seen.double() @ weight + bias).sigmoid()


class Product(Networks):
    """The product of two scorers' scores, which take the same pixels; raises InputError where they do not."""

    def __init__(self, parts: Sequence[Scorer]) -> None:
        self.parts: list[Networks] = [part.function for part in parts]
        self.preprocess = self.parts[0].preprocess
        if any(part.preprocess != self.preprocess for part in self.parts):
            raise InputError(f"scorer icthp: {' and '.join(str(part.preprocess) for part in self.parts)} are not alike")
        self.towers = tuple(tower for part in self.parts for tower in part.towers)

    def see(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """The embeddings of both, side by side, (images, dimensions)."""
        import torch

        return torch.cat([part.see(pixels) for part in self.parts], -1)

    def weigh(self, seen: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Scores, float64, (images,)."""
        first, second = self.parts
        width = first.clip.model.config.projection_dim
        return first.weigh(seen[:, :width], prompts).double() * second.weigh(seen[:, width:], prompts)

"""CLIPScore: how well an image fits its prompt, by a CLIP that no preference has touched."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffalign.scorers.base import Scorer
from diffalign.scorers.checkpoints import WEIGHTS, folder_of, locate, revision
from diffalign.scorers.networks import Networks
from diffalign.scorers.openclip import WEIGHTS as OPEN_CLIP
from diffalign.scorers.openclip import open_folder

if TYPE_CHECKING:
    import torch

OFFICIAL = "openai/clip-vit-large-patch14"
FIRST = "openai/clip-vit-base-patch32"
_FILES = ("config.json", "open_clip_config.json", *WEIGHTS[:2], "*.safetensors")


def clipscore(place: str) -> Scorer:
    """cos(image, prompt), in [-1, 1], typically 0.1 to 0.4, by OpenAI's ViT-L/14 or the CLIP named.

    `place` is a folder or hub id in the layout of transformers, or an open_clip folder (`open_clip_config.json`).
    P(first is better) = sigmoid(exp(logit_scale) · difference), which is no calibrated preference.
    """
    folder = locate(place, OFFICIAL, _FILES)
    # folders on the hub often hold both layouts, and one of them as a pickle
    if any((folder / name).is_file() for name in OPEN_CLIP) or not (folder / "config.json").is_file():
        return open_folder("clipscore", folder)
    return _scorer("clipscore", folder, "", 1.0)


def clipscore_original(place: str) -> Scorer:
    """2.5 · max(cos(image, "A photo depicts " + prompt), 0), by OpenAI's ViT-B/32 or the CLIP named.

    Source: Hessel et al. 2021 (CLIPScore), equation 1 and its prefix; the paper reports the mean over images.
    """
    return _scorer("clipscore_original", locate(place, FIRST, _FILES), "A photo depicts ", 2.5)


def _scorer(name: str, folder: Path, prefix: str, weight: float) -> Scorer:
    preprocessing = "PIL bicubic, rounded crop" + (f", prefix {prefix!r}, times {weight}" if prefix else "")
    opened = revision(folder_of(folder))
    return Scorer(
        name, opened, preprocessing, lambda: ClipScore(folder, prefix, weight), lambda f: f.scale, towers=True
    )


class ClipScore(Networks):
    """The loaded scorer; OpenAI's tokenizer and torchvision's crop, as OpenAI's own package has them."""

    def __init__(self, folder: Path, prefix: str = "", weight: float = 1.0) -> None:
        from diffalign.scorers.tokens import openai
        from diffalign.scorers.towers import VOCABULARY, Towers

        self.clip = Towers(folder, openai(), "round", VOCABULARY)
        self.preprocess, self.towers = self.clip.preprocess, self.clip.parts
        self.prefix, self.weight = prefix, weight

    @property
    def scale(self) -> float:
        """By what a difference of scores is multiplied to be the model's own log-odds."""
        return self.clip.scale / self.weight

    def see(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Embeddings, (images, dimension)."""
        return self.clip.seen(pixels)

    def weigh(self, seen: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Scores, float32, (images,)."""
        cosine = self.clip.cosine(seen, [self.prefix + prompt for prompt in prompts])
        return self.weight * cosine.clamp(min=0) if self.prefix else cosine

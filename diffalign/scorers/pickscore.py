"""PickScore: CLIP ViT-H/14 fine-tuned on the choices of the Pick-a-Pic users."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffalign.scorers.base import Scorer
from diffalign.scorers.checkpoints import TOKENIZER, WEIGHTS, folder_of, locate, revision
from diffalign.scorers.networks import Networks

if TYPE_CHECKING:
    import torch

OFFICIAL = "yuvalkirstain/PickScore_v1"


def pickscore(place: str) -> Scorer:
    """exp(logit_scale) · cos(image, prompt), about 16 to 26; `place` is a folder in transformers' layout or a hub id.

    P(first is better) = sigmoid(difference). Source: Kirstain et al. 2023 (Pick-a-Pic), section 4; MIT licence.
    """
    folder = folder_of(locate(place, OFFICIAL, ("config.json", *WEIGHTS[:2], "*.safetensors", *TOKENIZER)))
    return Scorer(
        "pickscore", revision(folder), "PIL bicubic, floor crop", lambda: PickScore(folder), lambda _: 1.0, towers=True
    )


class PickScore(Networks):
    """The loaded scorer; transformers' CLIP tokenizer and crop, as the authors used them."""

    def __init__(self, folder: Path) -> None:
        from diffalign.scorers.tokens import clip
        from diffalign.scorers.towers import Towers

        self.clip = Towers(folder, clip(folder), "floor")
        self.preprocess, self.towers = self.clip.preprocess, self.clip.parts

    def see(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Embeddings, (images, dimension)."""
        return self.clip.seen(pixels)

    def weigh(self, seen: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Scores, float32, (images,)."""
        return self.clip.scale * self.clip.cosine(seen, prompts)

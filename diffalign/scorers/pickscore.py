"""PickScore: CLIP ViT-H/14 fine-tuned on the choices of the Pick-a-Pic users."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL.Image import Image

from diffalign.scorers.base import Scorer
from diffalign.scorers.checkpoints import TOKENIZER, WEIGHTS, folder_of, locate, revision
from diffalign.scorers.tokens import clip
from diffalign.scorers.towers import Towers

OFFICIAL = "yuvalkirstain/PickScore_v1"


def pickscore(place: str) -> Scorer:
    """exp(logit_scale) · cos(image, prompt), about 16 to 26; `place` is a folder in transformers' layout or a hub id.

    P(first is better) = sigmoid(difference). Source: Kirstain et al. 2023 (Pick-a-Pic), section 4; MIT licence.
    """
    folder = folder_of(locate(place, OFFICIAL, ("config.json", *WEIGHTS[:2], "*.safetensors", *TOKENIZER)))
    return Scorer("pickscore", revision(folder), "PIL bicubic, floor crop", lambda: PickScore(folder), lambda _: 1.0)


class PickScore:
    """The loaded scorer; transformers' CLIP tokenizer and crop, as the authors used them."""

    def __init__(self, folder: Path) -> None:
        self.towers = Towers(folder, clip(folder), "floor")

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """Scores, float32, (images,)."""
        return (self.towers.scale * self.towers.cosine(images, prompts)).cpu().numpy()

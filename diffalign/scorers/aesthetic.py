"""LAION's aesthetic predictor v2: how beautiful an image is held to be, whatever was asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffalign.scorers.base import Scorer
from diffalign.scorers.checkpoints import (
    WEIGHTS,
    device,
    file_in,
    folder_of,
    locate,
    open_pretrained,
    read,
    revision,
    split,
)
from diffalign.scorers.networks import Networks

if TYPE_CHECKING:
    import torch

TOWER = "openai/clip-vit-large-patch14"
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
# the same tensors on the hub, where the predictor's authors have none
COPY, COPIED = "trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth"


def aesthetic(place: str) -> Scorer:
    """head(f(image) / |f(image)|), about 1 to 10, of OpenAI's CLIP ViT-L/14; the prompt is not looked at.

    `place` is "HEAD" or "HEAD,TOWER": the file sac+logos+ava1-l14-linearMSE.pth of the predictor's repository, its
    folder or a hub id with it (default: a copy of it in the hub cache), and a folder or hub id with the CLIP (default:
    the hub cache). Its authors state no probability.
    Source: Schuhmann et al. 2022 (LAION-5B), improved-aesthetic-predictor; Apache-2.0 licence.
    """
    head, tower = split(place, 2)
    path = file_in(locate(head, COPY, (HEAD, COPIED)), HEAD, COPIED)
    folder = folder_of(locate(tower, TOWER, ("config.json", *WEIGHTS[:2], "*.safetensors")))
    opened = revision(path, folder)
    return Scorer(
        "aesthetic", opened, "PIL bicubic, rounded crop", lambda: Aesthetic(path, folder), blind=True, towers=True
    )


class Aesthetic(Networks):
    """The loaded scorer."""

    def __init__(self, path: Path, folder: Path) -> None:
        from transformers import CLIPConfig, CLIPVisionModelWithProjection

        from diffalign.scorers.heads import LAYERS, folded
        from diffalign.scorers.pixels import Cropped

        whole = CLIPConfig.from_pretrained(folder, local_files_only=True)
        # saved folders may give the projection's width beside the towers only
        whole.vision_config.projection_dim = whole.projection_dim
        spare = ("text_model.", "text_projection.", "logit_scale")
        kind = CLIPVisionModelWithProjection
        self.tower = open_pretrained(kind, folder, spare, whole.vision_config).to(device())
        self.head = folded(read(path), LAYERS, self.tower.config.projection_dim, path)
        self.preprocess, self.towers = Cropped(self.tower.config.image_size, floor=False), (self.tower,)

    def see(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Embeddings, (images, dimension)."""
        return self.tower(pixels).image_embeds

    def weigh(self, seen: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Scores, float64, (images,)."""
        from diffalign.scorers.towers import normal

        weight, bias = (part.to(seen.device) for part in self.head)
        return normal(seen).double() @ weight + bias

"""Aesthetic predictor v2.5: how beautiful an image is held to be, by a head on SigLIP."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffalign.records import InputError
from diffalign.scorers.base import Scorer
from diffalign.scorers.checkpoints import WEIGHTS, device, folder_of, locate, open_pretrained, read, revision, split
from diffalign.scorers.networks import Networks

if TYPE_CHECKING:
    import torch

TOWER = "google/siglip-so400m-patch14-384"


def aesthetic_v2_5(place: str) -> Scorer:
    """head(f(image) / |f(image)|), about 1 to 10, great above 5.5 by its author; the prompt is not looked at.

    `place` is "HEAD" or "HEAD,TOWER": the author's file aesthetic_predictor_v2_5.pth, whose licence is AGPL-3.0 and
    which is therefore never fetched, and a folder or hub id with SigLIP (default: the hub cache). No probability is
    stated. Source: aesthetic-predictor-v2-5.
    """
    head, tower = split(place, 2)
    if not head:
        wanted = "aesthetic_v2.5=aesthetic_predictor_v2_5.pth (AGPL-3.0: fetch it yourself)"
        raise InputError(f"scorer aesthetic_v2.5: needs the head's file, {wanted}")
    if not Path(head).is_file():
        raise InputError(f"{head}: no such file")
    folder = folder_of(locate(tower, TOWER, ("config.json", *WEIGHTS[:2], "*.safetensors")))
    opened = revision(Path(head), folder)
    return Scorer(
        "aesthetic_v2.5", opened, "PIL bicubic, squashed", lambda: AestheticV25(Path(head), folder),
        blind=True, towers=True,
    )  # fmt: skip


class AestheticV25(Networks):
    """The loaded scorer."""

    def __init__(self, path: Path, folder: Path) -> None:
        from transformers import SiglipVisionModel

        from diffalign.scorers.heads import LAYERS, folded
        from diffalign.scorers.pixels import Squashed

        spare = ("text_model.", "logit_scale", "logit_bias", "vision_model.embeddings.position_ids")
        self.tower = open_pretrained(SiglipVisionModel, folder, spare).to(device())
        state = {name.removeprefix("scoring_head."): tensor for name, tensor in read(path).items()}
        self.head = folded(state, LAYERS, self.tower.config.hidden_size, path)
        self.preprocess, self.towers = Squashed(self.tower.config.image_size), (self.tower,)

    def see(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Embeddings, (images, dimension)."""
        return self.tower(pixels).pooler_output

    def weigh(self, seen: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Scores, float64, (images,)."""
        from diffalign.scorers.towers import normal

        weight, bias = (part.to(seen.device) for part in self.head)
        return normal(seen).double() @ weight + bias

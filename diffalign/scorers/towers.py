"""Two towers of the CLIP family in transformers' layout: what PickScore, CLIPScore and their relatives stand on."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from diffalign.records import InputError
from diffalign.scorers.checkpoints import device, open_pretrained
from diffalign.scorers.networks import Remembered
from diffalign.scorers.pixels import Cropped
from diffalign.scorers.tokens import Tokenize

# The vocabulary of OpenAI's tokenizer, of which open_clip ships the merges.
VOCABULARY = 49408


class Towers:
    """Image and text embeddings of a CLIPModel, projected; float32, on the device of the model.

    crop: "floor" (transformers' processor) or "round" (torchvision, OpenAI). Raises InputError for weights that do not
    fit, or a vocabulary other than `vocabulary` where one is demanded.
    """

    def __init__(self, folder: Path, tokenize: Tokenize, crop: str, vocabulary: int | None = None) -> None:
        from transformers import CLIPModel

        self.model = open_pretrained(CLIPModel, folder).to(device())
        text = self.model.config.text_config
        if vocabulary is not None and text.vocab_size != vocabulary:
            raise InputError(f"{folder}: has a vocabulary of {text.vocab_size}, expected CLIP's own of {vocabulary}")
        self.tokenize = tokenize
        self.preprocess = Cropped(self.model.config.vision_config.image_size, floor=crop == "floor")
        self.scale = float(self.model.logit_scale.exp())
        self.said = Remembered(self.read)

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The networks, without the temperature."""
        m = self.model
        return m.vision_model, m.visual_projection, m.text_model, m.text_projection

    def seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """Image embeddings, not normalised, (images, dimension)."""
        return wide(self.model.visual_projection(self.model.vision_model(pixels).pooler_output))

    def cosine(self, seen: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """cos(image, prompt), (images,), of image embeddings."""
        return (normal(seen) * normal(self.said(prompts))).sum(-1)

    def read(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompt embeddings, not normalised, (prompts, dimension)."""
        tokens = {name: ids.to(self.model.device) for name, ids in self.tokenize(prompts).items()}
        return wide(self.model.text_projection(self.model.text_model(**tokens).pooler_output))


def normal(features: torch.Tensor) -> torch.Tensor:
    """Features of length one, in float32 at least."""
    features = wide(features)
    return features / features.norm(dim=-1, keepdim=True)


def wide(x: torch.Tensor) -> torch.Tensor:
    """In float32, or in float64 where it is that."""
    return x if x.dtype == torch.float64 else x.float()

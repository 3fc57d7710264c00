"""Two towers of the CLIP family in transformers' layout: what PickScore, CLIPScore and their relatives stand on."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image

from diffalign.records import InputError
from diffalign.scorers.checkpoints import device, open_pretrained
from diffalign.scorers.pixels import cropped
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
        self.preprocess = cropped(self.model.config.vision_config.image_size, floor=crop == "floor")

    @property
    def scale(self) -> float:
        """exp(logit_scale), the factor of the cosine in the model's own softmax."""
        return float(self.model.logit_scale.exp())

    @torch.no_grad()
    def seen(self, images: Sequence[Image]) -> torch.Tensor:
        """Image embeddings, not normalised, (images, dimension)."""
        pixels = torch.stack([self.preprocess(image) for image in images]).to(self.model.device)
        return self.model.visual_projection(self.model.vision_model(pixels).pooler_output).float()

    @torch.no_grad()
    def said(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text embeddings, not normalised, (prompts, dimension); each unique prompt is encoded once."""
        unique = list(dict.fromkeys(prompts))
        tokens = {name: ids.to(self.model.device) for name, ids in self.tokenize(unique).items()}
        found = self.model.text_projection(self.model.text_model(**tokens).pooler_output).float()
        place = {text: i for i, text in enumerate(unique)}
        return found[[place[p] for p in prompts]]

    def cosine(self, images: Sequence[Image], prompts: Sequence[str]) -> torch.Tensor:
        """cos(image, prompt), float32, (images,)."""
        return (normal(self.seen(images)) * normal(self.said(prompts))).sum(-1)


def normal(features: torch.Tensor) -> torch.Tensor:
    """Features of length one, in float32."""
    features = features.float()
    return features / features.norm(dim=-1, keepdim=True)

"""Two towers of the CLIP family in transformers' layout: what PickScore, CLIPScore and their relatives stand on."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from diffalign.records import InputError
from diffalign.scorers.checkpoints import device, open_pretrained
from diffalign.scorers.networks import Remembered
from diffalign.scorers.pixels import HALF, Cropped, Squashed
from diffalign.scorers.tokens import Tokenize, siglip

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


class SiglipTowers:
    """Image and text embeddings of a SiglipModel (SigLIP, and SigLIP 2 of one resolution), float32.

    A text's is that of its last place, which is padding in most; so prompts are padded as it learnt. Raises InputError
    for weights that do not fit, or a way of resizing that is not known.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import SiglipModel

        self.model = open_pretrained(SiglipModel, folder).to(device())
        vision = self.model.config.vision_config
        if not vision.vision_use_head:
            raise InputError(f"{folder}: its image tower has no pooling head, so it gives no embedding")
        self.tokenize = siglip(folder, self.model.config.text_config.max_position_embeddings)
        self.preprocess = _squashed(folder / "preprocessor_config.json", vision.image_size)
        self.scale = float(self.model.logit_scale.exp())

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The networks, without temperature and bias."""
        return self.model.vision_model, self.model.text_model

    def seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """Image embeddings, not normalised, (images, dimension)."""
        return wide(self.model.vision_model(pixels).pooler_output)

    def read(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompt embeddings, not normalised, (prompts, dimension)."""
        ids = self.tokenize(prompts)["input_ids"].to(self.model.device)
        return wide(self.model.text_model(ids).pooler_output)


def _squashed(path: Path, size: int) -> Squashed:
    """How a SigLIP folder's image processor resizes and normalises; raises InputError where it does otherwise."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; it says how pictures are resized")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        how = said.get("resample", 3)
        mean, std = (tuple(map(float, said.get(f"image_{what}", HALF))) for what in ("mean", "std"))
        plain = {said.get(f"do_{step}", True) for step in ("resize", "rescale", "normalize")} == {True}
        plain = plain and math.isclose(float(said.get("rescale_factor", 1 / 255)), 1 / 255, rel_tol=1e-6)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is no configuration of an image processor ({error})") from None
    if how not in (2, 3) or not plain or (len(mean), len(std)) != (3, 3) or min(std) <= 0:
        raise InputError(
            f"{path}: resample {how}, expected 2 (bilinear) or 3 (bicubic), rescaled by 1/255 and normalised"
        )
    return Squashed(size, mean, std, bilinear=how == 2)


def normal(features: torch.Tensor) -> torch.Tensor:
    """Features of length one, in float32 at least."""
    features = wide(features)
    return features / features.norm(dim=-1, keepdim=True)


def wide(x: torch.Tensor) -> torch.Tensor:
    """In float32, or in float64 where it is that."""
    return x if x.dtype == torch.float64 else x.float()

"""VQAScore: how likely a vision-language model says "Yes" when asked whether the image shows the prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL.Image import Image

from diffalign.records import InputError
from diffalign.scorers.base import Scorer
from diffalign.scorers.checkpoints import revision
from diffalign.scorers.local import Local, place_of
from diffalign.scorers.networks import Differentiable
from diffalign.scorers.server import picture

if TYPE_CHECKING:
    import torch

QUESTION = 'Does this figure show "{prompt}"? Please answer Yes or No.'


def vqascore(place: str) -> Scorer:
    """P("Yes" | image, question about the prompt), in [0, 1], over the whole vocabulary, of a current VLM.

    `place` is a folder or hub id of an instruction-tuned model of transformers (say Qwen2.5-VL, Qwen3-VL). Its authors
    state no probability of preference. `judge=vqascore,local,MODEL` gives P(Yes) / (P(Yes) + P(No)) instead.
    Source: Lin et al. 2024 (VQAScore), equation 1, with a chat model in place of CLIP-FlanT5.
    """
    if not place:
        raise InputError("scorer vqascore: needs a model, vqascore=FOLDER or a hub id")
    folder = place_of(place)
    return Scorer("vqascore", revision(folder), "PNG, the model's own processor", lambda: Vqa(folder), towers=True)


class Vqa(Differentiable):
    """The loaded scorer. Raises InputError for a model to which "Yes" is several tokens."""

    def __init__(self, folder: Path) -> None:
        self.local = Local(folder)
        yes = self.local.words.encode("Yes", add_special_tokens=False)
        if len(yes) != 1:
            raise InputError(f"{folder}: its tokenizer cuts 'Yes' into {len(yes)} tokens, so P(Yes) is not one number")
        self.yes = yes[0]

    def cast(self, dtype: "torch.dtype") -> None:
        """Compute the model in `dtype`."""
        self.local.cast(dtype)

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """Scores, float32, (images,)."""
        bodies = [_asked(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        return self.local.first(bodies)[:, self.yes].exp().cpu().numpy()

    def differentiable(self, pixels: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """See `Differentiable`; of models with the image processor of Qwen2-VL."""
        from diffalign.scorers.pixels import rounded

        bodies = [_asked(rounded(x), prompt) for x, prompt in zip(pixels, prompts, strict=True)]
        return self.local.first_through(bodies, pixels)[:, self.yes].exp()


def _asked(image: Image, prompt: str) -> dict:
    words = {"type": "text", "text": QUESTION.replace("{prompt}", prompt)}
    return {"messages": [{"role": "user", "content": [picture(image), words]}]}

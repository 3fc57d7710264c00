"""Cosine similarity of image and prompt by any open_clip folder: `open_clip_config.json` beside safetensors weights."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL.Image import Image

from diffalign import places
from diffalign.records import InputError
from diffalign.scorers.base import Scorer

# The two names that open_clip's own search takes before any pickle.
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")


def shapes_clip(place: str) -> Scorer:
    """The embedded world's CLIP, from its shipped folder or the one named."""
    return open_folder("shapes_clip", Path(place) if place else places.asset("shapes/clip"))


def clip(place: str) -> Scorer:
    """The CLIP of the open_clip folder named; raises InputError where none is."""
    if not place:
        raise InputError("scorer clip: needs a folder, clip=FOLDER")
    return open_folder("clip", Path(place))


def open_folder(name: str, folder: Path) -> Scorer:
    """The scorer `name` by the open_clip folder; P(first is better) = sigmoid(exp(logit_scale) · difference)."""
    config = _config(folder)
    if not any((folder / weights).is_file() for weights in _WEIGHTS):
        raise InputError(f"{folder}: holds no {' or '.join(_WEIGHTS)}; pickled weights are never loaded")
    from diffalign.weights import fingerprint

    preprocessing = "open_clip " + json.dumps(config.get("preprocess_cfg", {}), sort_keys=True)
    return Scorer(name, fingerprint(folder), preprocessing, lambda: OpenClip(folder), lambda f: f.scale)


def _config(folder: Path) -> dict:
    path = folder / "open_clip_config.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected an open_clip folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model_cfg"]["vision_cfg"], config["model_cfg"]["text_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not an open_clip configuration ({type(error).__name__}: {error})") from None
    return config


class OpenClip:
    """cos(f_image(x), f_text(c)), in [-1, 1], features normalised in float32.

    A folder with a tokenizer of its own says so in `text_cfg` (`hf_tokenizer_name`). Raises InputError for weights that
    do not fit the configuration. Source: Hessel et al. 2021 (CLIPScore), equation 1, without its factor and clipping.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        import open_clip
        import torch
        from safetensors import SafetensorError

        from diffalign.weights import settle

        name = f"local-dir:{folder.resolve()}"
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model, _, self.transform = open_clip.create_model_and_transforms(name)
            self.tokenizer = open_clip.get_tokenizer(name)
        except (RuntimeError, ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
            line = " ".join(str(error).split())[:300]
            raise InputError(f"{folder}: open_clip cannot load it ({type(error).__name__}: {line})") from None
        self.model = settle(model.eval().requires_grad_(False).to(self.device))
        self.scale = float(self.model.logit_scale.exp())

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """Similarity of each image to its prompt, float32, (images,); each unique prompt is encoded once."""
        import torch

        unique = list(dict.fromkeys(prompts))
        pixels = torch.stack([self.transform(image) for image in images])
        tokens = self.tokenizer(unique)
        with torch.no_grad():
            seen = self._unit(self.model.encode_image(pixels.to(self.device)))
            said = self._unit(self.model.encode_text(tokens.to(self.device)))
        place = {text: i for i, text in enumerate(unique)}
        return (seen * said[[place[p] for p in prompts]]).sum(-1).cpu().numpy()

    @staticmethod
    def _unit(features):
        features = features.float()
        return features / features.norm(dim=-1, keepdim=True)

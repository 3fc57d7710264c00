"""Cosine similarity of image and prompt by any open_clip folder: `open_clip_config.json` beside safetensors weights."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffalign import places
from diffalign.records import InputError
from diffalign.scorers.base import Scorer
from diffalign.scorers.networks import Networks, Remembered

if TYPE_CHECKING:
    import torch

# The two names that open_clip's own search takes before any pickle.
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")


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
    if not any((folder / weights).is_file() for weights in WEIGHTS):
        raise InputError(f"{folder}: holds no {' or '.join(WEIGHTS)}; pickled weights are never loaded")
    from diffalign.weights import fingerprint

    preprocessing = "open_clip " + json.dumps(config.get("preprocess_cfg", {}), sort_keys=True)
    return Scorer(name, fingerprint(folder), preprocessing, lambda: OpenClip(folder), lambda f: f.scale, towers=True)


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


class OpenClip(Networks):
    """cos(f_image(x), f_text(c)), in [-1, 1], features normalised in float32.

    A folder with a tokenizer of its own says so in `text_cfg` (`hf_tokenizer_name`). Raises InputError for weights that
    do not fit the configuration. Source: Hessel et al. 2021 (CLIPScore), equation 1, without its factor and clipping.
    """

    def __init__(self, folder: Path) -> None:
        import open_clip
        from safetensors import SafetensorError

        from diffalign.scorers.checkpoints import device
        from diffalign.scorers.tokens import open_clip_folder
        from diffalign.weights import settle

        name = f"local-dir:{folder.resolve()}"
        try:
            model, _, transform = open_clip.create_model_and_transforms(name)
            self.tokenize = open_clip_folder(folder)
        except (RuntimeError, ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
            line = " ".join(str(error).split())[:300]
            raise InputError(f"{folder}: open_clip cannot load it ({type(error).__name__}: {line})") from None
        self.model = settle(model.eval().requires_grad_(False).to(device()))
        self.scale = float(self.model.logit_scale.exp())
        self.preprocess, self.towers = _preprocess(model.visual.preprocess_cfg, transform), (self.model,)
        self.said = Remembered(self.read)

    def see(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Embeddings, (images, dimension)."""
        return self.model.encode_image(pixels)

    def weigh(self, seen: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Similarity of each image to its prompt, float32, (images,)."""
        from diffalign.scorers.towers import normal

        return (normal(seen) * normal(self.said(prompts))).sum(-1)

    def read(self, prompts: Sequence[str]) -> "torch.Tensor":
        """Embeddings of prompts, (prompts, dimension)."""
        ids = self.tokenize(prompts)["input_ids"]
        return self.model.encode_text(ids.to(next(self.model.parameters()).device))


def _preprocess(config: Mapping[str, object], transform: Callable) -> Callable:
    """open_clip's transform as one of ours where there is one, else itself, which has no gradient."""
    from diffalign.scorers.pixels import Cropped, Squashed

    size = config["size"]
    sides = {size} if isinstance(size, int) else set(size)
    known = {"shortest": functools.partial(Cropped, floor=False), "squash": Squashed}.get(str(config["resize_mode"]))
    if known is None or len(sides) > 1 or config["interpolation"] != "bicubic" or config["mode"] != "RGB":
        return transform
    return known(max(sides), mean=tuple(config["mean"]), std=tuple(config["std"]))

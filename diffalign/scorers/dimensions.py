"""What a trained scorer computes: embeddings of both towers, and a head for each dimension of what was judged."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from diffalign.records import InputError
from diffalign.scorers import openclip
from diffalign.scorers.checkpoints import device, fit, folder_of, read
from diffalign.scorers.networks import Networks, Remembered
from diffalign.scorers.tokens import clip
from diffalign.scorers.towers import SiglipTowers, Towers, normal
from diffalign.scorers.trained import HEAD, Card
from diffalign.weights import settle_header


@dataclass(frozen=True)
class Tower:
    """Both towers under one roof, whatever their layout: pictures and prompts -> embeddings, with gradients."""

    model: nn.Module
    see: Callable[[torch.Tensor], torch.Tensor]
    read: Callable[[Sequence[str]], torch.Tensor]
    preprocess: Callable
    parts: tuple[nn.Module, ...]
    scale: float


def open_tower(folder: Path) -> Tower:
    """The towers of an open_clip folder, else of a CLIP or SigLIP in transformers' layout with that one's tokenizer and
    resizing. Raises InputError for other models.
    """
    if any((folder / name).is_file() for name in openclip.WEIGHTS):
        found = openclip.OpenClip(folder)
        return Tower(found.model, found.see, found.read, found.preprocess, found.towers, found.scale)
    kind = _kind(folder_of(folder) / "config.json")
    if kind not in ("clip", "siglip"):
        raise InputError(
            f"{folder}: is a {kind}, expected a CLIP or SigLIP in transformers' layout, or an open_clip folder"
        )
    both = SiglipTowers(folder) if kind == "siglip" else Towers(folder, clip(folder), "floor")
    return Tower(both.model, both.seen, both.read, both.preprocess, both.parts, both.scale)


def _kind(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("model_type", "clip"))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: is no configuration of a model ({error})") from None


def write_tower(folder: Path, tower: Tower, place: Path) -> None:
    """The towers into `folder` in the layout in which they lie in `place`, with the tokenizer beside them."""
    for path in sorted(place.iterdir()):
        if path.suffix in (".json", ".txt", ".model") and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    file = openclip.WEIGHTS[0] if (folder / "open_clip_config.json").is_file() else "model.safetensors"
    state = {n: v.detach().cpu().contiguous().clone() for n, v in tower.model.state_dict().items()}
    save_file(state, folder / file, metadata={"format": "pt"})
    settle_header(folder / file)


class Heads(nn.Module):
    """exp(log_scale) · cos(image, prompt) + g(image, prompt, their product) for each dimension; g is 0 at first.

    Embeddings (n, width) of images and of their prompts -> scores (n, dimensions), in float32.
    """

    def __init__(self, width: int, dimensions: int, hidden: int, scale: float = 1.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((dimensions,), scale).log())
        self.hidden = nn.Linear(3 * width, hidden) if hidden else None
        self.out = nn.Linear(hidden or 3 * width, dimensions)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, seen: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        seen, said = normal(seen), normal(said)
        cosine, width = (seen * said).sum(-1, keepdim=True), seen.shape[-1]
        # of unit size in each coordinate, as the layers' own initial values expect
        x = torch.cat([seen * width**0.5, said * width**0.5, seen * said * width], -1)
        x = nn.functional.gelu(_linear(self.hidden, x)) if self.hidden is not None else x
        return self.log_scale.exp() * cosine + _linear(self.out, x)


def _linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """The layer in the precision of its input, which is float64 where the towers are."""
    return nn.functional.linear(x, layer.weight.to(x), layer.bias.to(x))


class Trained(Networks):
    """The loaded scorer. Raises InputError for weights that do not fit what its card says."""

    def __init__(self, folder: Path, tower: Path, card: Card, dimension: str = "") -> None:
        self.tower = open_tower(tower)
        state = read(folder / HEAD)
        self.heads = heads(state, card, folder / HEAD).to(device())
        self.preprocess, self.towers, self.said = self.tower.preprocess, self.tower.parts, Remembered(self.tower.read)
        share = [float(name == dimension) if dimension else 1 / len(card.dimensions) for name in card.dimensions]
        self.weight = torch.tensor([s * w for s, w in zip(card.slopes, share, strict=True)], device=device())

    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings, (images, dimension)."""
        return self.tower.see(pixels)

    def weigh(self, seen: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Log-odds, float32, (images,)."""
        scores = self.heads(seen, self.said(prompts))
        return scores @ self.weight.to(scores)


def heads(state: Mapping[str, torch.Tensor], card: Card, path: Path) -> Heads:
    """The heads of a state; raises InputError where it does not fit the card."""
    known = state.get("hidden.weight" if card.hidden else "out.weight")
    if known is None or known.ndim != 2 or known.shape[1] % 3:
        raise InputError(f"{path}: weights do not fit the architecture: they are no heads of hidden {card.hidden}")
    return fit(Heads(known.shape[1] // 3, len(card.dimensions), card.hidden), state, path)

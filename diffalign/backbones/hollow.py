"""Models without weights: built on the meta device from their configurations alone, to be counted and not computed."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

from diffalign import counting, entries, places, weights
from diffalign.backbones import kinds, of_class
from diffalign.backbones.base import Backbone, Conditioning
from diffalign.backbones.pixart import TOKENS
from diffalign.records import InputError

# tokens of a prompt as each family's pipeline pads them; where it does not pad, those of a long prompt
LENGTH = {"sd": 77, "sdxl": 77, "sd3": 77 + 256, "flux": 512, "flux2-klein": 512, "sana": 300, "qwen-image": 256,
          "z-image": 256}  # fmt: skip
# these predict from lengths that they read, so their masks cannot be on the meta device
READ = ("qwen-image", "z-image")


@dataclass(frozen=True)
class Hollow:
    """A backbone that can only predict, without weights, and how many parameters its frozen parts have, by name.

    `length`: tokens of a prompt.
    """

    backbone: Backbone
    frozen: dict[str, int]
    vae: nn.Module | None
    length: int

    def told(self, images: int, dtype: torch.dtype) -> Conditioning:
        """What the denoiser is told of so many images, without values."""
        config, family = self.backbone.denoiser.config, self.backbone.family
        shapes: dict[str, tuple[int, ...]] = {}
        width = _width(family, config)
        shapes["prompt_embeds"] = (self.length, width)
        if family == "sdxl":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            shapes |= {"pooled": (pooled,), "time_ids": (6,)}
        if family in ("sd3", "flux"):
            shapes["pooled"] = (config.pooled_projection_dim,)
        if family == "pixart" and _alpha(config):
            shapes |= {"resolution": (2,), "aspect_ratio": (1,)}
        found = {n: torch.empty(images, *s, device="meta", dtype=dtype) for n, s in shapes.items()}
        if family in ("pixart", "sana", *READ):
            found["mask"] = torch.ones(
                images, self.length, device="cpu" if family in READ else "meta", dtype=torch.long
            )
        return found

    def latents(self, images: int, resolution: int, dtype: torch.dtype) -> Tensor:
        """Latents of so many images, without values; raises InputError on a size the model cannot divide."""
        shape = self.backbone.latent_shape(resolution, resolution)
        return torch.empty(images, *shape, device="meta", dtype=dtype)

    def costs(self, resolution: int) -> tuple[int, int]:
        """(bytes at the peak while the autoencoder encodes a picture, the same of decoding), float32, without weights.

        0 where no autoencoder is known.
        """
        if self.vae is None:
            return 0, 0
        side, told = (resolution, resolution), (*self.vae.parameters(), *self.vae.buffers())
        pixels, latents = torch.empty(1, 3, *side, device="meta"), self.latents(1, resolution, torch.float32)
        with torch.no_grad():
            encoding = counting.counted(lambda: self.backbone.posterior(pixels), *told)
            return encoding.peak, counting.counted(lambda: self.backbone.decode_latents(latents), *told).peak


def _alpha(config: Any) -> bool:
    return bool(config.use_additional_conditions)


def _width(family: str, config: Any) -> int:
    if family in ("sd", "sdxl"):
        return config.cross_attention_dim
    if family in ("pixart", "sana"):
        return config.caption_channels
    return config.cap_feat_dim if family == "z-image" else config.joint_attention_dim


def hollow(model: str, config: str = "") -> Hollow:
    """A model of which only the configuration is read: a folder's, or what is known of a hub id.

    A hub id that is not known here has its configuration files fetched, and nothing else. Raises InputError where a
    configuration is missing or describes no family here.
    """
    parts = configurations(model, config)
    name = parts["model_index.json"]["_class_name"]
    family = of_class(name, model)
    if family.part not in parts:
        raise InputError(f"{model}: holds no {family.part}/config.json, which says what its denoiser is")
    denoiser = _built(model, family.part, parts[family.part])
    others = {n: _built(model, n, c) for n, c in parts.items() if n == "vae" or n.startswith("text_encoder")}
    backbone = family.__new__(family)
    backbone.denoiser = denoiser.requires_grad_(False).eval()
    told = SimpleNamespace(**{"is_distilled": False} | parts["model_index.json"])
    factor = _factor(parts.get("vae", {}))
    backbone.pipe = SimpleNamespace(vae_scale_factor=factor, vae=others.get("vae"), config=told)
    frozen = {n: sum(p.numel() for p in m.parameters()) for n, m in others.items()}
    return Hollow(backbone, frozen, others.get("vae"), TOKENS.get(name) or LENGTH[family.family])


def configurations(model: str, config: str = "") -> dict[str, dict[str, Any]]:
    """`model_index.json` and the configuration of every part with weights, by folder."""
    known = json.loads(places.asset("architectures.json").read_text())
    name = config or model
    if name in known and not Path(name).exists():
        return known[name]
    place = Path(name)
    if not place.is_dir():
        fetched = not place.exists() and weights.on_hub(name)
        wanted = ("model_index.json", "*/config.json")
        place = weights.snapshot(name, wanted) if fetched else weights.locate(model, config).folder
    if Path(model).is_file():
        kinds.check(weights.Source(place, Path(model)))
    found = {"model_index.json": weights.index(place)}
    for file in sorted(place.glob("*/config.json")):
        found[file.parent.name] = entries.whole(file)
        entry = found["model_index.json"].get(file.parent.name)
        if isinstance(entry, list) and entry[1]:
            found[file.parent.name].setdefault("_class_name", entry[1])
    return found


def _built(model: str, part: str, config: dict[str, Any]) -> nn.Module:
    """A part on the meta device."""
    name = config.get("_class_name", "")
    try:
        with torch.device("meta"):
            if name in diffusers.__dict__ or part in ("unet", "transformer", "vae"):
                return getattr(diffusers, name).from_config(config)
            kind = getattr(transformers, name)
            told = {k: v for k, v in config.items() if k not in ("_class_name", "model_type")}
            return kind(kind.config_class(**told))
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise InputError(f"{model}: its {part} cannot be built from its configuration ({error})") from None


def _factor(vae: dict[str, Any]) -> int:
    """By how much the autoencoder makes a picture smaller."""
    if "temperal_downsample" in vae:
        return 2 ** len(vae["temperal_downsample"])
    blocks = vae.get("encoder_block_out_channels") or vae.get("block_out_channels") or (1, 1, 1, 1)
    return 2 ** (len(blocks) - 1)

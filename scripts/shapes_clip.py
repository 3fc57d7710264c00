"""The proxy reward: a small open_clip model, trained on scene pairs that differ in one attribute."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from open_clip.model import CLIP
from safetensors.torch import save_file
from shapes_autoencoder import NOISE, images, pixels
from shapes_bank import describe
from shapes_fitting import Fit, train
from shapes_text import LENGTH, tokenizer, tokens
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from diffalign.shapes.captions import Demand, corrupt, demand_of, parse
from diffalign.shapes.scene import Scene, render, sample_scene

PAIRS = 48
DECODED = 3072
VISION = {"layers": [1, 1, 1, 1], "width": 20, "head_width": 32, "image_size": 64}
TEXT = {"context_length": LENGTH, "width": 96, "heads": 4, "layers": 3, "hf_tokenizer_name": "."}
EMBED = 96
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def config() -> dict:
    """The model's part of `open_clip_config.json`."""
    return {
        "embed_dim": EMBED,
        "vision_cfg": VISION,
        "text_cfg": TEXT | {"vocab_size": len(tokenizer())},
    }


def network() -> CLIP:
    """A ResNet of one block a stage and a causal text tower of three layers, as open_clip has them, random weights."""
    known = config()
    return CLIP(known["embed_dim"], known["vision_cfg"], known["text_cfg"])


def pair(rng: np.random.Generator) -> tuple[Scene, Scene]:
    """Two scenes that differ in exactly one attribute (and in where exactly things lie)."""
    first = sample_scene(rng, 2 if rng.random() < 0.25 else 1)
    return first, corrupt(first, rng, 1)


def meanings(demand: Demand) -> list[tuple]:
    """What is demanded, as tuples with None for nothing said: for two objects once in either order."""
    one = [(o.shape, o.colour, o.size, o.fill) for o in demand.objects]
    if len(one) == 1:
        return [(1, *one[0], None, None, None, None, demand.background, demand.place)] * 2
    relations = demand.relation, INVERSE.get(demand.relation)
    return [(2, *a, *b, demand.background, r) for (a, b), r in zip((one, one[::-1]), relations, strict=True)]


def truths(scenes: list[Scene], texts: list[str]) -> Tensor:
    """(scenes, texts) bool: does the text hold for the scene? Such texts are no negatives of that scene's picture."""
    codes: dict = {None: -1}
    asked = np.array([[[codes.setdefault(v, len(codes)) for v in m] for m in meanings(parse(t))] for t in texts])
    given = np.array([[codes.setdefault(v, len(codes)) for v in meanings(demand_of(s))[0]] for s in scenes])
    same = (asked[None] == -1) | (asked[None] == given[:, None, None])
    return torch.from_numpy(same.all(-1).any(-1))


def spoil(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """Some pictures blurred, all with noise and shifted colours of random strength: generated ones are not clean."""
    blurred = gaussian_blur(picture, [5, 5], [float(rng.uniform(0.3, 1.2))])
    some = (torch.rand(len(picture), 1, 1, 1) < 0.3).float()
    strength = 0.08 * torch.rand(len(picture), 1, 1, 1)
    shift = 0.06 * torch.randn(len(picture), 3, 1, 1)
    return picture.lerp(blurred, some) + strength * torch.randn_like(picture) + shift


@torch.no_grad()
def decoded(work: Path) -> list[np.ndarray]:
    """Pictures of DECODED pairs through the autoencoder, noise of up to 0.6 in the latents; made once."""
    path = work / "decoded.npy"
    if not path.exists():
        vae = AutoencoderKL.from_pretrained(work / "vae-latents").to(memory_format=torch.channels_last)
        found = []
        for start in range(0, DECODED, 32):
            scenes = [s for k in range(start, start + 32) for s in pair(np.random.default_rng([9, k]))]
            torch.manual_seed(start)
            latents = vae.encode(pixels(np.stack([render(s) for s in scenes]))).latent_dist.mean
            latents = latents + (0.7 - NOISE) * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
            found.append(images(vae.decode(latents).sample))
        np.save(path.with_suffix(".tmp.npy"), np.concatenate(found))
        path.with_suffix(".tmp.npy").rename(path)
    return np.load(path, mmap_mode="r")


def batch(rng: np.random.Generator, passed: np.ndarray) -> tuple[list[Scene], np.ndarray]:
    """PAIRS pairs of scenes and their pictures, two thirds of them rendered, the others through the autoencoder."""
    numbers = rng.integers(DECODED, size=PAIRS // 3)
    old = [s for k in numbers for s in pair(np.random.default_rng([9, k]))]
    new = [s for _ in range(PAIRS - len(numbers)) for s in pair(rng)]
    drawn = [passed[2 * k + i] for k in numbers for i in (0, 1)]
    return old + new, np.stack([*drawn, *(render(s) for s in new)])


def train_clip(work: Path, steps: int) -> None:
    """Train with the symmetric CLIP loss, true captions of other pictures left out, and write the model in fp16."""
    torch.manual_seed(0)
    model, words, passed = network().train(), tokenizer(), decoded(work)

    def loss(step: int, rng: np.random.Generator) -> Tensor:
        scenes, drawn = batch(rng, passed)
        texts = [describe(scene, rng) for scene in scenes]
        seen, said, scale = model(spoil(pixels(drawn), rng), tokens(words, texts))
        others = truths(scenes, texts) & ~torch.eye(len(scenes), dtype=torch.bool)
        logits = (scale * seen @ said.T).masked_fill(others, -torch.inf)
        labels = torch.arange(len(scenes))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    train(Fit("clip", steps, rate=1e-3, decay=0.05, average=0.995), model, loss, work)
    export_clip(model.eval(), work / "clip" / "model")


def export_clip(model: CLIP, folder: Path) -> None:
    """Write configuration, tokenizer and fp16 weights as `open_clip` reads them from a `local-dir:`."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash", "size": 64}
    written = {"model_cfg": config(), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(written, indent=2) + "\n")
    tokenizer().save_pretrained(folder)
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v.contiguous().clone() for k, v in half.items()}, folder / "open_clip_model.safetensors")

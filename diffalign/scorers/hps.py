"""HPSv2 and HPSv2.1: CLIP ViT-H/14 fine-tuned on rankings of HPDv2; one checkpoint in open_clip's layout each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffalign.records import InputError
from diffalign.scorers.base import Scorer
from diffalign.scorers.checkpoints import device, file_in, fit, locate, read, require, revision
from diffalign.scorers.networks import Networks, Remembered

if TYPE_CHECKING:
    import torch

OFFICIAL = "xswu/HPSv2"
# the tensors whose shapes are read
_SIZES = (
    *("visual.conv1.weight", "visual.positional_embedding", "token_embedding.weight"),
    *("positional_embedding", "text_projection"),
)
_KNOWN = (*_SIZES, "visual.", "transformer.", "ln_final.", "logit_scale")


def hpsv2(place: str) -> Scorer:
    """cos(image, prompt) of HPSv2, about 0.1 to 0.4 (the papers' tables show it times 100); not comparable to v2.1's.

    `place` is the official file, its folder or a hub id. P(first is better) = sigmoid(exp(logit_scale) · difference).
    Source: Wu et al. 2023 (HPSv2), section 4; Apache-2.0 licence.
    """
    return _scorer("hpsv2", place, "HPS_v2_compressed.pt", True)


def hpsv2_1(place: str) -> Scorer:
    """cos(image, prompt) of HPSv2.1, about 0.1 to 0.4; otherwise as `hpsv2`."""
    return _scorer("hpsv2.1", place, "HPS_v2.1_compressed.pt", True)


def hpsv2_aliased(place: str) -> Scorer:
    """HPSv2 with pictures made small without antialiasing, as torchvision did when the weights were published."""
    return _scorer("hpsv2_aliased", place, "HPS_v2_compressed.pt", False)


def hpsv2_1_aliased(place: str) -> Scorer:
    """HPSv2.1 with pictures made small without antialiasing, as torchvision did when the weights were published."""
    return _scorer("hpsv2.1_aliased", place, "HPS_v2.1_compressed.pt", False)


def _scorer(name: str, place: str, file: str, antialias: bool) -> Scorer:
    path = file_in(locate(place, OFFICIAL, (file,)), file)
    preprocessing = f"float bicubic, antialias {antialias}, padded black"
    return Scorer(name, revision(path), preprocessing, lambda: Hps(path, antialias), lambda f: f.scale, towers=True)


class Hps(Networks):
    """The loaded scorer: ViT-H/14 of open_clip, its sizes read off the checkpoint; open_clip's tokenizer."""

    def __init__(self, path: Path, antialias: bool = True) -> None:
        import open_clip

        from diffalign.scorers.pixels import Padded
        from diffalign.scorers.tokens import openai

        state = read(path)
        sizes = architecture(state, path)
        self.model = fit(open_clip.CLIP(**sizes), state, path).to(device())
        self.scale = float(self.model.logit_scale.exp())
        self.tokenize = openai(sizes["text_cfg"]["context_length"])
        self.preprocess, self.towers = Padded(sizes["vision_cfg"]["image_size"], antialias), (self.model,)
        self.said = Remembered(self._said)

    def see(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Embeddings, (images, dimension)."""
        return self.model.encode_image(pixels)

    def weigh(self, seen: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Cosines, float32, (images,)."""
        from diffalign.scorers.towers import normal

        return (normal(seen) * normal(self.said(prompts))).sum(-1)

    def _said(self, prompts: list[str]) -> "torch.Tensor":
        return self.model.encode_text(self.tokenize(prompts)["input_ids"].to(device()))


def architecture(state: Mapping[str, "torch.Tensor"], path: Path) -> dict:
    """open_clip's configuration of a checkpoint with ViT-H/14's heads (80 wide in the image tower, 64 in the text's).

    Raises InputError for tensors that are no CLIP's.
    """
    require(path, state, _SIZES, _KNOWN)
    try:
        width, _, patch, _ = state["visual.conv1.weight"].shape
        side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        vocabulary, text_width = state["token_embedding.weight"].shape
        vision = {
            "image_size": side * patch, "layers": _layers(state, "visual.transformer.resblocks."), "width": width,
            "head_width": 80, "patch_size": patch,
        }  # fmt: skip
        text = {
            "context_length": len(state["positional_embedding"]), "vocab_size": vocabulary, "width": text_width,
            "heads": text_width // 64, "layers": _layers(state, "transformer.resblocks."),
        }  # fmt: skip
        return {"embed_dim": state["text_projection"].shape[1], "vision_cfg": vision, "text_cfg": text}
    except ValueError as error:
        raise InputError(f"{path}: is no CLIP in open_clip's layout ({type(error).__name__}: {error})") from None


def _layers(state: Mapping[str, "torch.Tensor"], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

"""MPS: CLIP ViT-H/14 whose image tokens look at those words of the prompt that speak of what people judge."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffalign.records import InputError
from diffalign.scorers.base import Scorer
from diffalign.scorers.checkpoints import device, fit_all, read, require, with_tokenizer
from diffalign.scorers.networks import Networks, Remembered

if TYPE_CHECKING:
    import torch

OFFICIAL, WORDS = "RE-N-Y/mpsv1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
# the aspects of the only condition that was released ("overall"), part of the model's input
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
THRESHOLD = 0.3
_FILES = ("model.safetensors", "MPS_overall_checkpoint.pth")
# the tensors whose shapes are read
_SIZES = (
    *(f"model.vision_model.{name}" for name in (
        "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.weight"
    )),
    *(f"model.text_model.{name}" for name in (
        "embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.weight"
    )),
    "model.text_projection.weight",
)  # fmt: skip
_SPARE = ("model.text_model.embeddings.position_ids", "model.vision_model.embeddings.position_ids")


def mps(place: str) -> Scorer:
    """exp(logit_scale) · cos(prompt, image that looked at the prompt), of the condition "overall".

    Words of the prompt count whose likeness to the condition is above 0.3 of the largest, each prompt by itself (the
    authors' scripts take the largest of a batch, so that their scores depend on it). The layers in which tokens cross
    are written after a description, without the checkpoint: hold it against a published score first. `place` is "FILE"
    or "FILE,TOKENIZER": the tensors of the official checkpoint (a state dict; the official file is a pickled module,
    which is never loaded), its folder or a hub id, and a folder or hub id with CLIP's tokenizer (default: one beside
    the file, else the hub cache). P(first is better) = sigmoid(difference). Source: Zhang et al. 2024 (MPS), section 4.
    """
    path, folder, revision = with_tokenizer(place, (OFFICIAL, _FILES), WORDS, "vocab.json")
    said = f"PIL bicubic, floor crop, words above {THRESHOLD}"
    return Scorer("mps", revision, said, lambda: Mps(path, folder), lambda _: 1.0, towers=True)


class Mps(Networks):
    """The loaded scorer; sizes are read off the checkpoint. Heads are 80 wide in the image tower, else 64."""

    def __init__(self, path: Path, words: Path, threshold: float = THRESHOLD) -> None:
        from transformers import CLIPModel

        from diffalign.scorers.crossing import Crossing
        from diffalign.scorers.pixels import Cropped
        from diffalign.scorers.tokens import clip

        state = read(path)
        config = configuration(state, path)
        layers = len({name.split(".")[2] for name in state if name.startswith("cross_model.layers.")})
        both = {"model.": CLIPModel(config), "cross_model.": Crossing(config.projection_dim, layers)}
        unused = [n for n in state if n.startswith("cross_model.") and n.endswith(("norm.beta", "inv_freq"))]
        fit_all(both, state, path, [*unused, *_SPARE])
        self.model, self.cross = (module.to(device()) for module in both.values())
        self.scale, self.threshold = float(self.model.logit_scale.exp()), threshold
        self.tokenize, self.said = clip(words), Remembered(self._said)
        self.preprocess = Cropped(config.vision_config.image_size, floor=True)
        m = self.model
        self.towers = m.vision_model, m.visual_projection, m.text_model, m.text_projection, self.cross

    def see(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Every token of the image tower, projected, (images, patches + 1, dimension)."""
        return self.model.visual_projection(self.model.vision_model(pixels).last_hidden_state)

    def weigh(self, seen: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Scores, float32, (images,)."""
        from diffalign.scorers.towers import normal, wide

        said = self.said([CONDITION, *prompts])
        condition, words, whole = said[0, :-1], said[1:, :-1], said[1:, -1]
        likeness = wide(words @ condition.T).amax(-1)
        heard = likeness / likeness.amax(-1, keepdim=True) > self.threshold
        looked = self.cross(seen, words, heard)[:, 0]
        return self.scale * (normal(looked) * normal(whole)).sum(-1)

    def _said(self, prompts: list[str]) -> "torch.Tensor":
        """Every token of the text tower and last the pooled one, projected, (prompts, 78, dimension)."""
        import torch

        ids = self.tokenize(prompts)["input_ids"].to(self.model.device)
        found = self.model.text_model(ids)
        return self.model.text_projection(torch.cat([found.last_hidden_state, found.pooler_output[:, None]], 1))


def configuration(state: Mapping[str, "torch.Tensor"], path: Path):
    """The CLIP's configuration, read off the shapes of its tensors; InputError where they are no CLIP's."""
    from transformers import CLIPConfig

    require(path, state, _SIZES, ("model.", "cross_model."))
    state = {name.removeprefix("model."): v for name, v in state.items() if name.startswith("model.")}
    try:
        width, _, patch, _ = state["vision_model.embeddings.patch_embedding.weight"].shape
        side = round((len(state["vision_model.embeddings.position_embedding.weight"]) - 1) ** 0.5)
        vocabulary, text_width = state["text_model.embeddings.token_embedding.weight"].shape
        sizes = {
            kind: {
                "hidden_size": wide, "intermediate_size": len(state[f"{kind}.encoder.layers.0.mlp.fc1.weight"]),
                "num_hidden_layers": len({n.split(".")[3] for n in state if n.startswith(f"{kind}.encoder.layers.")}),
                "num_attention_heads": wide // head, "hidden_act": "gelu",
            }
            for kind, wide, head in (("vision_model", width, 80), ("text_model", text_width, 64))
        }  # fmt: skip
        # 2 is how old configurations say "the pooled token is that of the largest id", as the authors' library did
        words = {"vocab_size": vocabulary, "eos_token_id": 2}
        words["max_position_embeddings"] = len(state["text_model.embeddings.position_embedding.weight"])
        return CLIPConfig(
            vision_config=sizes["vision_model"] | {"image_size": side * patch, "patch_size": patch},
            text_config=sizes["text_model"] | words, projection_dim=len(state["text_projection.weight"]),
        )  # fmt: skip
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: is no MPS checkpoint ({type(error).__name__}: {error})") from None

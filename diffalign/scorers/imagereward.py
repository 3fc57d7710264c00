"""ImageReward: BLIP (ViT-L and a BERT that looks at the image) with a head, trained on experts' rankings."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffalign.records import InputError
from diffalign.scorers.base import Scorer
from diffalign.scorers.checkpoints import device, fit_all, read, require, with_tokenizer
from diffalign.scorers.networks import Networks

if TYPE_CHECKING:
    import torch

OFFICIAL, WORDS = "THUDM/ImageReward", "google-bert/bert-base-uncased"
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
LENGTH = 35
_SEEN, _SAID = "blip.visual_encoder.", "blip.text_encoder."
# the tensors whose shapes are read
_SIZES = (
    *(f"{_SEEN}{name}" for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")),
    *(f"{_SAID}embeddings.{name}_embeddings.weight" for name in ("word", "position")),
    f"{_SAID}encoder.layer.0.intermediate.dense.weight",
)
# where the authors' vision tower differs in words from that of transformers
_RENAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)
_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


def imagereward(place: str) -> Scorer:
    """(head(BLIP(image, prompt)) - 0.1672) / 1.0333, about -2.3 to 2, standard normal on the authors' images.

    `place` is "FILE" or "FILE,TOKENIZER": the official ImageReward.pt, its folder or a hub id, and a folder or hub id
    with BERT's uncased tokenizer (default: one beside the file, else the hub cache). Prompts are cut to 35 tokens.
    P(first is better) = sigmoid(1.0333 · difference). Source: Xu et al. 2023 (ImageReward), section 3; Apache-2.0.
    """
    path, folder, revision = with_tokenizer(place, (OFFICIAL, ("ImageReward.pt",)), WORDS, "vocab.txt")
    return Scorer(
        "imagereward", revision, f"PIL bicubic, rounded crop, {LENGTH} tokens",
        lambda: ImageReward(path, folder), lambda _: DEVIATION, towers=True,
    )  # fmt: skip


class ImageReward(Networks):
    """The loaded scorer; sizes are read off the checkpoint, heads are 64 wide in both towers."""

    def __init__(self, path: Path, words: Path, length: int = LENGTH) -> None:
        from transformers import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        from diffalign.scorers.heads import LAYERS, folded
        from diffalign.scorers.pixels import Cropped
        from diffalign.scorers.tokens import bert

        state = {k: v for k, v in read(path).items() if not k.startswith(_UNUSED)}
        vision, language = configurations(state, path)
        both = {_SEEN: BlipVisionModel(vision), _SAID: BlipTextModel(language, add_pooling_layer=False)}
        head = {f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")}
        fit_all(both, _renamed(state), path, others=[f"mlp.{name}" for name in sorted(head)])
        self.vision, self.text = (module.to(device()) for module in both.values())
        self.head = folded({name: state[f"mlp.{name}"] for name in head}, LAYERS, language.hidden_size, path)
        self.tokenize = bert(words, length)
        self.preprocess, self.towers = Cropped(vision.image_size, floor=False), (self.vision, self.text)

    def see(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Hidden states of the image tower, (images, patches + 1, width)."""
        return self.vision(pixels).last_hidden_state

    def weigh(self, seen: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """Scores, float64, (images,)."""
        tokens = {name: ids.to(seen.device) for name, ids in self.tokenize(prompts).items()}
        # `is_decoder` in the configuration makes the cross-attention; in the call it would make the text causal
        hidden = self.text(
            **tokens, encoder_hidden_states=seen, encoder_attention_mask=seen.new_ones(seen.shape[:2]),
            is_decoder=False,
        ).last_hidden_state  # fmt: skip
        weight, bias = (part.to(seen.device) for part in self.head)
        return (hidden[:, 0].double() @ weight + bias - MEAN) / DEVIATION


def _renamed(state: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    found = {}
    for name, tensor in state.items():
        if name.startswith(_SEEN):
            name = name.removeprefix(_SEEN)
            for before, after in _RENAMES:
                name = re.sub(before, after, name)
            name = _SEEN + name
        found[name] = tensor
    return found


def configurations(state: Mapping[str, "torch.Tensor"], path: Path) -> tuple:
    """The configurations of both towers, read off the shapes of their tensors; InputError where they are no BLIP's."""
    from transformers import BlipTextConfig, BlipVisionConfig

    require(path, state, _SIZES, (_SEEN, _SAID, "mlp."))
    visual, text = ({k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in (_SEEN, _SAID))
    try:
        width, _, patch, _ = visual["patch_embed.proj.weight"].shape
        side = round((visual["pos_embed"].shape[1] - 1) ** 0.5)
        vision = BlipVisionConfig(
            hidden_size=width, intermediate_size=len(visual["blocks.0.mlp.fc1.weight"]), layer_norm_eps=1e-6,
            num_hidden_layers=_layers(visual, "blocks."), num_attention_heads=width // 64, image_size=side * patch,
            patch_size=patch, hidden_act="gelu",
        )  # fmt: skip
        vocabulary, hidden = text["embeddings.word_embeddings.weight"].shape
        language = BlipTextConfig(
            vocab_size=vocabulary, hidden_size=hidden, encoder_hidden_size=width, num_attention_heads=hidden // 64,
            intermediate_size=len(text["encoder.layer.0.intermediate.dense.weight"]), hidden_act="gelu",
            num_hidden_layers=_layers(text, "encoder.layer."), layer_norm_eps=1e-12, is_decoder=True,
            max_position_embeddings=len(text["embeddings.position_embeddings.weight"]),
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"{path}: is no ImageReward checkpoint ({type(error).__name__}: {error})") from None
    return vision, language


def _layers(state: Mapping[str, "torch.Tensor"], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

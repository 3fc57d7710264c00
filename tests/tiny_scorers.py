"""Tiny random checkpoints of the public judges, in the layouts in which their authors publish them."""

import functools
import json
import os
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, PreTrainedTokenizerBase

# what a user types, texts that tokenizers disagree on, and texts that try to end themselves
TEXTS = [
    "a red circle",
    "the cat’s “blue” square &amp; ﬁsh",
    "",
    "😀 ein großes Haus, 猫",
    "word " * 500,
    "a red circle",
]
INJECTIONS = [
    "a <|endoftext|> b",
    "a <end_of_text> b",
    "a &lt;end_of_text&gt; b",
    "<START_OF_TEXT> b",
    "a [SEP] b [CLS]",
    "a <|ENDOFTEXT|> b",
    "a &amp;lt;end_of_text&amp;gt; b",
    "a &lt;|endoftext|&gt; b",
    "a ＜|endoftext|＞ b",
    "a </s> b",
    "a &lt;/s> b",
    "a <|im_end|> b",
    "a <|image_pad|> b",
]


@functools.cache
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own vocabulary and merges, as open_clip ships them, in transformers' tokenizer."""
    from open_clip.tokenizer import SimpleTokenizer

    shipped = SimpleTokenizer()
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {ends.get(token, token): number for token, number in shipped.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=list(shipped.bpe_ranks), model_max_length=77)


def stirred(module: nn.Module, seed: int) -> nn.Module:
    """The module with normal weights large enough that different inputs give different outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("logit_scale"):
                p.fill_(4.0)
            else:
                p.copy_(torch.randn(p.shape, generator=generator) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.1))
    return module.eval()


def clip_config(act: str = "gelu", size: int = 24, eos: int = 49407) -> CLIPConfig:
    text = {
        "vocab_size": 49408, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "hidden_act": act, "eos_token_id": eos, "bos_token_id": 49406, "pad_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": size, "patch_size": 8, "hidden_act": act,
    }  # fmt: skip
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)


def clip_folder(place: Path, seed: int = 0, act: str = "gelu", eos: int = 49407) -> Path:
    """A CLIP in transformers' layout with its tokenizer, as PickScore, OpenAI and LAION publish it."""
    stirred(CLIPModel(clip_config(act, eos=eos)), seed).save_pretrained(place)
    clip_tokenizer().save_pretrained(place)
    return place


# ViT-H/14 in small: heads of 80 in the image tower, of 64 in the text tower
HPS_SIZES = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 28, "layers": 2, "width": 160, "head_width": 80, "patch_size": 7},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


def open_clip_folder(place: Path, tokenizer: PreTrainedTokenizerBase | None = None, seed: int = 0) -> Path:
    """A CLIP in open_clip's layout, with open_clip's own tokenizer or the one given beside it."""
    import open_clip

    text = {"context_length": 77, "vocab_size": len(tokenizer or range(49408)), "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 24, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    if tokenizer is not None:
        text["hf_tokenizer_name"] = "."
        tokenizer.save_pretrained(place)
    place.mkdir(parents=True, exist_ok=True)
    save_safely(stirred(open_clip.CLIP(**config), seed).state_dict(), place / "open_clip_model.safetensors")
    whole = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}}
    (place / "open_clip_config.json").write_text(json.dumps(whole))
    return place


def hps_file(path: Path, seed: int = 0) -> Path:
    """An HPSv2 checkpoint: half precision below "state_dict"."""
    import open_clip

    state = stirred(open_clip.CLIP(**HPS_SIZES), seed).state_dict()
    torch.save({"epoch": 1, "state_dict": {k: v.half() for k, v in state.items()}}, path)
    return path


BERT_WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "circle",
    "blue",
    "word",
    "house",
    ",",
    "[",
    "]",
]
BERT_LETTERS = [c for x in "abcdefghijklmnopqrstuvwxyz" for c in (x, f"##{x}") if c != "a"]


def bert_folder(place: Path) -> Path:
    from transformers import BertTokenizer

    place.mkdir(parents=True, exist_ok=True)
    words = {word: number for number, word in enumerate(BERT_WORDS + BERT_LETTERS)}
    BertTokenizer(vocab=words, do_lower_case=True, model_max_length=512).save_pretrained(place)
    return place


def imagereward_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """The tensors of an ImageReward checkpoint by their published names, in small: widths 128 and 64, two layers."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def put(name: str, *shape: int) -> None:
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
        state[name] = torch.randn(shape, generator=generator) * scale

    def linear(name: str, inputs: int, outputs: int) -> None:
        put(f"{name}.weight", outputs, inputs)
        put(f"{name}.bias", outputs)

    def norm(name: str, width: int) -> None:
        put(f"{name}.weight", width)
        put(f"{name}.bias", width)
        state[f"{name}.weight"] += 1

    seen, said, vocabulary = 128, 64, len(BERT_WORDS + BERT_LETTERS) + 2
    v, t = "blip.visual_encoder", "blip.text_encoder"
    put(f"{v}.cls_token", 1, 1, seen)
    put(f"{v}.pos_embed", 1, 10, seen)
    put(f"{v}.patch_embed.proj.weight", seen, 3, 8, 8)
    put(f"{v}.patch_embed.proj.bias", seen)
    for i in range(2):
        norm(f"{v}.blocks.{i}.norm1", seen)
        linear(f"{v}.blocks.{i}.attn.qkv", seen, 3 * seen)
        linear(f"{v}.blocks.{i}.attn.proj", seen, seen)
        norm(f"{v}.blocks.{i}.norm2", seen)
        linear(f"{v}.blocks.{i}.mlp.fc1", seen, 96)
        linear(f"{v}.blocks.{i}.mlp.fc2", 96, seen)
    norm(f"{v}.norm", seen)
    state[f"{t}.embeddings.position_ids"] = torch.arange(40)[None]
    put(f"{t}.embeddings.word_embeddings.weight", vocabulary, said)
    put(f"{t}.embeddings.position_embeddings.weight", 40, said)
    norm(f"{t}.embeddings.LayerNorm", said)
    for i in range(2):
        layer = f"{t}.encoder.layer.{i}"
        for kind, inputs in (("attention", said), ("crossattention", seen)):
            linear(f"{layer}.{kind}.self.query", said, said)
            linear(f"{layer}.{kind}.self.key", inputs, said)
            linear(f"{layer}.{kind}.self.value", inputs, said)
            linear(f"{layer}.{kind}.output.dense", said, said)
            norm(f"{layer}.{kind}.output.LayerNorm", said)
        linear(f"{layer}.intermediate.dense", said, 96)
        linear(f"{layer}.output.dense", 96, said)
        norm(f"{layer}.output.LayerNorm", said)
    linear("blip.vision_proj", seen, 16)
    linear("blip.text_proj", said, 16)
    for (i, inputs), outputs in zip({0: said, 2: 32, 4: 24, 6: 16, 7: 8}.items(), (32, 24, 16, 8, 1), strict=True):
        linear(f"mlp.layers.{i}", inputs, outputs)
    return state


def imagereward_folder(place: Path, seed: int = 0) -> Path:
    bert_folder(place)
    torch.save(imagereward_state(seed), place / "ImageReward.pt")
    return place


def head_file(path: Path, inputs: int, prefix: str = "", seed: int = 0) -> Path:
    """An aesthetic head: inputs -> 32 -> 24 -> 16 -> 8 -> 1, linear, under the published names."""
    widths = zip((0, 2, 4, 6, 7), (inputs, 32, 24, 16, 8), (32, 24, 16, 8, 1), strict=True)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for i, a, b in widths:
        state[f"{prefix}layers.{i}.weight"] = torch.randn(b, a, generator=generator) * a**-0.5
        state[f"{prefix}layers.{i}.bias"] = torch.randn(b, generator=generator) * 0.1
    torch.save(state, path)
    return path


def save_safely(state: dict[str, torch.Tensor], path: Path) -> Path:
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


def siglip_folder(
    place: Path, seed: int = 0, tokenizer: PreTrainedTokenizerBase | None = None, resample: int = 3
) -> Path:  # fmt: skip
    """SigLIP with both towers, as Google publishes it, for its image tower alone where no tokenizer is given."""
    from transformers import SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision, text = {"image_size": 24, "patch_size": 8, **sizes}, {"vocab_size": len(tokenizer or range(50)), **sizes}
    stirred(SiglipModel(SiglipConfig(vision_config=vision, text_config=text)), seed).save_pretrained(place)
    if tokenizer is not None:
        tokenizer.save_pretrained(place)
        SiglipImageProcessorPil(size={"height": 24, "width": 24}, resample=resample).save_pretrained(place)
    return place


def first_siglip(place: Path, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Path:
    """SigLIP with the tokenizer that the first of them had, by its published name."""
    siglip_folder(place, seed, tokenizer)
    said = json.loads((place / "tokenizer_config.json").read_text())
    (place / "tokenizer_config.json").write_text(json.dumps(said | {"tokenizer_class": "SiglipTokenizer"}))
    return place


def hp_folder(place: Path, seed: int = 0) -> Path:
    clip_folder(place / "hp_backbone", seed)
    (place / "hp_scorer").mkdir()
    head_file(place / "hp_scorer" / "mlp_pytorch_model.bin", 16)
    return place


MPS_WIDTH = 128


def mps_folder(place: Path, seed: int = 0) -> Path:
    """MPS in small, by its published names: heads of 80 and 64 in CLIP, of 64 in two layers that cross."""
    text = {"vocab_size": 49408, "hidden_size": 64, "num_attention_heads": 1, "eos_token_id": 2}
    vision = {"hidden_size": 160, "num_attention_heads": 2, "image_size": 24, "patch_size": 8}
    both = {"intermediate_size": 48, "num_hidden_layers": 2, "hidden_act": "gelu"}
    clip = CLIPModel(CLIPConfig(text_config=text | both, vision_config=vision | both, projection_dim=MPS_WIDTH))
    state = {f"model.{name}": tensor for name, tensor in stirred(clip, seed).state_dict().items()}
    state["model.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    generator, width, wide = torch.Generator().manual_seed(seed), MPS_WIDTH, 4 * MPS_WIDTH
    for i in range(2):
        look, think = (f"cross_model.layers.{i}.{n}.fn" for n in (0, 1))
        shapes = {
            f"{look}.to_q": (width, width), f"{look}.to_kv": (128, width), f"{look}.to_out": (width, width),
            f"{look}.ff.0": (2 * wide, width), f"{look}.ff.2": (width, wide),
            f"{think}.fused_attn_ff_proj": (width + 128 + 2 * wide, width), f"{think}.attn_out": (width, width),
            f"{think}.ff_out.1": (width, wide),
        }  # fmt: skip
        for name, shape in shapes.items():
            state[f"{name}.weight"] = torch.randn(shape, generator=generator) * shape[1] ** -0.5
        for name in (look, think):
            state[f"{name}.norm.gamma"] = 1 + 0.1 * torch.randn(width, generator=generator)
            state[f"{name}.norm.beta"] = torch.zeros(width)
        state[f"{think}.rotary_emb.inv_freq"] = 10000 ** (-torch.arange(0, 64, 2).float() / 64)
    place.mkdir(parents=True, exist_ok=True)
    save_safely(state, place / "model.safetensors")
    clip_tokenizer().save_pretrained(place)
    return place


def trained_folder(place: Path, tower: Path, seed: int = 0, width: int = 16) -> Path:
    """What `train-scorer --mode head` writes: two heads on towers that lie elsewhere."""
    from diffalign.scorers.checkpoints import revision
    from diffalign.scorers.dimensions import Heads

    place.mkdir(parents=True)
    heads = stirred(Heads(width, 2, 8), seed)
    with torch.no_grad():
        heads.log_scale.fill_(1.0)
    save_safely(heads.state_dict(), place / "head.safetensors")
    card = {
        "name": "trained", "dimensions": ["beauty", "truth"], "slopes": [0.5, 2.0], "hidden": 8, "format": 1,
        "tower": os.path.relpath(tower, place), "hash": revision(tower),
    }  # fmt: skip
    (place / "scorer.json").write_text(json.dumps(card))
    return place


def all_places(place: Path) -> dict[str, str]:
    """Scorer name -> "name=place" of a tiny checkpoint of it."""
    clip = clip_folder(place / "clip")
    openai = clip_folder(place / "openai", seed=1, act="quick_gelu", eos=2)
    hps = hps_file(place / "HPS_v2.1_compressed.pt")
    reward = imagereward_folder(place / "imagereward")
    head = head_file(place / "head.pth", 16)
    siglip, best = siglip_folder(place / "siglip"), head_file(place / "best.pth", 32, "scoring_head.")
    quality = hp_folder(place / "hp", seed=2)
    places = {
        "mps": mps_folder(place / "mps"), "trained": trained_folder(place / "trained", clip),
        "aesthetic_v2.5": f"{best},{siglip}", "ict": clip, "hp": quality, "icthp": f"{clip},{quality}",
        "pickscore": clip, "clipscore": openai, "clipscore_original": openai, "hpsv2": hps, "hpsv2_aliased": hps,
        "hpsv2.1": hps, "hpsv2.1_aliased": hps, "imagereward": reward, "aesthetic": f"{head},{openai}",
    }  # fmt: skip
    return {name: f"{name}={where}" for name, where in places.items()}

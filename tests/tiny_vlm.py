"""A tiny random Qwen2-VL with tokenizer, chat template and image processor, in transformers' layout, made offline."""

from pathlib import Path

import safetensors.torch
import tiny_scorers
import torch
from tokenizers import pre_tokenizers
from torch import nn
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>")  # fmt: skip
WORDS = ("Yes", "No", "yes", "no")
# Qwen2-VL's own, without videos and numbered pictures
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Qwen2Tokenizer:
    """Bytes, four words, and Qwen2-VL's special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges, vocabulary = [], {letter: n for n, letter in enumerate(letters)}
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary[word[:end]] = len(vocabulary)
    found = Qwen2Tokenizer(vocab=vocabulary, merges=merges, chat_template=TEMPLATE)
    found.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    return found


def config(words: Qwen2Tokenizer) -> Qwen2VLConfig:
    ids = {f"{what}_token_id": words.convert_tokens_to_ids(f"<|{what}|>") for what in ("vision_start", "vision_end")}
    ids |= {f"{what}_token_id": words.convert_tokens_to_ids(f"<|{what}_pad|>") for what in ("image", "video")}
    text = {
        "vocab_size": len(words) + 1, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        "bos_token_id": words.convert_tokens_to_ids("<|endoftext|>"),
        "eos_token_id": words.convert_tokens_to_ids("<|im_end|>"), "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {
        "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    return Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


def processor_files(place: Path) -> Qwen2Tokenizer:
    words = tokenizer()
    words.save_pretrained(place)
    Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    ).save_pretrained(place)
    return words


def folder(place: Path, seed: int = 0, loud: float = 1.0) -> Path:
    """The whole model; `loud` makes it answer with one of its four words."""
    words = processor_files(place)
    model = tiny_scorers.stirred(Qwen2VLForConditionalGeneration(config(words)), seed)
    with torch.no_grad():
        model.lm_head.weight[words.convert_tokens_to_ids(list(WORDS))] *= loud
    model.generation_config.eos_token_id = words.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = words.convert_tokens_to_ids("<|endoftext|>")
    model.save_pretrained(place)
    return place


def hpsv3(place: Path, seed: int = 0, layout: str = "old") -> tuple[Path, Path, Qwen2VLModel, nn.Module]:
    """(checkpoint, folder of the base model, the model, its head) in the layout before or since transformers 4.52."""
    words = processor_files(place)
    sizes = config(words)
    sizes.save_pretrained(place)
    model = tiny_scorers.stirred(Qwen2VLModel(sizes), seed)
    head = nn.Sequential(
        nn.Linear(32, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    head = tiny_scorers.stirred(head, seed + 1)
    state = {f"rm_head.{name}": tensor for name, tensor in head.state_dict().items()}
    for name, tensor in model.state_dict().items():
        if layout == "new":
            state[f"model.{name}"] = tensor
        else:
            state[name.replace("language_model.", "model.")] = tensor
    state["lm_head.weight"] = torch.zeros(len(words) + 1, 32)
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, place / "HPSv3.safetensors")
    return place / "HPSv3.safetensors", place, model, head

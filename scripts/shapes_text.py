"""The text half of the embedded models: a word-level CLIP tokenizer, and small CLIP text encoders."""

import torch
from diffusers import StableDiffusionXLPipeline
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffalign.shapes.captions import WORDS

LENGTH = 32
WIDTH = 64


def tokenizer() -> CLIPTokenizer:
    """Byte alphabet and a chain of merges for each word of the grammar: every word is one token, nothing is unknown."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary, merges = dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)]), {}
    for word in WORDS:
        whole, *rest = [*word[:-1], word[-1] + "</w>"]
        for part in rest:
            merges[whole, part] = None
            whole += part
            vocabulary[whole] = None
    # the end token has the highest number: open_clip pools at the largest id, and pads with the same token after it
    names = [*vocabulary, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={name: i for i, name in enumerate(names)}, merges=list(merges), model_max_length=LENGTH
    )  # fmt: skip


def encoder(kind: type, words: CLIPTokenizer) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Three layers of width 64 with random weights; pipelines use the states before the last, and the pooled ones."""
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=WIDTH,
        max_position_embeddings=LENGTH,
        hidden_act="gelu",
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    model = kind(config)
    # CLIP starts at 0.02, and the states before the last layer are not normalised: a denoiser would hear nothing
    nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    return model


def tokens(words: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(texts, LENGTH) token numbers, padded as the pipelines do."""
    return words(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


def states(model: CLIPTextModel | CLIPTextModelWithProjection, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """(texts, LENGTH, WIDTH) states before the last layer, and the model's first output."""
    found = model(numbers, output_hidden_states=True)
    return found.hidden_states[-2], found[0]


def told(pipe: StableDiffusionXLPipeline, numbers: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What an SDXL pipeline's UNet is told of words, (texts, LENGTH): their states, and what is added to the time."""
    first, _ = states(pipe.text_encoder, numbers)
    second, pooled = states(pipe.text_encoder_2, numbers)
    sizes = torch.tensor([64.0, 64, 0, 0, 64, 64]).expand(len(numbers), -1)
    return join(first, second), {"text_embeds": pooled, "time_ids": sizes}


def join(*parts: Tensor) -> Tensor:
    """The encoders' states side by side."""
    return torch.cat(parts, dim=-1)

"""What a text encoder reads of a prompt, and what it cuts off."""

from typing import Any

import torch
from torch import Tensor


def unread(tokenizer: Any, prompt: str, length: int, framed: str | None = None) -> str:
    """The end of `prompt` that lies behind the first `length` tokens of `framed`, the text around it; "" mostly."""
    whole = framed if framed is not None else prompt
    found = tokenizer(whole, truncation=True, max_length=length, return_offsets_mapping=True)
    read = max((end for _, end in found["offset_mapping"]), default=0)
    start = whole.rindex(prompt)
    return prompt[max(0, read - start) :].strip()


def chat(tokenizer: Any, prompt: str, *, thinking: bool) -> str:
    """The prompt as a chat model is shown it."""
    words = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(words, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)


def told(pipe: Any, scale: float) -> dict[str, Tensor]:
    """What a UNet that was distilled for guidance (LCM) is told of its scale, one row; {} for all others."""
    width = pipe.unet.config.time_cond_proj_dim
    if width is None:
        return {}
    return {"guidance": pipe.get_guidance_scale_embedding(torch.tensor([scale - 1.0]), embedding_dim=width)}

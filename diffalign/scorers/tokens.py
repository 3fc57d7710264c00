"""Prompts -> token ids, by each judge's own tokenizer; a prompt is text, and never becomes a special token.

Tokenizers are not interchangeable: OpenAI's (and open_clip's) mends mojibake, full-width characters and curly quotes
and resolves HTML entities; that of transformers does none of it.
"""

import functools
import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from diffalign.records import InputError
from diffalign.scorers.plain import apart, normaliser, pattern

Tokenize = Callable[[Sequence[str]], dict[str, torch.Tensor]]
# how folders call the tokenizer of the first SigLIP
_FIRST = ("SiglipTokenizer", "SiglipTokenizerFast")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@functools.cache
def openai(length: int = 77) -> Tokenize:
    """CLIP's own tokenizer, as open_clip ships it: {"input_ids": (prompts, length)}, the last token always the end."""
    import open_clip.tokenizer

    return _ids(open_clip.tokenizer.SimpleTokenizer(context_length=length))


def open_clip_folder(folder: Path) -> Tokenize:
    """The tokenizer that open_clip takes for a folder of its layout: {"input_ids": (prompts, length)}."""
    import open_clip

    return _ids(open_clip.get_tokenizer(f"local-dir:{folder.resolve()}"))


def _ids(tokenizer: Callable[[list[str]], torch.Tensor]) -> Tokenize:
    """One of open_clip's tokenizers without the way from a prompt's text to a special token."""
    import open_clip.tokenizer
    import regex

    if isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer):
        # its pattern begins with the special tokens, so that a prompt could end itself
        words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        tokenizer.pat = regex.compile(words, regex.IGNORECASE)
    else:
        clean, special = tokenizer.clean_fn, pattern(tokenizer.tokenizer.all_special_tokens)
        normalise = normaliser(tokenizer.tokenizer)
        # after its own cleaning, which resolves HTML entities; `split_special_tokens` would not do for sentence pieces
        tokenizer.clean_fn = lambda text: apart(clean(text), special, normalise)
    return lambda prompts: {"input_ids": tokenizer(list(prompts))}


def clip(folder: Path, length: int = 77) -> Tokenize:
    """The CLIP tokenizer in a transformers folder: ids and mask, padded and cut to `length`."""
    from transformers import CLIPTokenizer

    return _huggingface(CLIPTokenizer, folder, length)


def bert(folder: Path, length: int) -> Tokenize:
    """The uncased BERT tokenizer in a transformers folder: ids and mask, padded and cut to `length`."""
    from transformers import BertTokenizer

    return _huggingface(BertTokenizer, folder, length)


def siglip(folder: Path, length: int) -> Tokenize:
    """The tokenizer in a SigLIP folder (tokenizer.json): ids cut or padded (at the end) to `length`, without mask.

    So it learnt. Prompts are in small letters, and for the first SigLIP without punctuation, as its own tokenizer does
    where it is no such file.
    """
    from transformers import PreTrainedTokenizerFast

    said = folder / "tokenizer_config.json"
    if not (folder / "tokenizer.json").is_file() or not said.is_file():
        raise InputError(f"{folder}: holds no tokenizer.json and tokenizer_config.json")
    try:
        first = json.loads(said.read_text(encoding="utf-8")).get("tokenizer_class") in _FIRST
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, padding_side="right")
    except Exception as error:  # tokenizers raise Exception itself
        raise InputError(f"{folder}: its tokenizer cannot be loaded ({' '.join(str(error).split())[:200]})") from None
    if tokenizer.pad_token_id is None:
        raise InputError(f"{folder}: its tokenizer names no padding")
    special, normalise = pattern(tokenizer.all_special_tokens), normaliser(tokenizer)

    def tokenize(prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        texts = [apart(_plain(prompt) if first else prompt.lower(), special, normalise) for prompt in prompts]
        found = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return {"input_ids": found["input_ids"]}

    return tokenize


def _plain(text: str) -> str:
    """In small letters, without ASCII's punctuation, one space between words."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def _huggingface(kind: type, folder: Path, length: int) -> Tokenize:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise InputError(f"{folder}: holds no tokenizer (tokenizer.json, or a vocabulary)")
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder}: {kind.__name__} cannot load it ({' '.join(str(error).split())[:200]})") from None

    def tokenize(prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        found = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt",
            split_special_tokens=True,
        )  # fmt: skip
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}

    return tokenize

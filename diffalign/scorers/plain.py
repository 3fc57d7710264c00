"""Words of others inside what a tokenizer reads: text they are and text they stay, never a special token."""

import re
import unicodedata
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How the special tokens of chat models look; which of them a server's tokenizer has is not known here.
CHAT = re.compile(r"<[|｜][^<>\s]*>|<[^<>\s]*[|｜]>|</?\w+>|\[/?g?[A-Z_]+\]")


def pattern(tokens: Collection[str]) -> re.Pattern:
    """What finds the tokens in a text, in any case; those of one letter, or with spaces, are words and stay."""
    found = sorted((t for t in tokens if len(t) > 1 and not re.search(r"\s", t)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found)) or "(?!)", re.IGNORECASE)


def normaliser(tokenizer: "PreTrainedTokenizerBase") -> Callable[[str], str]:
    """What a tokenizer of transformers makes of the letters before it looks for tokens; NFKC where it does not say."""
    found = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    return found.normalize_str if found else compatible


def compatible(text: str) -> str:
    """The text with letters of other widths and ligatures as the usual ones (NFKC)."""
    return unicodedata.normalize("NFKC", text)


def apart(text: str, special: re.Pattern, normalise: Callable[[str], str] = compatible) -> str:
    """The text with a space in each `special` token, also where one comes of normalising; any other text as it is."""
    text = _broken(text, special)
    seen = normalise(text)
    return _broken(seen, special) if special.search(seen) else text


def _broken(text: str, special: re.Pattern) -> str:
    while found := special.search(text):
        text = f"{text[: found.start() + 1]} {text[found.start() + 1 :]}"
    return text

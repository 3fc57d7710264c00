"""A judge's answer -> a number, or the reason why it is none; an answer that cannot be read is never a number."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffalign.records import InputError
from diffalign.scorers.base import Unavailable
from diffalign.scorers.server import Reply

# servers write "impossible" as -inf or -9999
_CERTAIN = 50.0
# words that may lead to a verdict in its sentence; any other ("not", "Alignment") makes it none of the whole
_LEAD = re.compile(
    "so|thus|therefore|hence|then|and|overall|in|conclusion|summary|short|all|to|conclude|finally|final|total|the|my|"
    "this|it|of|is|as|i|think|believe|judge|choose|pick|give|gives|rate|gets|deserves|verdict|answer|decision|choice|"
    "result|score|rating|image|better|best|one|number|here|are|json|list|marks?", re.IGNORECASE,
)  # fmt: skip
_BEFORE, _AFTER = r"[\w\s*_#>\"'“”‘’`:,$|()\[\]–—•-]*", r"[\s*_\"'”’`)\]}$|#.!-]*"
# where a sentence ends; of a number's, a dash before a word ends it too
_SENTENCE = r"\n|[.!?;…]+(?=\W|$)|[,;:–—-]\s+(?:and\s+)?(?=(?:so|therefore|thus|hence)\b)"
_CLAUSE = rf"{_SENTENCE}|\s[-–—•|]\s+(?=[^\W\d])"
_SCALE = re.compile(r"[\s*_]*(?:points?|stars?)?\s*\(?(?:/|out\s+of\b|of\b)[\s*_]*(\d+(?:\.\d+)?)", re.IGNORECASE)


class Unreadable(InputError):
    """The answer holds no verdict; the message says what was found."""


def alternatives(reply: Reply) -> tuple[tuple[str, float], ...]:
    """(word, log-probability) of the first token's alternatives, words without case, space and full stop.

    Raises Unavailable where the server gives none, and Unreadable where they are no log-probabilities.
    """
    if reply.first is None:
        raise Unavailable("judge: the server gives no logprobs; let it, or take a form that reads the text (…_text)")
    if any(math.isnan(p) or p > 1e-3 for _, p in reply.first):
        raise Unreadable(f"log-probabilities {[p for _, p in reply.first][:3]} are none")
    return tuple((token.strip().strip(".,!\"'").lower(), p) for token, p in reply.first)


def log_odds(reply: Reply, first: str, second: str) -> float:
    """log P(first) - log P(second) of the first token, all spellings of a word together.

    The likeliest token has to be one of the words. A word that is not listed is at most as likely as the least likely
    token that is. Raises Unreadable where the likeliest token is another word.
    """
    found = alternatives(reply)
    words = {w: [p for token, p in found if token == w.lower()] for w in (first, second)}
    likeliest = max(found, key=lambda entry: entry[1])
    if likeliest[0] not in (first.lower(), second.lower()):
        raise Unreadable(f"answered {likeliest[0]!r}, expected {first} or {second}")
    least = min(p for _, p in found)
    odds = _logsumexp(words[first] or [least]) - _logsumexp(words[second] or [least])
    return max(-_CERTAIN, min(_CERTAIN, odds))


def yes_no(reply: Reply) -> float:
    """P(yes) / (P(yes) + P(no)) of the first token."""
    return 1 / (1 + math.exp(-log_odds(reply, "yes", "no")))


def expectation(reply: Reply, low: int, high: int) -> float:
    """sum of d · P(d) / sum of P(d) over the digits d from low to high, of the first token, which has to be one."""
    found = alternatives(reply)
    likeliest = max(found, key=lambda entry: entry[1])[0]
    mass = {str(d): math.exp(_logsumexp([p for token, p in found if token == str(d)])) for d in range(low, high + 1)}
    if likeliest not in mass:
        raise Unreadable(f"answered {likeliest!r}, expected a digit from {low} to {high}")
    return sum(int(d) * p for d, p in mass.items()) / sum(mass.values())


def number(text: str, pattern: str, low: float, high: float, *, cut: bool = False) -> float:
    """The number that `pattern` captures, where a sentence says it and nothing else, maybe with its scale ("4/5").

    Matches that begin with "final" win over all others, and among them one that is alone on the last line; any others
    that differ are Unreadable, as is a number or scale outside. The last line of an answer that was `cut` is not read.
    """
    said = _said(text.rpartition("\n")[0] if cut else text)
    every = list(re.finditer(pattern, said))
    final = [m for m in every if m[0].lower().startswith("final")]
    found = [_Scaled(m[1], scale and scale[1], m.start(), scale.end() if scale else m.end())
             for m in final or every for scale in [_SCALE.match(said, m.end())]]  # fmt: skip
    stated = [f for f in found if _states(said, f.start, f.end, _CLAUSE)]
    if not stated:
        raise Unreadable(f"no number in {shortened(text)}")
    if final and _alone(said, found[-1].start, found[-1].end, [f.start for f in found]):
        found = found[-1:]
    if len({(float(f.number), f.scale) for f in found}) > 1:
        raise Unreadable(f"several numbers in {shortened(text)}")
    value, scale = float(found[0].number), found[0].scale
    if scale is not None and float(scale) != high:
        raise Unreadable(f"{value:g} out of {scale}, expected one out of {high:g}")
    if not low <= value <= high:
        raise Unreadable(f"{value:g} lies outside {low:g} to {high:g}")
    return value


def aspects(text: str, names: Sequence[str], low: float, high: float) -> tuple[float, ...]:
    """The aspects of a JSON object with a number each; raises Unreadable where one is missing or outside, and where two
    objects differ.
    """
    found = [x for x, *_ in _json(_said(text), "{") if isinstance(x, dict) and all(n in x for n in names)]
    if not found:
        raise Unreadable(f"no JSON object of {', '.join(names)} in {shortened(text)}")
    given = {_checked([x[n] for n in names], low, high) for x in found}
    if len(given) > 1:
        raise Unreadable(f"several JSON objects in {shortened(text)}")
    return given.pop()


def criteria(text: str) -> tuple[str, ...]:
    """The criteria in a JSON list of 1 to 20 texts; raises Unreadable where there is none."""
    for found, *_ in _json(_said(text), "["):
        if isinstance(found, list) and 1 <= len(found) <= 20 and all(isinstance(c, str) and c.strip() for c in found):
            return tuple(c.strip() for c in found)
    raise Unreadable(f"no JSON list of criteria in {shortened(text)}")


def marks(text: str, count: int) -> float:
    """Mean of a JSON list of `count` numbers from 0 to 1, on lines of its own.

    Raises Unreadable where there is none, and where two such lists differ.
    """
    said = _said(text)
    found = [(x, *span) for x, *span in _json(said, "[") if isinstance(x, list) and len(x) == count]
    if not any(_states(said, start, end, r"\n") for _, start, end in found):
        raise Unreadable(f"no JSON list of {count} marks in {shortened(text)}")
    given = {_checked(x, 0, 1) for x, *_ in found}
    if len(given) > 1:
        raise Unreadable(f"several JSON lists in {shortened(text)}")
    return sum(given.pop()) / count


def label(text: str, pattern: str, labels: Mapping[str, str], *, cut: bool = False) -> str:
    """What the text that `pattern` captures stands for: the answer ends with a sentence that says it and nothing else.

    Raises Unreadable where it does not or was `cut`, and where another match says otherwise, but for a last line that
    is the verdict alone.
    """
    said = _said(text)
    found = list(re.finditer(pattern, said, re.IGNORECASE))
    named = [labels.get(" ".join(m[1].lower().split())) for m in found]
    if cut or not found or named[-1] is None:
        raise Unreadable(f"no verdict in {shortened(text)}")
    start, end = found[-1].span()
    if not re.fullmatch(_AFTER, said[end:]) or not _states(said, start, end, _SENTENCE):
        raise Unreadable(f"no verdict at the end of {shortened(text)}")
    if len(set(named)) > 1 and not _alone(said, start, end, [m.start() for m in found]):
        raise Unreadable(f"several verdicts in {shortened(text)}")
    return named[-1]


def readable(reply: Reply, read: Callable[[Reply], float | str]) -> float | str:
    """`read(reply)`; raises Unreadable for a refusal, and says so where the answer was cut off."""
    if reply.refusal or reply.finish == "content_filter":
        raise Unreadable(f"refused {shortened(reply.refusal or reply.text)}")
    try:
        return read(reply)
    except Unreadable as error:
        raise Unreadable(f"{error}{' (cut at max_tokens)' if reply.finish == 'length' else ''}") from None


def shortened(text: str) -> str:
    """The text in one line, its end where it is long."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else f"…{line[-79:]}")


@dataclass(frozen=True)
class _Scaled:
    """A number in a text from `start` to `end`, and what it is said to be out of."""

    number: str
    scale: str | None
    start: int
    end: int


def _said(text: str) -> str:
    """The answer without what was thought before it, and without the tags around it."""
    spoken = re.sub(r"(?is)^.*</think(?:ing)?>|<think(?:ing)?>.*$", "", text)
    return re.sub(r"(?i)</?answer>", "", spoken)


def _states(text: str, start: int, end: int, breaks: str) -> bool:
    """Whether text[start:end] lies in a sentence (between `breaks`) that is no question and says nothing else."""
    before = re.split(breaks, text[:start])[-1]
    stop = re.search(breaks, text[end:])
    after = text[end:][: stop.start()] if stop else text[end:]
    led = re.fullmatch(_BEFORE, before) and all(map(_LEAD.fullmatch, re.findall(r"[^\W_]+", before)))
    return bool(led and re.fullmatch(_AFTER, after)) and not (stop and "?" in stop[0])


def _alone(text: str, start: int, end: int, starts: Sequence[int]) -> bool:
    """Whether text[start:end] is all that the last line says, and the only match there."""
    line = text.rfind("\n", 0, start) + 1
    return (
        _states(text, start, end, r"\n")
        and re.fullmatch(_AFTER, text[end:]) is not None
        and sum(s >= line for s in starts) == 1
    )


def _json(text: str, opening: str) -> Iterator[tuple[object, int, int]]:
    """(value, start, end) of the JSON values in a text that open with this; one that has a key twice is none."""
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    for start in (m.start() for m in re.finditer(re.escape(opening), text)):
        try:
            value, end = decoder.raw_decode(text, start)
        except ValueError:
            continue
        yield value, start, end


def _once(entries: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(entries)) < len(entries):
        raise ValueError("a key twice")
    return dict(entries)


def _checked(values: Sequence[object], low: float, high: float) -> tuple[float, ...]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise Unreadable(f"{value!r} is no number from {low:g} to {high:g}")
    return tuple(map(float, values))


def _logsumexp(values: Sequence[float]) -> float:
    if not values:
        return -math.inf
    top = max(values)
    return top if top == -math.inf else top + math.log(sum(math.exp(v - top) for v in values))

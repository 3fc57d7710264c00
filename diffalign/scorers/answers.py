"""A judge's answer -> a number, or the reason why it is none; an answer that cannot be read is never a number."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from diffalign.records import InputError
from diffalign.scorers.base import Unavailable
from diffalign.scorers.server import Reply

# servers write "impossible" as -inf or -9999
_CERTAIN = 50.0


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


def number(text: str, pattern: str, low: float, high: float) -> float:
    """The last number that `pattern` captures; raises Unreadable where there is none, or it lies outside."""
    found = re.findall(pattern, text)
    if not found:
        raise Unreadable(f"no number in {shortened(text)}")
    value = float(found[-1])
    if not low <= value <= high:
        raise Unreadable(f"{value:g} lies outside {low:g} to {high:g}")
    return value


def aspects(text: str, names: Sequence[str], low: float, high: float) -> tuple[float, ...]:
    """The aspects of a JSON object with a number each; raises Unreadable where one is missing or outside."""
    found = [x for x in _json(text, "{") if isinstance(x, dict) and all(n in x for n in names)]
    if not found:
        raise Unreadable(f"no JSON object of {', '.join(names)} in {shortened(text)}")
    return _checked([found[-1][n] for n in names], low, high)


def criteria(text: str) -> tuple[str, ...]:
    """The criteria in a JSON list of 1 to 20 texts; raises Unreadable where there is none."""
    for found in _json(text, "["):
        if isinstance(found, list) and 1 <= len(found) <= 20 and all(isinstance(c, str) and c.strip() for c in found):
            return tuple(c.strip() for c in found)
    raise Unreadable(f"no JSON list of criteria in {shortened(text)}")


def marks(text: str, count: int) -> float:
    """Mean of a JSON list of `count` numbers from 0 to 1; raises Unreadable where there is none."""
    for found in _json(text, "["):
        if isinstance(found, list) and len(found) == count:
            return sum(_checked(found, 0, 1)) / count
    raise Unreadable(f"no JSON list of {count} marks in {shortened(text)}")


def label(text: str, pattern: str, labels: Mapping[str, str]) -> str:
    """What the last text that `pattern` captures stands for; raises Unreadable where there is none."""
    found = [" ".join(x.lower().split()) for x in re.findall(pattern, text, re.IGNORECASE)]
    if not found or found[-1] not in labels:
        raise Unreadable(f"no verdict in {shortened(text)}")
    return labels[found[-1]]


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


def _json(text: str, start: str) -> Iterator[object]:
    decoder = json.JSONDecoder()
    for place in (m.start() for m in re.finditer(re.escape(start), text)):
        try:
            yield decoder.raw_decode(text, place)[0]
        except ValueError:
            continue


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

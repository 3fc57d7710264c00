"""Asking an OpenAI-compatible chat server: bounded concurrency, retries with backoff, deadlines, counted tokens.

The key comes from an environment variable, is sent to the named server only (redirects are refused), and is in no
message. Threads wait, not this process's interpreter: a request is a POST and one answer.
"""

import base64
import functools
import http.client
import io
import json
import operator
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import PIL.Image

from diffalign.records import InputError
from diffalign.scorers.base import Spent, Unavailable

# What passes with time; any other status is the request's own fault.
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_CLOSED = (401, 403, 404)
# What is said of who asks, not of what is asked.
_BUSY = (429, 529)
_ONE = Spent(requests=1)
_LONGEST_PAUSE, _LARGEST_ANSWER = 60.0, 16 << 20


@dataclass(frozen=True)
class Reply:
    """What the server said: a text, the alternatives of its first token as (token, log-probability), why it ended."""

    text: str
    first: tuple[tuple[str, float], ...] | None = None
    finish: str = "stop"
    refusal: str = ""
    spent: Spent = _ONE


@dataclass(frozen=True)
class Silence:
    """That the server gives no answer to one request, though it gives some to others: why."""

    reason: str
    spent: Spent = Spent()


class _Fault(Exception):
    """One request failed; `after` says when the server wants to be asked again, in seconds."""

    def __init__(
        self, message: str, *, passing: bool, busy: bool = False, after: float = 0.0, spent: Spent = _ONE
    ) -> None:
        super().__init__(message)
        self.passing, self.busy, self.after, self.spent = passing, busy, after, spent


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return None


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server, `url` up to and with "/v1".

    Attributes:
        key: Name of the environment variable that holds the key; without that variable no key is sent.
        concurrency: Requests under way at once.
        timeout: Seconds for one request, from connecting to the last byte.
        retries: How often a fault that may pass (429, 5xx, a cut connection, half an answer) is asked again.
        pause: Waits that many seconds.
    """

    url: str
    key: str = "DIFFALIGN_JUDGE_KEY"
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 5
    pause: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"judge: url {self.url!r}, expected http://HOST:PORT/v1 or https://…")
        if parts.username or parts.password:
            raise InputError(f"judge: the url holds a name or password; put the key into the variable {self.key}")

    def ask(self, bodies: Sequence[dict]) -> list[Reply | Silence]:
        """The replies to request bodies, in order; Silence where the server refused that request alone, or failed at it
        alone.

        Raises Unavailable where the server cannot be asked at all: no connection, wrong key, no such model, too many
        requests, a fault that did not pass while no other request was answered either, or every request refused.
        """
        if not bodies:
            return []
        # one bad picture, or a server that takes none of these requests: one with pictures that nobody refuses tells
        plain = _plain(bodies[0])
        others = [plain]
        with ThreadPoolExecutor(min(self.concurrency, len(bodies))) as pool:
            futures = [pool.submit(self._patiently, body, others) for body in bodies]
            try:
                found = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if all(isinstance(reply, Silence) for reply in found):
            told = self._patiently(plain, [plain])
            if isinstance(told, Silence):
                raise Unavailable(f"judge {self.url}: answers no request: {found[0].reason}")
            found[0] = replace(found[0], spent=found[0].spent + told.spent)
        return found

    def _patiently(self, body: dict, others: list[dict]) -> Reply | Silence:
        """What comes of a request; the last of `others` is a different one to try, those answered are added there."""
        faults: list[_Fault] = []
        while len(faults) <= self.retries:
            try:
                found = self._once(body)
            except _Fault as fault:
                faults.append(fault)
                if not fault.passing:
                    return _after(faults, Silence(f"the server refused ({fault})"))
                if len(faults) <= self.retries:
                    self.pause(min(_LONGEST_PAUSE, max(fault.after, 0.5 * 2 ** (len(faults) - 1))))
            else:
                others.append(body)
                return _after(faults, found)
        return self._alone(body, others[-1], faults)

    def _alone(self, body: dict, other: dict, faults: list[_Fault]) -> Reply | Silence:
        """What comes of a request that has failed to the end, where another one is answered now; else Unavailable."""
        last = faults[-1]
        try:
            if last.busy:
                raise last
            told = self._once(other)
            # the server may have come back just now: it fails at this request where it does so right after another one
            try:
                found: Reply | Silence = self._once(body)
            except _Fault as fault:
                if fault.busy:
                    raise
                faults = [*faults, fault]
                found = Silence(f"the server answers others and fails at this one ({fault}, {len(faults)} times)")
        except _Fault:
            message = f"judge {self.url}: {last}, {len(faults)} times; start or mend it and run this again"
            raise Unavailable(message) from None
        return _after(faults, replace(found, spent=found.spent + told.spent))

    def _once(self, body: dict) -> Reply:
        key = os.environ.get(self.key, "")
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(
            self.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener().open(request, timeout=self.timeout) as response:
                return reply(_whole(response, deadline))
        except urllib.error.HTTPError as error:
            raise self._refused(error, key) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise _Fault(f"cannot be reached ({type(reason).__name__}: {reason})", passing=True) from None

    def _opener(self) -> urllib.request.OpenerDirector:
        local = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        return urllib.request.build_opener(_Stay, *([urllib.request.ProxyHandler({})] if local else []))

    def _refused(self, error: urllib.error.HTTPError, key: str) -> Exception:
        try:
            said = " ".join(error.read(2000).decode(errors="replace").split())[:200]
        except (OSError, http.client.HTTPException):
            said = "and no reason"
        said = f"status {error.code}: {said.replace(key, '…') if key else said}"
        if error.code in _CLOSED or 300 <= error.code < 400:
            hint = f" (the key is read from {self.key})" if error.code in (401, 403) else ""
            return Unavailable(f"judge {self.url}: {said}{hint}")
        after = _seconds(error.headers.get("Retry-After"))
        return _Fault(said, passing=error.code in _PASSING, busy=error.code in _BUSY, after=after)


def _after(faults: Sequence[_Fault], found: Reply | Silence) -> Reply | Silence:
    """What was found after those faults, with all that was spent; the first request is no retry."""
    spent = functools.reduce(operator.add, (fault.spent for fault in faults), found.spent)
    return replace(found, spent=replace(spent, retried=spent.requests - 1))


def _plain(body: dict) -> dict:
    """The request with as many pictures, small and white, and two words; a server of texts answers only where it has
    none.
    """
    parts = [p for m in body["messages"] if isinstance(m["content"], list) for p in m["content"]]
    white = picture(PIL.Image.new("RGB", (64, 64), "white"))
    shown = [white for part in parts if part["type"] == "image_url"]
    return body | {"messages": [{"role": "user", "content": [*shown, {"type": "text", "text": "Answer yes."}]}]}


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0  # a date; the pause then grows by itself


def _whole(response: http.client.HTTPResponse, deadline: float) -> bytes:
    found = bytearray()
    while block := response.read1(1 << 16):
        found += block
        if time.monotonic() > deadline:
            raise TimeoutError("the answer took too long")
        if len(found) > _LARGEST_ANSWER:
            raise _Fault("the answer does not end", passing=False)
    if response.length:
        raise http.client.IncompleteRead(bytes(found), response.length)
    return bytes(found)


def reply(data: bytes) -> Reply:
    """The reply in the bytes of a chat completion; raises a fault that may pass where they are none."""
    spent = _ONE
    try:
        whole = json.loads(data)
        usage = whole.get("usage") or {}
        counts = {f"{part}_tokens": int(usage.get(f"{part}_tokens") or 0) for part in ("prompt", "completion")}
        spent = replace(spent, **counts)
        choice = whole["choices"][0]
        message = choice["message"]
        return Reply(
            str(message.get("content") or ""), _first(choice.get("logprobs")), str(choice.get("finish_reason")),
            str(message.get("refusal") or ""), spent,
        )  # fmt: skip
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        said = f"answers what is no chat completion ({type(error).__name__})"
        raise _Fault(said, passing=True, spent=spent) from None


def _first(logprobs: dict | None) -> tuple[tuple[str, float], ...] | None:
    """The alternatives of the first token; None where the server gave none."""
    if not logprobs or not logprobs.get("content"):
        return None
    entry = logprobs["content"][0]
    listed = entry.get("top_logprobs") or [entry]
    return tuple((str(t["token"]), float(t["logprob"])) for t in listed)


def picture(image: PIL.Image.Image) -> dict:
    """An image as part of a message: PNG, as it is, nothing made smaller."""
    sink = io.BytesIO()
    image.save(sink, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}

"""Any vision-language model, behind an OpenAI-compatible server or in this process, as a judge of one image or two."""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL.Image import Image

from diffalign.manifest import write_atomically
from diffalign.records import InputError, digest
from diffalign.scorers import answers, checkpoints, local, questions
from diffalign.scorers.base import Answers, Scorer, Spent
from diffalign.scorers.comparisons import Comparison, both
from diffalign.scorers.local import Local
from diffalign.scorers.plain import CHAT, apart
from diffalign.scorers.questions import Question
from diffalign.scorers.server import Reply, Server, Silence, picture

if TYPE_CHECKING:
    import torch

# What changes an answer; the rest says only how the server is reached.
_TRANSPORT = ("url", "key", "concurrency", "timeout", "retries", "prices", "store", "precision")
# the url of a model in this process
LOCAL = "local"


def judge(place: str) -> Scorer:
    """The judge "QUESTION,URL,MODEL": a shipped question or FILE.toml, a server up to "/v1", the model's name there; or
    "QUESTION,local,FOLDER", a folder or hub id in transformers' layout, asked in this process.

    URL and MODEL may stand in the file instead. Its scores are the question's numbers, in its range.
    """
    name, question = configured(place)
    if question.form not in questions.ONE:
        what = f"{name} compares two images (form {question.form}) and scores none"
        raise InputError(f"scorer judge: {what}; `diffalign judge` asks it")
    plain = {k: v for k, v in dataclasses.asdict(question).items() if k not in _TRANSPORT}
    revision, here = digest(json.dumps(plain, sort_keys=True, default=str)), question.url == LOCAL
    if here:
        weights = checkpoints.revision(local.place_of(question.model))
        revision = digest(revision, weights, question.precision)
    found = Scorer(
        f"judge:{name}", revision, "PNG, full size", lambda: Judge(question), spent=lambda f: f.spent,
        prices=question.prices, parts=question.parts, towers=here,
    )  # fmt: skip
    return found.lowered() if here and question.precision == "bfloat16" else found


def configured(place: str) -> tuple[str, Question]:
    """(name, question) of "QUESTION,URL,MODEL"; raises InputError where no server or model is named anywhere."""
    file, url, model = [*place.split(",", 2), "", ""][:3]
    if not file:
        raise InputError("scorer judge: needs a question, judge=QUESTION,URL,MODEL (say yes_no, scale_5, aspects)")
    name, question = questions.read(file)
    question = dataclasses.replace(question, url=url or question.url, model=model or question.model)
    for what in ("url", "model"):
        if not getattr(question, what):
            raise InputError(f"scorer judge: {file} names no {what}; judge={file},URL,MODEL")
    if question.url != LOCAL:
        Server(question.url, question.key)
    return name, question


class Judge:
    """A question and who is asked: a server, or a model here. Requests, tokens and unreadable answers are counted.

    What looks like a chat model's special token in a prompt is sent with a space in it: text to whoever reads.
    """

    def __init__(self, question: Question, pause: Callable[[float], None] | None = None) -> None:
        self.question = question
        q = question
        if q.url == LOCAL:
            self.server: Server | Local = local.Local(local.place_of(q.model), q.precision, q.concurrency)
        else:
            self.server = Server(q.url, q.key, q.concurrency, q.timeout, q.retries, pause or time.sleep)
        self.spent = Spent()

    def cast(self, dtype: "torch.dtype") -> None:
        """Compute a model in this process in `dtype`."""
        self.server.cast(dtype)

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> Answers:
        """Scores, (images,), NaN with a reason where the answer could not be read twice, was refused, or never came."""
        rubrics = self._rubrics(prompts) if self.question.form == "rubric" else {}
        asked, reads, values = [], [], {}
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            rubric = rubrics.get(prompt, ())
            if isinstance(rubric, answers.Unreadable):
                values[i] = rubric
                continue
            content = [picture(image), {"type": "text", "text": self._words(prompt, rubric)}]
            asked.append(self._messages(content))
            reads.append(functools.partial(self._value, criteria=len(rubric)))
        given = iter(self._ask(asked, reads))
        found = [values[i] if i in values else next(given) for i in range(len(images))]
        width = len(self.question.parts) or 1
        numbers = np.array([np.full(width, math.nan if isinstance(v, Exception) else v) for v in found])
        why = tuple(str(v) if isinstance(v, Exception) else None for v in found)
        return Answers(numbers.mean(1), why, numbers if self.question.parts else None)

    def compare(self, first: Sequence[Image], second: Sequence[Image], prompts: Sequence[str]) -> list[Comparison]:
        """Each two images under their prompt, asked in both orders.

        By log-probabilities: P = sigmoid of the mean of both orders' log-odds; by text: the mean of both verdicts.
        """
        if self.question.form not in questions.TWO:
            raise InputError(f"judge: form {self.question.form} compares nothing, expected {', '.join(questions.TWO)}")
        asked = []
        for a, b, prompt in zip(first, second, prompts, strict=True):
            for shown in ((a, b), (b, a)):
                both_named = zip(self.question.names, shown, strict=True)
                labelled = [x for n, i in both_named for x in ({"type": "text", "text": f"{n}:"}, picture(i))]
                asked.append(self._messages([*labelled, {"type": "text", "text": self._words(prompt)}]))
        given = self._ask(asked, [self._verdict] * len(asked))
        return [both(*given[i : i + 2]) for i in range(0, len(given), 2)]

    def account(self) -> str:
        """What was asked and what it cost, in words."""
        return self.spent.said(self.question.prices)

    def _words(self, prompt: str, rubric: Sequence[str] = ()) -> str:
        listed = "\n".join(f"{n}. {text}" for n, text in enumerate(rubric, 1))
        return self.question.prompt.replace("{criteria}", apart(listed, CHAT)).replace("{prompt}", apart(prompt, CHAT))

    def _messages(self, content: list[dict]) -> list[dict]:
        system = [{"role": "system", "content": self.question.system}] if self.question.system else []
        return [*system, {"role": "user", "content": content}]

    def _value(self, reply: Reply, criteria: int) -> float | tuple[float, ...]:
        q, cut = self.question, reply.finish == "length"
        if q.form == "yes_no":
            return answers.yes_no(reply)
        if q.form == "digits":
            return answers.expectation(reply, int(q.low), int(q.high))
        if q.form == "number":
            return answers.number(reply.text, q.pattern, q.low, q.high, cut=cut)
        if q.form == "aspects":
            return answers.aspects(reply.text, q.aspects, q.low, q.high)
        return answers.marks(reply.text, criteria)

    def _verdict(self, reply: Reply) -> float | str:
        if self.question.form == "two":
            return answers.log_odds(reply, "a", "b")
        q, cut = self.question, reply.finish == "length"
        return answers.label(reply.text, q.pattern, q.labels, cut=cut)

    def _rubrics(self, prompts: Sequence[str]) -> dict[str, tuple[str, ...] | answers.Unreadable]:
        """Criteria of each unique prompt, from the store or written now and stored."""
        found, todo = {}, []
        for prompt in dict.fromkeys(prompts):
            path = self._stored(prompt)
            if path.is_file():
                found[prompt] = _kept(path)
            else:
                todo.append(prompt)
        asked = [
            self._messages([{"type": "text", "text": self.question.criteria.replace("{prompt}", apart(p, CHAT))}])
            for p in todo
        ]
        for prompt, given in zip(todo, self._ask(asked, [lambda r: answers.criteria(r.text)] * len(todo)), strict=True):
            found[prompt] = given
            if not isinstance(given, Exception):
                kept = {"prompt": prompt, "model": self.question.model, "criteria": given}
                path = self._stored(prompt)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())
        return found

    def _stored(self, prompt: str) -> Path:
        return Path(self.question.store) / f"{digest(self.question.model, self.question.criteria, prompt)}.json"

    def _ask(self, asked: Sequence[list[dict]], reads: Sequence[Callable]) -> list:
        """What is read in each answer, or Unreadable; equal requests are sent once, unreadable ones once more."""
        keys = [digest(json.dumps(m)) for m in asked]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        given = dict(zip(first, self._send([self._body(asked[i]) for i in first.values()]), strict=True))
        found = {key: self._read(reply, reads[first[key]]) for key, reply in given.items()}
        again = [k for k, v in found.items() if isinstance(v, answers.Unreadable) and self._worth(given[k])]
        reminded = [
            [*asked[first[k]], {"role": "assistant", "content": given[k].text or "…"},
             {"role": "user", "content": self.question.reminder}]
            for k in again
        ]  # fmt: skip
        for key, reply in zip(again, self._send([self._body(m) for m in reminded]), strict=True):
            found[key] = self._read(reply, reads[first[key]])
        missing = sum(isinstance(v, Exception) for v in found.values())
        self.spent += Spent(repeated=len(again), missing=missing)
        return [found[key] for key in keys]

    def _worth(self, reply: Reply | Silence) -> bool:
        """Whether an unreadable reply is worth a reminder: not where there is none, or the model refused."""
        refused = isinstance(reply, Silence) or reply.refusal or reply.finish == "content_filter"
        return bool(self.question.reminder) and not refused

    def _body(self, messages: list[dict]) -> dict:
        q = self.question
        body = {
            "model": q.model, "messages": messages, "temperature": q.temperature, "seed": q.seed,
            "max_tokens": q.max_tokens,
        }  # fmt: skip
        if q.form in ("yes_no", "digits", "two"):
            body |= {"logprobs": True, "top_logprobs": q.top_logprobs}
        return body | q.extra

    def _send(self, bodies: Sequence[dict]) -> list[Reply | Silence]:
        replies = self.server.ask(bodies)
        self.spent = sum((reply.spent for reply in replies), self.spent)
        return replies

    @staticmethod
    def _read(reply: Reply | Silence, read: Callable) -> float | str | tuple | answers.Unreadable:
        if isinstance(reply, Silence):
            return answers.Unreadable(reply.reason)
        try:
            return answers.readable(reply, read)
        except answers.Unreadable as error:
            return error


def _kept(path: Path) -> tuple[str, ...]:
    try:
        return answers.criteria(json.dumps(json.loads(path.read_text(encoding="utf-8"))["criteria"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: holds no criteria; remove it, and they are written again") from None

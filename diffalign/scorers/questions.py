"""What a judge is asked, as a TOML file: the form of the answer, the words, and the server's settings."""

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from diffalign.records import InputError

# Forms that give a number for one image, and forms that compare two.
ONE = ("yes_no", "digits", "number", "aspects", "rubric")
TWO = ("two", "two_text", "four")
_SHIPPED = Path(__file__).parent / "prompts"
# By the names of those who asked first; the words are our own.
NAMED = {"visionprefer": "aspects", "designsense": "four", "auto_rubric": "rubric"}


@dataclass(frozen=True)
class Question:
    """One TOML file. In `prompt`, `{prompt}` is where the image's prompt goes.

    Attributes:
        form: yes_no (P(yes) by log-probabilities), digits (expected digit by log-probabilities), number (from the
            text, by `pattern`), aspects (a JSON object, its mean), rubric (criteria written first, then marked); two
            (A or B by log-probabilities), two_text and four (a label from the text).
        prompt: The words of the question.
        reminder: Said after an answer that could not be read, once.
        low, high: Range of the number.
        pattern: Regular expression that captures the number or label and matches to the end of what states it. What
            it captures counts as `answers.number` and `answers.label` say.
        aspects: Keys of the JSON object.
        names: What the first and the second image are called where two are shown.
        labels: What each captured text, in lower case, stands for: first, second, tie, both_good, both_bad.
        criteria: For a rubric, how the criteria are asked for; `{criteria}` in `prompt` is where they go.
        store: For a rubric, the folder where criteria are kept, one JSON file a prompt.
        url, model, key, concurrency, timeout, retries: The server, see `Server`; "local" asks `model`, a folder or hub
            id in transformers' layout, in this process.
        precision: Of a model in this process, float32 or bfloat16.
        temperature, seed, max_tokens, top_logprobs: Sent with each request.
        extra: More fields of the request, as the server knows them.
        prices: Cost of a million prompt and completion tokens, to be told the cost.
    """

    form: str
    prompt: str
    system: str = ""
    reminder: str = ""
    low: float = 0.0
    high: float = 1.0
    pattern: str = ""
    aspects: tuple[str, ...] = ()
    names: tuple[str, ...] = ("Image A", "Image B")
    labels: dict[str, str] = field(default_factory=dict)
    criteria: str = ""
    store: str = "rubrics"
    url: str = ""
    model: str = ""
    precision: str = "float32"
    key: str = "DIFFALIGN_JUDGE_KEY"
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 5
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int = 1
    top_logprobs: int = 20
    extra: dict[str, object] = field(default_factory=dict)
    prices: tuple[float, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Of what the score is the mean, where each has a score of its own."""
        return self.aspects if self.form == "aspects" else ()


def read(name: str) -> tuple[str, Question]:
    """(name, question) of a TOML file, or of a shipped one by its name; raises InputError naming file and field."""
    path = Path(name)
    if path.suffix != ".toml":
        path = _SHIPPED / f"{NAMED.get(name, name)}.toml"
        if not path.is_file():
            known = ", ".join(sorted({*NAMED, *(p.stem for p in _SHIPPED.glob("*.toml"))}))
            raise InputError(f"judge {name!r}: no such question; expected FILE.toml or one of {known}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is no TOML ({error})") from None
    return name if name in NAMED else path.stem, _question(path, table)


def _question(path: Path, table: dict[str, object]) -> Question:
    fields = {f.name: f for f in dataclasses.fields(Question)}
    for name, value in table.items():
        if name not in fields:
            raise InputError(f"{path}: field {name} is not known, expected {', '.join(fields)}")
        wanted = _kinds(fields[name])
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise InputError(f"{path}: field {name} is {value!r}, expected {wanted[0].__name__}")
    for name in ("form", "prompt"):
        if not table.get(name):
            raise InputError(f"{path}: field {name} is missing")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    return _checked(path, Question(**given))


def _kinds(known: dataclasses.Field) -> tuple[type, ...]:
    text = str(known.type).removeprefix("<class '").removesuffix("'>")
    found = {"str": (str,), "int": (int,), "float": (float, int)}
    return found.get(text) or ((list,) if text.startswith("tuple") else (dict,))


def _checked(path: Path, q: Question) -> Question:
    said = {
        "form": q.form not in (*ONE, *TWO) and f"is {q.form!r}, expected one of {', '.join((*ONE, *TWO))}",
        "prompt": "{prompt}" not in q.prompt and q.form != "number" and "holds no {prompt}",
        "pattern": q.form in ("number", "two_text", "four") and _bad_pattern(q.pattern),
        "aspects": q.form == "aspects" and not q.aspects and "is missing",
        "labels": _bad_labels(q),
        "names": (len(q.names) != 2 or not all(isinstance(n, str) for n in q.names)) and "holds not two texts",
        "criteria": q.form == "rubric" and ("{prompt}" not in q.criteria) and "holds no {prompt}",
        "high": q.form == "digits" and not 0 <= q.low < q.high <= 9 and "digits are from 0 to 9; take form number",
        "low": q.low >= q.high and "is not below high",
        "precision": q.precision not in ("float32", "bfloat16") and "is neither float32 nor bfloat16",
        "concurrency": q.concurrency < 1 and "is below 1",
        "timeout": q.timeout <= 0 and "is not above 0",
        "retries": q.retries < 0 and "is below 0",
        "max_tokens": q.max_tokens < 1 and "is below 1",
        "prices": len(q.prices) not in (0, 2) and "holds not two numbers",
    }
    for name, what in said.items():
        if what:
            raise InputError(f"{path}: field {name} {what}")
    return q


def _bad_pattern(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        return f"is no regular expression ({error})"
    return "" if groups == 1 else f"captures {groups} groups, expected 1"


def _bad_labels(q: Question) -> str:
    allowed = {"two_text": {"first", "second", "tie"}, "four": {"first", "second", "both_good", "both_bad"}}
    if q.form not in allowed:
        return ""
    wanted = allowed[q.form]
    odd = sorted(set(q.labels.values()) - wanted)
    return f"name {odd or 'nothing'}, expected {', '.join(sorted(wanted))}" if odd or not q.labels else ""

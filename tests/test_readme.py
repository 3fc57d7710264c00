"""The README does what it says: its Python runs, its commands parse, and its loop runs at reduced size.

The two opening commands are not here: continuous integration runs the one, the reduced demonstration is the other.
"""

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run

from diffalign import parsing
from diffalign.cli import VERBS
from diffalign.recipes import load_recipe
from diffalign.run import Run

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = {
    "sample": ["--steps", "2", "--batch", "4"],
    "train": ["--steps", "2", "--batch", "2", "--policy.rank", "2"],
}
PROMPTS = "a large red circle on a white background\na small blue star on a pink background\n"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.M | re.S)


def commands(block: str) -> list[list[str]]:
    """The words of every command of this program in a block; a backslash at the end of a line joins the next."""
    lines = block.replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == ["diffalign"]]


SHELL = [c for language in ("bash", "sh", "console") for block in blocks(language) for c in commands(block)]


def parsed(words: list[str]) -> object:
    """The call that a command line asks for, not made."""
    verb, rest = words[0], words[1:]
    if verb in ("train", "cache"):
        return parsing.parse(Run, rest[1:], f"diffalign {verb}", load_recipe(rest[0]).run)
    module = __import__(VERBS[verb][0], fromlist=["x"])
    return parsing.call(vars(module).get(verb.replace("-", "_")) or vars(module)[f"{verb}_"], rest, f"diffalign {verb}")


def test_there_is_something_to_test() -> None:
    assert len(SHELL) >= 8
    assert blocks("python")
    assert TEXT.startswith(
        "# diffalign\n\n    pip install -e . && diffalign demo\n\n    pip install -e '.[test]' && pytest\n"
    )


@pytest.mark.parametrize("words", SHELL, ids=" ".join)
def test_commands_parse(words: list[str]) -> None:
    assert words[0] in VERBS
    if {"--help", "-h"} & set(words):
        with pytest.raises(SystemExit) as end:
            parsed(words)
        assert not end.value.code
        return
    found = parsed(words)
    assert isinstance(found, Run | Callable)


def test_the_loop_runs(tmp_path: Path) -> None:
    """The first block, on two prompts, with two steps of everything: what one command writes the next one reads."""
    for name in ("prompts.txt", "test.txt"):
        (tmp_path / name).write_text(PROMPTS)
    loop = commands(blocks("bash")[0])
    assert [words[0] for words in loop][:4] == ["sample", "score", "pair", "train"]
    assert [words[0] for words in loop][-2:] == ["compare", "report"]
    for words in loop:
        ended = run(*words, *SMALL.get(words[0], []), cwd=tmp_path)
        assert (ended.status, ended.complaints) == (0, ""), " ".join(words)
    assert (tmp_path / loop[-1][-1]).stat().st_size > 10_000


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[-1].strip()[:40])
def test_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "block.py"
    path.write_text(block)
    runpy.run_path(str(path))
    assert len(list(tmp_path.iterdir())) > 1, "it leaves what it made"


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?://|#)([^)#]+)", TEXT))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_numbers_of_a_run_are_explained() -> None:
    from diffalign.measuring import NAMES

    for name in (*NAMES[1:], "gradient_norm", "learning_rate"):
        assert f"`{name}`" in TEXT

"""The table of methods, from the shipped recipes and the classes in them: Markdown on stdout, or into the README.

python scripts/methods_table.py            # print it
python scripts/methods_table.py README.md  # put it between the marker comments of that file
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from diffalign import places
from diffalign.folders import write_atomically
from diffalign.objectives.base import Advantages, Judgement, Modifier, Objective, Pairs, Ranking, Unpaired
from diffalign.recipes import load_recipe
from diffalign.run import EMA, HardCopy, Run

BEGIN, END = "<!-- methods -->", "<!-- /methods -->"
HEAD = ("method", "class", "recipes", "paper", "reference", "data", "extra forward passes per image")
KINDS = {Pairs: "pairs", Unpaired: "desirability", Ranking: "rankings", Advantages: "advantages", Judgement: "any"}


@dataclass(frozen=True)
class Described:
    """A recipe with what its docstring says: the method (first line, before " on ") and the paper (line "Paper:")."""

    name: str
    run: Run
    method: str
    paper: str


def described(path: Path) -> Described:
    """A recipe file; raises ValueError where its docstring does not name method and paper."""
    lines = path.read_text(encoding="utf-8").split('"""')[1].splitlines()
    papers = [line.removeprefix("Paper: ").rstrip(".") for line in lines if line.startswith("Paper: ")]
    if " on " not in lines[0] or len(papers) != 1:
        raise ValueError(f"{path}: expected a first line '<method> on <model>' and one line 'Paper: ...'")
    return Described(path.stem, load_recipe(str(path)).run, lines[0].split(" on ")[0], papers[0].split(";")[0])


def recipes() -> list[Described]:
    """All shipped recipes, those for the papers' models first; scripts of rounds define no run of their own."""
    paths = [p for p in places.recipe("shapes_dpo").parent.glob("*.py") if not p.stem.startswith("rounds_")]
    return [described(p) for p in sorted(paths, key=lambda p: (p.stem.startswith("shapes_"), p.stem))]


def classes(objective: Objective) -> str:
    """The class, and in brackets the one it modifies."""
    name = type(objective).__name__
    return f"{name}({classes(objective.objective)})" if isinstance(objective, Modifier) else name


def reference(run: Run) -> str:
    """Which past selves of the policy a run compares it with."""
    kinds = []
    if not run.objective.reference_free:
        moving = isinstance(run.reference, HardCopy | EMA)
        kinds.append(f"moving, every {run.reference.every} steps" if moving else "frozen")
    if run.objective.needs_old:
        kinds.append("previous policy")
    return ", ".join(kinds) or "none"


def data(run: Run) -> str:
    """The kind of judgement, and what else the records must hold."""
    needed = [KINDS[run.objective.judgement]]
    weighed = run.objective.needs_gaps
    if weighed or run.curriculum.stages > 1:
        needed.append("score gaps")
    if run.captions == "own":
        needed.append("own captions")
    if run.labels == "swapped":
        needed.append("read swapped")
    return ", ".join(needed)


def forwards(runs: list[Run]) -> str:
    """Passes beside the policy's own with gradient; a batch's statistic doubles them where the batch comes in parts."""
    run, passes = runs[0], []
    objective = run.objective
    if not objective.reference_free:
        passes.append("1 reference")
    if objective.needs_old and (objective.reference_free or run.old != run.reference):
        passes.append("1 previous policy")
    inverting = sorted({r.states.inversion.steps * (1 + r.states.inversion.renoise) for r in runs} - {0})
    if inverting:
        passes.append(f"up to {' or '.join(map(str, inverting))} inverting")
    if objective.coupled:
        passes.append("all again without gradient where a batch has several parts")
    return ", ".join(passes) or "0"


def row(found: list[Described]) -> tuple[str, ...]:
    """One method's line: what its first recipe says, and all its recipes."""
    first, run = found[0], found[0].run
    links = ", ".join(f"[{d.name}](train/{d.name}.py)" for d in found)
    return (
        first.method,
        f"`{classes(run.objective)}`",
        links,
        first.paper,
        reference(run),
        data(run),
        forwards([d.run for d in found]),
    )


def table() -> str:
    """The table in Markdown, a method a line, by kind of data."""
    methods: dict[str, list[Described]] = {}
    for one in recipes():
        methods.setdefault(one.method, []).append(one)
    order = list(KINDS)
    found = sorted(methods.values(), key=lambda m: (order.index(m[0].run.objective.judgement), m[0].method.lower()))
    lines = [HEAD, ("---",) * len(HEAD), *map(row, found)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def put(text: str) -> str:
    """`text` with the table between the two marker comments; ValueError where they are not there once each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"expected {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}{END}{rest.split(END)[1]}"


def main() -> None:
    """Read the command line, print or put the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", help="file with the marker comments; none: print")
    asked = parser.parse_args()
    if asked.file is None:
        print(table(), end="")
    else:
        write_atomically(asked.file, put(asked.file.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main()

"""What a finished demonstration changed, attribute by attribute: Markdown on stdout.

    python scripts/demo_attributes.py runs/table/seed-0

Share of pictures in which each demanded attribute is right, before and after; and, by the gold score, how often the
policy wins where as much is right as before (there the crisper picture wins), and elsewhere.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import PIL.Image

from diffalign import folders
from diffalign.shapes.gold import Verdict, judge


def verdicts(folder: Path) -> dict[tuple[str, int], Verdict]:
    """The gold verdict on every picture of a folder, by prompt and index."""
    texts = {row.id: row.text for row in folders.records(folder, "prompts")}
    found = {}
    for row in folders.records(folder, "images"):
        picture = np.asarray(PIL.Image.open(io.BytesIO(row.image["bytes"])).convert("RGB"))
        found[row.prompt_id, row.index] = judge(picture, texts[row.prompt_id])
    return found


def attributes(base: list[Verdict], policy: list[Verdict]) -> str:
    """Share of each attribute that is right among the pictures of which it is demanded, as a table."""
    names = sorted({name for verdict in base for name in verdict.right if " " not in name})
    shares = [[np.mean([v.right[n] for v in side if n in v.right]) for side in (base, policy)] for n in names]
    rows = [f"| {name} | {a:.1%} | {b:.1%} |" for name, (a, b) in zip(names, shares, strict=True)]
    return "\n".join(["| attribute right | base | policy |", "| --- | ---: | ---: |", *rows])


def wins(base: list[Verdict], policy: list[Verdict]) -> str:
    """How often the policy wins by the gold score, ties counted half, by whether as many attributes are right."""
    gap = np.array([b.score - a.score for a, b in zip(base, policy, strict=True)])
    same = np.array([a.correctness == b.correctness for a, b in zip(base, policy, strict=True)])
    rate = (np.sign(gap) + 1) / 2
    return (
        f"as much right: {same.mean():.1%} of pictures, the policy wins {rate[same].mean():.1%}; "
        f"elsewhere it wins {rate[~same].mean():.1%}"
    )


def main() -> None:
    """Read the command line, judge both folders, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of a finished demonstration")
    asked = parser.parse_args()
    sides = [verdicts(asked.demo / "test" / name) for name in ("base", "policy")]
    base, policy = ([side[cell] for cell in sorted(sides[0])] for side in sides)
    print(f"{attributes(base, policy)}\n\n{wins(base, policy)}")


if __name__ == "__main__":
    main()

"""The demonstration's table for three fixed seeds with four noises a prompt: Markdown on stdout, and the same as JSON.

Each seed draws its own pairs and trains its own policy, with exactly the stages of `diffalign demo`. An interrupted
table goes on with the same command.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffalign.demo import RECIPES, Sizes, run_demo
from diffalign.folders import write_atomically

SEEDS = (0, 1, 2)
NOISES = 4
WIN_RATES = ("win_rate", "proxy_win_rate")


def table(out: Path, backbone: str, sizes: Sizes, seeds: tuple[int, ...] = SEEDS) -> list[dict[str, Any]]:
    """One result per seed, each in its own folder below OUT; also written to OUT/table.json and OUT/table.md."""
    rows = [run_demo(out / f"seed-{seed}", seed, backbone, sizes) for seed in seeds]
    write_atomically(out / "table.json", (json.dumps(rows, indent=1) + "\n").encode())
    write_atomically(out / "table.md", markdown(rows).encode())
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table: shares in percent, differences in points, 95 % intervals in brackets."""
    head = (
        "| seed | all right: base | policy | difference | win rate, gold score | win rate, CLIP proxy | seconds |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    )
    return "\n".join([*head, *(_line(row) for row in rows)]) + "\n"


def _line(row: dict[str, Any]) -> str:
    delta = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * row[f"gold_delta{end}"] for end in ("", "_low", "_high")))
    rates = ["{:.1%} [{:.1%}, {:.1%}]".format(*(row[n + end] for end in ("", "_low", "_high"))) for n in WIN_RATES]
    cells = (
        row["seed"],
        f"{row['gold_base']:.1%}",
        f"{row['gold_policy']:.1%}",
        delta,
        *rates,
        f"{row['seconds']:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Read the command line, run the seeds one after another, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write, one demonstration a seed below it")
    parser.add_argument("--backbone", choices=tuple(RECIPES), default="sdxl")
    asked = parser.parse_args()
    print(markdown(table(asked.out, asked.backbone, replace(Sizes(), test_noises=NOISES))), end="")


if __name__ == "__main__":
    main()

"""Rows of `scripts/learns.py` as a table, and what counts as learnt."""

from collections.abc import Sequence
from typing import Any

TITLES = {"unet": "UNet, epsilon", "unet-v": "UNet, v", "dit": "DiT, flow"}


def learned(row: dict[str, Any]) -> bool:
    """Accuracy is exactly 1/2 before; after, its interval lies above (labels swapped: below). SFT: the error falls."""
    held = {"error": row["winner_error"][2] < 0, "below": row["accuracy"][2] < 0.5, "above": row["accuracy"][1] > 0.5}
    return row["before"] == 0.5 and held[row["target"]]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line a method, a column a ground: accuracy and interval; of SFT the change of error; - without a row."""
    grounds = [g for g in TITLES if any(row["ground"] == g for row in rows)]
    by = {(row["method"], row["ground"]): row for row in rows}
    lines = [f"| recipe | objective | {' | '.join(TITLES[g] for g in grounds)} |", "|" + " --- |" * (2 + len(grounds))]
    for method in sorted({row["method"] for row in rows}):
        found = [by.get((method, g)) for g in grounds]
        objective = next(row for row in found if row)["objective"]
        lines.append(f"| shapes_{method} | `{objective}` | {' | '.join(map(_cell, found))} |")
    good = sum(map(learned, rows))
    return "\n".join([*lines, "", f"{good} of {len(rows)} learn; {sum(r['seconds'] for r in rows):.0f} CPU seconds."])


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    mark = "" if learned(row) else " **no**"
    if row["target"] == "error":
        return "error {:+.2%} [{:+.2%}, {:+.2%}]".format(*row["winner_error"]) + mark
    return "{:.3f} [{:.3f}, {:.3f}]".format(*row["accuracy"]) + mark

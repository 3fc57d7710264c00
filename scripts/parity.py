"""Loss and gradient of objectives on the cases of a JSON file, in float64 on the CPU.

    python scripts/parity.py CASES.json

prints a JSON list of {"name", "loss", "grad"}: one loss per judgement, and the derivative of their sum by each policy
error. A case names an `objective` and its `params` (an objective or a term among them is written the same way), gives
`policy` and `reference` errors per image, and one judgement: `pairs` as [chosen, rejected, P], `desirable` per image,
or `ranking` scores or `advantages` with the image indices of the `groups`. Optional: `old` errors, inner products
`cross`, `score_gap` per pair.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign import objectives
from diffalign.objectives.base import Advantages, Errors, Judgement, Pairs, Ranking, Unpaired
from diffalign.records import InputError

Case = dict[str, Any]
KINDS = ("pairs", "desirable", "ranking", "advantages")


def evaluate(case: Case) -> Case:
    """{"name", "loss", "grad"} of one case; what is null in it is as if it were left out."""
    case = {key: value for key, value in case.items() if value is not None}
    objective = build(case["objective"], case.get("params", {}))
    judgement, order = read_judgement(case)
    policy = numbers(case["policy"]).requires_grad_()
    past = {name: numbers(case[name]) for name in ("reference", "old") if name in case}
    cross = {name: numbers(values) for name, values in case.get("cross", {}).items()}
    errors = Errors(policy, cross=cross, **past)
    if uneven := [name for name, values in past.items() if len(values) != len(policy)]:
        raise ValueError(f"{uneven[0]}: {len(past[uneven[0]])} errors; expected {len(policy)}, one per image")
    loss = objective(errors if order is None else errors.at(order), judgement).loss
    grad = torch.autograd.grad(loss.sum(), policy)[0] if loss.requires_grad else torch.zeros_like(policy)
    return {"name": case.get("name"), "loss": loss.tolist(), "grad": grad.tolist()}


def build(name: str, params: Case) -> Any:
    """The objective, or the term of one, of this name; a parameter that names another is built first."""
    if name not in objectives.__all__:
        raise ValueError(f"objective {name!r}: expected one of {', '.join(objectives.__all__)}")
    return getattr(objectives, name)(**{key: parameter(value) for key, value in params.items()})


def parameter(value: Any) -> Any:
    """A parameter as Python has it: a name and {"objective", "params"} are built, a list is a tuple."""
    if isinstance(value, dict):
        return build(value["objective"], value.get("params", {}))
    if isinstance(value, list):
        return tuple(value)
    return build(value, {}) if isinstance(value, str) else value


def read_judgement(case: Case) -> tuple[Judgement, Tensor | None]:
    """The judgement of a case; where it is of groups, also which image each of theirs is: they may leave some out."""
    data = case["judgement"]
    if len(found := [kind for kind in KINDS if kind in data]) != 1:
        raise ValueError(f"judgement of {', '.join(data) or 'nothing'}: expected exactly one of {', '.join(KINDS)}")
    images = len(case["policy"])
    if found == ["pairs"]:
        gap = numbers(case["score_gap"]) if "score_gap" in case else None
        chosen, rejected = (places([row[side] for row in data["pairs"]], images) for side in (0, 1))
        return Pairs(chosen, rejected, numbers([p for _, _, p in data["pairs"]]), score_gap=gap), None
    if found == ["desirable"]:
        if len(data["desirable"]) != images:
            raise ValueError(f"desirable: {len(data['desirable'])} numbers; expected {images}, one per image")
        return Unpaired(numbers(data["desirable"])), None
    order = places([i for group in data["groups"] for i in group], images)
    group = places([n for n, group in enumerate(data["groups"]) for _ in group], len(data["groups"]))
    if found == ["advantages"]:
        return Advantages(numbers(data["advantages"])[order], group), order
    if [len(scores) for scores in data["ranking"]] != [len(group) for group in data["groups"]]:
        raise ValueError("ranking: expected one list of scores per group, as long as the group")
    return Ranking(numbers([score for scores in data["ranking"] for score in scores]), group), order


def places(values: list[float], count: int) -> Tensor:
    """Indices; raises ValueError on one that is no whole number from 0 to count - 1."""
    if outside := [v for v in values if v not in range(count)]:
        raise ValueError(f"image {outside[0]}: expected a whole number from 0 to {count - 1}")
    return torch.tensor(values, dtype=torch.long)


def numbers(values: Any) -> Tensor:
    """float64; null is NaN, a number that is not known."""
    return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)


def main(path: Path) -> None:
    """Print the results; a case that cannot be evaluated is named in one line, and nothing is printed."""
    results, cases = [], json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise InputError(f"{path}: expected a JSON list of cases")
    for number, case in enumerate(cases):
        try:
            results.append(evaluate(case))
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            said = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            raise InputError(f"{path}: case {case.get('name', number)}: {said}") from None
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path, help="a JSON file of cases")
    try:
        main(parser.parse_args().cases)
    except (InputError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)

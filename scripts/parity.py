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
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign import objectives
from diffalign.objectives.base import Advantages, Errors, Judgement, Pairs, Ranking, Unpaired
from diffalign.records import InputError

Case = dict[str, Any]


def evaluate(case: Case) -> Case:
    """{"name", "loss", "grad"} of one case."""
    objective = build(case["objective"], case.get("params", {}))
    policy = numbers(case["policy"]).requires_grad_()
    reference, old = (None if case.get(n) is None else numbers(case[n]) for n in ("reference", "old"))
    cross = {name: numbers(values) for name, values in case.get("cross", {}).items()}
    errors, judgement = Errors(policy, reference, old, cross), read_judgement(case["judgement"], case.get("score_gap"))
    if "groups" in case["judgement"]:
        errors = errors.at(torch.tensor([i for images in case["judgement"]["groups"] for i in images]))
    loss = objective(errors, judgement).loss
    grad = torch.autograd.grad(loss.sum(), policy)[0] if loss.requires_grad else torch.zeros_like(policy)
    return {"name": case["name"], "loss": loss.tolist(), "grad": grad.tolist()}


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


def read_judgement(data: Case, score_gap: list[float] | None) -> Judgement:
    """The judgement a case holds; images of groups are numbered in the order in which the groups list them."""
    if "pairs" in data:
        chosen, rejected, p = zip(*data["pairs"], strict=True)
        gap = None if score_gap is None else numbers(score_gap)
        return Pairs(torch.tensor(chosen), torch.tensor(rejected), numbers(p), score_gap=gap)
    if "desirable" in data:
        return Unpaired(numbers(data["desirable"]))
    group = torch.tensor([n for n, images in enumerate(data["groups"]) for _ in images])
    if "ranking" in data:
        return Ranking(numbers([score for scores in data["ranking"] for score in scores]), group)
    return Advantages(numbers([data["advantages"][i] for images in data["groups"] for i in images]), group)


def numbers(values: Any) -> Tensor:
    """float64."""
    return torch.tensor(values, dtype=torch.float64)


def main(path: Path) -> None:
    """Print the results; a case that cannot be evaluated is named in one line, and nothing is printed."""
    results = []
    for number, case in enumerate(json.loads(path.read_text())):
        try:
            results.append(evaluate(case))
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            name = case.get("name", number) if isinstance(case, dict) else number
            raise InputError(f"{path}: case {name}: {type(error).__name__}: {str(error).splitlines()[0]}") from None
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path, help="a JSON file of cases")
    try:
        main(parser.parse_args().cases)
    except (InputError, OSError, json.JSONDecodeError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)

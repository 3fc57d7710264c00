"""Heads of linear layers without activations, which are affine: folded into one row and a bias, in float64."""

from collections.abc import Mapping
from pathlib import Path

import torch

from diffalign.records import InputError
from diffalign.scorers.checkpoints import refuse

# The five linear layers of LAION's predictors, and of those made after them; dropout stands between.
LAYERS = tuple(f"layers.{i}" for i in (0, 2, 4, 6, 7))


def folded(state: Mapping[str, torch.Tensor], names: tuple[str, ...], inputs: int, path: Path):
    """(weight (inputs,), bias ()) of the layers `names` one after another, float64, from a state with nothing else.

    Raises InputError listing names that are missing, not known, or of another shape.
    """
    wanted = [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    refuse(path, [k for k in wanted if k not in state], [k for k in state if k not in wanted], [])
    weight, bias = torch.eye(inputs, dtype=torch.float64), torch.zeros(inputs, dtype=torch.float64)
    for name in names:
        w, b = state[f"{name}.weight"].double(), state[f"{name}.bias"].double()
        if w.ndim != 2 or w.shape[1] != len(bias) or b.shape != w.shape[:1]:
            raise InputError(f"{path}: {name} has shape {list(w.shape)}, expected [*, {len(bias)}] and a bias")
        weight, bias = w @ weight, w @ bias + b
    if len(bias) != 1:
        raise InputError(f"{path}: gives {len(bias)} numbers, expected 1")
    return weight[0], bias[0]

"""Every public objective under the laws of the table in `laws`, and what single ones promise."""

import dataclasses
import importlib
import json
import pkgutil
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import laws
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import LAWS, Law
from torch import Tensor

from diffalign import objectives as do
from diffalign.objectives.base import Errors, Modifier, Objective, Outcome
from diffalign.objectives.pairwise import PairwiseObjective

every_law = pytest.mark.parametrize("law", LAWS, ids=laws.name)
PUBLIC = {n: getattr(do, n) for n in do.__all__}
OBJECTIVES = {n: c for n, c in PUBLIC.items() if isinstance(c, type) and issubclass(c, Objective)}
KINDS = {"pairs": "Pairs", "unpaired": "Unpaired", "ranking": "Ranking", "advantages": "Advantages"}


def drawn(test: Callable[..., None]) -> Callable[..., None]:
    """Try a law on a few random batches."""
    return given(seed=st.integers(0, 2**32 - 1))(settings(max_examples=8)(test))


def outcome(law: Law, x: laws.Batch, *, total: Tensor | None = None) -> tuple[Outcome, Errors]:
    """What the objective says of a batch, and the errors with gradients on all that a network could change."""
    errors = laws.errors(x)
    for value in (errors.policy, *errors.cross.values()):
        value.requires_grad_()
    return law.objective(errors, laws.judgement(x), total), errors


def gradient(loss: Tensor, inputs: list[Tensor]) -> list[np.ndarray]:
    if not loss.requires_grad:
        return [np.zeros(i.shape) for i in inputs]
    grads = torch.autograd.grad(loss.sum(), inputs, allow_unused=True)
    return [np.zeros(i.shape) if g is None else g.numpy() for g, i in zip(grads, inputs, strict=True)]


def close(a: Any, b: Any, tolerance: float) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and bool(np.all(np.abs(a - b) <= tolerance * np.maximum(1, np.abs(b).max(initial=0))))


def test_every_public_objective_is_under_the_laws() -> None:
    assert {type(law.objective).__name__ for law in LAWS} == set(OBJECTIVES)


def test_every_objective_of_the_folder_is_public_final_and_frozen() -> None:
    modules = [importlib.import_module(f"{do.__name__}.{m.name}") for m in pkgutil.iter_modules(do.__path__)]
    found = {c for m in modules for c in vars(m).values() if isinstance(c, type) and issubclass(c, Objective)}
    assert found - {Objective, Modifier, PairwiseObjective} == set(OBJECTIVES.values())
    for c in OBJECTIVES.values():
        assert c.__final__, c
        assert dataclasses.fields(c) is not None, c
        assert c.__dataclass_params__.frozen, c
        first = c.__doc__.split("\n")[0]
        assert len(first) > 10, c
        assert first.endswith("."), c


@every_law
@drawn
def test_formula(law: Law, seed: int) -> None:
    x = laws.draw(law.kind, seed)
    assert close(outcome(law, x)[0].loss.detach(), law.formula(law.objective, x, x), 1e-12)


@every_law
@drawn
def test_gradient_by_finite_differences(law: Law, seed: int) -> None:
    x = laws.draw(law.kind, seed)
    result, errors = outcome(law, x)
    names = sorted(errors.cross)
    got = gradient(result.loss, [errors.policy, *(errors.cross[n] for n in names)])

    def numeric(values: np.ndarray, at: Callable[[np.ndarray], laws.Batch]) -> np.ndarray:
        step, slope = 1e-7, np.zeros_like(values)
        for i in range(len(values)):
            h = step * (np.arange(len(values)) == i)
            up, down = (law.formula(law.objective, at(values + s * h), x).sum() for s in (1, -1))
            slope[i] = (up - down) / (2 * step)
        return slope

    expected = [numeric(x.policy, lambda v: replace(x, policy=v))]
    expected += [numeric(x.cross[n], lambda v, n=n: replace(x, cross=x.cross | {n: v})) for n in names]
    for a, b in zip(got, expected, strict=True):
        assert close(a, b, 1e-6)


@every_law
@drawn
def test_a_batch_is_the_sum_of_its_judgements(law: Law, seed: int) -> None:
    """Judged alone, every judgement has the loss it has in the batch; a coupled objective is told the batch's total."""
    x = laws.draw(law.kind, seed)
    whole, errors = outcome(law, x)
    total = law.objective.gather(errors, laws.judgement(x))
    assert not total.requires_grad
    assert law.objective.coupled == (len(total) > 0)
    parts = [laws.only(x, j) for j in range(laws.count(x))]
    losses = [outcome(law, p, total=total if law.objective.coupled else None)[0].loss.item() for p in parts]
    assert close(losses, whole.loss.detach(), 1e-12)
    if law.kind in ("pairs", "ranking", "advantages") or law.objective.coupled:
        sums = [law.objective.gather(laws.errors(p), laws.judgement(p)) for p in parts]
        assert close(sum(sums), total, 1e-12)


def shift_changes(law: Law, seed: int) -> bool:
    x = laws.draw(law.kind, seed)
    shifted = replace(x, policy=x.policy + 0.3, reference=x.reference + 0.3, old=x.old + 0.3)
    return not close(outcome(law, shifted)[0].loss.detach(), outcome(law, x)[0].loss.detach(), 1e-9)


def falls_as_a_better_image_gets_worse(law: Law, seed: int) -> bool:
    x = laws.only(laws.draw(law.kind, seed, hard=True), 0)
    result, errors = outcome(law, x)
    slope = gradient(result.loss, [errors.policy])[0]
    if x.values is not None:
        return (x.values * slope < 0).any()
    if x.desirable is not None:
        return ((2 * x.desirable - 1) * slope < 0).any()
    best, worst = (0, 1) if x.chosen is not None else (x.scores.argmax(), x.scores.argmin())
    return slope[best] < 0 or slope[worst] > 0


@pytest.mark.parametrize("law", [w for w in LAWS if w.shift], ids=laws.name)
@drawn
def test_shift_invariance(law: Law, seed: int) -> None:
    assert not shift_changes(law, seed)


@pytest.mark.parametrize("law", [w for w in LAWS if w.monotone], ids=laws.name)
@drawn
def test_monotonicity(law: Law, seed: int) -> None:
    assert not falls_as_a_better_image_gets_worse(law, seed)


def test_every_exemption_is_needed() -> None:
    for law in LAWS:
        assert law.shift or any(shift_changes(law, seed) for seed in range(20)), law
        assert law.monotone or any(falls_as_a_better_image_gets_worse(law, seed) for seed in range(200)), law


@pytest.mark.parametrize("law", [w for w in LAWS if w.kind == "pairs"], ids=laws.name)
@drawn
def test_a_pair_and_its_mirror_are_one(law: Law, seed: int) -> None:
    """(chosen, rejected, P) says what (rejected, chosen, 1 - P) says: the same loss, the same gradient."""
    x = laws.draw(law.kind, seed)
    mirror = replace(x, chosen=x.rejected, rejected=x.chosen, p=1 - x.p, gap=-x.gap)
    (a, a_errors), (b, b_errors) = outcome(law, x), outcome(law, mirror)
    assert close(a.loss.detach(), b.loss.detach(), 1e-12)
    assert close(gradient(a.loss, [a_errors.policy])[0], gradient(b.loss, [b_errors.policy])[0], 1e-9)


@every_law
def test_value_and_slope_at_the_reference(law: Law) -> None:
    result, errors = outcome(law, laws.standard(law.kind))
    got = (result.loss[0].item(), gradient(result.loss[:1], [errors.policy])[0][0])
    assert got == pytest.approx(law.start, rel=1e-12, abs=1e-15)


@every_law
@drawn
def test_no_gradient_into_reference_or_metrics(law: Law, seed: int) -> None:
    x = laws.draw(law.kind, seed)
    policy, reference, old = (torch.tensor(v, requires_grad=True) for v in (x.policy, x.reference, x.old))
    cross = {k: torch.tensor(v) for k, v in x.cross.items()}
    result = law.objective(Errors(policy, reference, old, cross), laws.judgement(x))
    result.loss.sum().backward()
    assert reference.grad is None
    assert old.grad is None
    assert not result.reward.requires_grad
    assert result.reward.shape == policy.shape
    assert result.loss.shape == (laws.count(x),)


@pytest.mark.parametrize("law", [w for w in LAWS if w.objective.reference_free], ids=laws.name)
@drawn
def test_the_reference_free_ignore_a_reference(law: Law, seed: int) -> None:
    x = laws.draw(law.kind, seed)
    (a, a_errors), (b, b_errors) = outcome(law, x), outcome(law, replace(x, reference=x.reference * np.nan))
    assert torch.equal(a.loss, b.loss)
    for g, h in zip(*(gradient(r.loss, [e.policy]) for r, e in ((a, a_errors), (b, b_errors))), strict=True):
        assert np.array_equal(g, h)
    none = dataclasses.replace(laws.errors(x), reference=None)
    assert torch.equal(law.objective(none, laws.judgement(x)).loss, a.loss.detach())


@every_law
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_extremes(law: Law, dtype: torch.dtype) -> None:
    """Errors from none at all to those of a network that has blown up, in all combinations over two images."""
    levels = [0.0, 1e-12, 1e-6, 1.0, 1e4]
    corners = [(a, b, c, d) for a in levels for b in levels for c in levels for d in levels]
    (policy, reference), n = np.array(corners).reshape(-1, 2).T, len(corners)
    geometric, place = np.sqrt(policy * reference), np.arange(2 * n)
    labels = {
        "pairs": {"chosen": place[::2], "rejected": place[1::2], "p": place[:n] % 3 / 2, "gap": place[:n] % 7 - 3.0},
        "unpaired": {"desirable": place % 3 / 2},
        "ranking": {"scores": place % 3 / 2, "group": place // 2},
        "advantages": {"values": place % 3 - 1.0, "group": place // 2},
    }[law.kind]
    cross = {"policy_reference": geometric, "policy_old": geometric}
    cross |= {"chosen_rejected": np.sqrt(policy[::2] * policy[1::2])} if law.kind == "pairs" else {}
    x = laws.Batch(policy, reference, reference, cross, **labels)
    for part in (x, *(laws.only(x, j) for j in range(0, n, 25))):  # a coupled objective sees one extreme at a time too
        errors = laws.errors(part, dtype)
        errors.policy.requires_grad_()
        result = law.objective(errors, laws.judgement(part))
        assert result.loss.dtype == result.reward.dtype == dtype
        assert result.loss.isfinite().all()
        assert result.reward.isfinite().all()
        if result.loss.requires_grad:
            result.loss.sum().backward()
            assert errors.policy.grad.isfinite().all()


@every_law
def test_repr_is_the_objective(law: Law) -> None:
    assert eval(repr(law.objective), PUBLIC) == law.objective


def to_json(o: Any) -> Any:
    """A dataclass as its class path and its fields."""
    if not dataclasses.is_dataclass(o):
        return list(map(to_json, o)) if isinstance(o, tuple) else o
    path = f"{type(o).__module__}:{type(o).__name__}"
    return {"class": path} | {f.name: to_json(getattr(o, f.name)) for f in fields(o)}


def of_json(data: Any) -> Any:
    if not isinstance(data, dict):
        return tuple(map(of_json, data)) if isinstance(data, list) else data
    module, name = data["class"].split(":")
    return getattr(importlib.import_module(module), name)(**{k: of_json(v) for k, v in data.items() if k != "class"})


@every_law
def test_json_round_trip(law: Law) -> None:
    assert of_json(json.loads(json.dumps(to_json(law.objective)))) == law.objective


def test_class_attributes_say_what_an_instance_reads() -> None:
    for law in LAWS:
        kind = law.objective.judgement.__name__
        assert kind in (KINDS[law.kind], "Judgement")
        assert set(law.objective.needs) <= {"policy_reference", "policy_old", "chosen_rejected"}

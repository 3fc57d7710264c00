"""The step: exact in chunks, waiting for nothing, silent before its last backward pass; what it says of bad numbers."""

import contextlib
import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
import worlds
from torch import Tensor

from diffalign import compiling, export, measuring, step
from diffalign import trainer as trainers
from diffalign.objectives import DPO, DSPO, KTO, PlackettLuce, Safeguarded
from diffalign.objectives.base import Advantages, Pairs, Ranking
from diffalign.records import InputError
from diffalign.run import AdamW, Full, LoRA, Run, Schedule
from diffalign.trainer import Trainer


@pytest.fixture(scope="module")
def run(models: dict[str, Path], pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(
        model=str(models["sdxl"]), objective=DPO(beta=2000.0), policy=LoRA(rank=2, alpha=4.0), data=str(pairs),
        out=str(tmp_path_factory.mktemp("step")), steps=2, batch=4, resolution=32, optimizer=AdamW(lr=3e-3),
        precision="float64",
    )  # fmt: skip


def states_of(run: Run) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    trainer = Trainer(run)
    told = [{k: float(v) for k, v in done.metrics.items()} for done in trainer]
    return told, {n: t.clone() for n, t in trainer.policy.state().items()}


# --- in chunks


LOSSES = [DPO(beta=2000.0), DSPO(beta=2000.0), Safeguarded(DPO(beta=2000.0)), PlackettLuce(), KTO()]


@pytest.mark.parametrize("objective", LOSSES, ids=lambda o: type(o).__name__)
def test_chunks_are_the_whole(run: Run, tmp_path: Path, objective: Any) -> None:
    """Of lists, of losses that couple the batch, of inner products of residuals: 3 does not divide the images."""
    data, out = run.data, run.out
    if objective.judgement is Ranking:
        data, out = str(worlds.ranked(tmp_path / "lists")), str(tmp_path / "run")
    elif isinstance(objective, KTO):
        data, out = str(worlds.single(tmp_path / "single")), str(tmp_path / "run")
    whole = dataclasses.replace(run, objective=objective, data=data, out=out)
    expected, told = states_of(whole), states_of(dataclasses.replace(whole, chunk=3))
    for a, b in zip(told[0], expected[0], strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-10)
    moved = 0.0
    for name, tensor in told[1].items():
        torch.testing.assert_close(tensor, expected[1][name], rtol=1e-6, atol=1e-9)
        moved += float(tensor.abs().sum()) if "lora_B" in name else 0.0
    assert moved > 0


def test_no_gradients_are_exchanged_before_the_last_backward_pass(run: Run) -> None:
    trainer = Trainer(dataclasses.replace(run, micro_batch=2))
    quiet, seen = [], []

    @contextlib.contextmanager
    def silence() -> Iterator[None]:
        quiet.append(True)
        yield
        quiet.pop()

    weight = next(iter(trainer.policy.parameters.values()))
    weight.register_hook(lambda gradient: seen.append(bool(quiet)))
    parts = trainer._parts(trainer._visits(0))
    share = step.Share(4.0, None, 1)
    for chunk, expected in ((0, [True, False]), (3, [True, True, True, False])):
        seen.clear()
        passes = dataclasses.replace(trainer.passes, run=dataclasses.replace(run, chunk=chunk))
        step.gradients(passes, parts, share, silence)
        assert seen == expected


# --- waiting for nothing


@pytest.fixture(scope="module")
def counters() -> ModuleType:
    place = Path(__file__).parent.parent / "scripts" / "bench_counters.py"
    spec = importlib.util.spec_from_file_location("bench_counters", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_counters"] = module
    spec.loader.exec_module(module)
    return module


# per pair: floating-point operations, GiB kept for the backward pass, bytes sent to the device
COSTS = {
    ("sdxl", Full()): (41.3e12, 13.0, 1.2e6), ("sdxl", LoRA(rank=64, alpha=64.0)): (30.0e12, 13.0, 1.2e6),
    ("sd15", Full()): (4.95e12, 1.8, 0.35e6), ("sd3", LoRA(rank=64, alpha=64.0)): (45.2e12, 7.5, 6.0e6),
    ("flux", LoRA(rank=64, alpha=64.0)): (345.8e12, 44.6, 7.5e6),
}  # fmt: skip


@pytest.mark.parametrize(("case", "most"), COSTS.items(), ids=lambda c: f"{c[0]}-{type(c[1]).__name__}")
def test_a_step_costs_what_its_gradient_costs(counters: ModuleType, case: tuple[str, Any], most: tuple) -> None:
    """On the meta device no number can be read, so a step that ends has waited for none."""
    made = counters.passes(counters.MODELS[case[0]], case[1], 1)
    found = counters.count(made, 1)
    assert found.flops <= most[0]
    assert found.kept <= most[1] * 2**30
    assert found.reference == 0
    assert found.sent <= most[2], "latents, noise and one prompt"
    assert made.policy._pasts == {}
    least = counters.count(made, 1, call=counters.bare(made, 1))
    assert found.flops == least.flops
    assert found.kernels <= least.kernels, "no more than a loop that is written by hand"


# family -> a tiny denoiser, and the shapes of what it is told and of its latents
SMALL = {
    "sdxl": (lambda: tiny.sdxl().unet, {"prompt_embeds": (7, 80), "pooled": (32,)}, (4, 8, 8)),
    "sd3": (lambda: tiny.sd3().transformer, {"prompt_embeds": (7, 64), "pooled": (64,)}, (4, 8, 8)),
}


@pytest.mark.parametrize("adaptation", [Full(), LoRA(rank=2, alpha=2.0)], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_the_loop_that_is_written_by_hand_learns_the_same(
    counters: ModuleType, family: str, adaptation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernels are counted against leaves nothing out: its gradients are the library's."""
    known = counters.MODELS[family]
    build, texts, latent = SMALL[family]
    model = dataclasses.replace(known, build=build, texts=texts, latent=latent)
    made = counters.passes(model, adaptation, 3, narrow=None, device=torch.device("cpu"))
    drawn = torch.Generator().manual_seed(0)
    for weight in made.policy.parameters.values():
        weight.data += 0.1 * torch.randn(weight.shape, generator=drawn)
    for name in ("x0", "rows"):
        monkeypatch.setattr(counters.Blank, name, _filled(getattr(counters.Blank, name)))
    counters.step_of(made, 3)
    masters = made.policy.masters
    ours = {n: p.grad for n, p in masters.items() if p.grad is not None}
    for weight in masters.values():
        weight.grad = None
    counters.bare(made, 3)()
    assert {n for n, p in masters.items() if p.grad is not None} == ours.keys()
    assert max(float(g.abs().max()) for g in ours.values()) > 1e-3
    for name, gradient in ours.items():
        apart = (masters[name].grad - gradient).norm()
        assert apart <= 1e-3 * gradient.norm() + 1e-6, name


def _filled(empty: Any) -> Any:
    """The same rows of numbers in the place of zeros."""

    def rows(self: Any, asked: Any) -> Any:
        found, drawn = empty(self, asked), torch.Generator().manual_seed(1)
        if isinstance(found, Tensor):
            return torch.randn(found.shape, generator=drawn)
        return {n: torch.randn(v.shape, generator=drawn) for n, v in found.items()}

    return rows


@pytest.mark.parametrize("looked", [False, True])
def test_a_bad_number_is_found_however_late_it_is_looked_at(
    run: Run, looked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are looked at together, at the latest when somebody checks; the first bad one is named."""
    monkeypatch.setattr(trainers, "UNSEEN", 2 if looked else 64)
    trainer = Trainer(dataclasses.replace(run, steps=6))
    learn, begun = step.learn, []

    def broken(passes: Any, batch: Any, *rest: Any) -> measuring.Told:
        told = learn(passes, batch, *rest)
        begun.append(batch)
        if len(begun) in (3, 5):
            told.errors.policy[2] = torch.nan
        return told

    monkeypatch.setattr(step, "learn", broken)
    for _ in trainer:
        pass
    visits = trainer._visits(2)
    image = [i for v in visits for i in v.group.images][2]
    with pytest.raises(InputError, match=f"step 3: the error of image {image} "):
        trainer.check()


def test_a_bad_gradient_is_told_with_its_groups(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(run)
    clip = trainer._clip
    monkeypatch.setattr(trainer, "_clip", lambda: clip() / (2 - trainer.step))  # of the second step infinite
    list(trainer)
    a, b, c, _ = (v.group.id for v in trainer._visits(1))
    with pytest.raises(InputError, match=rf"step 2: the gradient's norm \(groups {a}, {b}, {c} and 1 more\) is not"):
        trainer.check()


def test_a_step_that_is_not_logged_reads_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that came out of the network, or of anything it fed, are never brought to the host."""
    trainer = Trainer(dataclasses.replace(run, steps=3))
    steps = iter(trainer)
    next(steps)
    read, live = [], {"on": True}
    for name in ("item", "__bool__", "__float__", "__int__", "tolist", "cpu", "numpy", "nonzero"):
        original = getattr(Tensor, name)

        def note(self: Tensor, *args: Any, original: Any = original, name: str = name) -> Any:
            if live["on"] and (self.requires_grad or self.dtype.is_floating_point and self.data_ptr() in outputs):
                read.append(name)
            return original(self, *args)

        monkeypatch.setattr(Tensor, name, note)
    outputs: set[int] = set()
    learn = step.learn

    def remembered(*args: Any) -> measuring.Told:
        told = learn(*args)
        outputs.update(t.data_ptr() for t in (told.errors.policy, told.reward, told.loss))
        return told

    monkeypatch.setattr(step, "learn", remembered)
    done = next(steps)
    assert read == []
    assert "metrics" not in vars(done), "they are computed when they are asked for"
    outputs.add(done.metrics["loss"].data_ptr())
    float(done.metrics["loss"])
    assert read, "the counter counts"
    live["on"] = False


@pytest.mark.parametrize("kind", ["pairs", "ranking", "advantages"])
def test_sums_without_reading_are_the_sums(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    reward, policy, reference = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(3))
    group, values = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0.1, 0.9, 0.9, 2.0, -1.0, 0.0])
    if kind == "pairs":
        judgement = Pairs(torch.tensor([0, 2, 5]), torch.tensor([1, 3, 4]), torch.tensor([1.0, 0.5, 0.8]))
        expected = [(0, 1), (5, 4)]
    else:
        judgement = (Ranking if kind == "ranking" else Advantages)(values, group)
        expected = [(1, 0), (2, 0), (3, 4), (3, 5), (5, 4)]
    losses, weight = torch.tensor([0.5, 1.5, 3.0][: len(judgement)]), torch.tensor([1.0, 3.0, 0.0][: len(judgement)])
    told = measuring.Told(measuring.Errors(policy, reference), judgement, reward, losses, weight, 10.0)
    found = measuring.sums(told).tolist()
    margin = sum(float(reward[a] - reward[b]) for a, b in expected)
    right = sum(float(reward[a] > reward[b]) for a, b in expected)
    gaps = [sum(float((policy - reference)[p[i]]) for p in expected) for i in (0, 1)]
    assert found == pytest.approx([0.5, margin, right, *gaps, len(expected)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mean_squares_have_the_gradient_that_autograd_gives(dtype: torch.dtype) -> None:
    """Bit for bit, though in fewer kernels."""
    drawn = torch.Generator().manual_seed(0)
    residuals = torch.randn(5, 3, 7, 9, generator=drawn, dtype=dtype).requires_grad_()
    weight = torch.randn(5, generator=drawn, dtype=dtype)
    values = [measuring.square(residuals), residuals.square().flatten(1).mean(1)]
    assert torch.equal(*values)
    assert torch.equal(*(torch.autograd.grad((weight * v).sum(), residuals)[0] for v in values))


# --- what it says


def test_the_first_bad_number_sticks() -> None:
    none, norm = torch.full((2,), -1), torch.tensor(1.0)
    fine, broken = torch.zeros(3), torch.tensor([0.0, torch.nan, torch.inf])
    whole, half = measuring.Errors(fine, fine, fine), measuring.Errors(fine, broken)
    good, worse = (1, [whole, whole], norm), (2, [whole, half], norm)
    assert measuring.first_bad(none, [good]).tolist() == [-1, -1]
    bad = measuring.first_bad(none, [good, worse, (3, [half], norm)])
    assert bad.tolist() == [2, 4], "the second image of the second part"
    assert measuring.first_bad(bad, [(4, [half], norm)]).tolist() == [2, 4]
    assert measuring.first_bad(none, [(5, [whole], norm.log() / 0)]).tolist() == [5, 3], "the norm, after the images"


def test_the_learning_rate_that_is_told_is_the_one_that_was_used(run: Run) -> None:
    changed = dataclasses.replace(run, schedule=Schedule("cosine", warmup=1), steps=3, batch=2, micro_batch=1)
    trainer = Trainer(changed)
    used = [(done.learning_rate, trainer.optimizer.param_groups[0]["lr"]) for done in trainer]
    assert all(told == actual for told, actual in used)
    assert used[0][0] == used[1][0] == 3e-3
    assert used[2][0] == pytest.approx(1.5e-3)


def test_the_average_is_what_is_exported_and_goes_on(run: Run, tmp_path: Path) -> None:
    trainer = Trainer(dataclasses.replace(run, ema=0.75))
    parameters = [{n: p.detach().clone() for n, p in trainer.policy.masters.items()}]
    for _ in trainer:
        parameters.append({n: p.detach().clone() for n, p in trainer.policy.masters.items()})
    for name, first in parameters[0].items():
        mean = first
        for later in parameters[1:]:
            mean = 0.75 * mean + 0.25 * later[name]
        torch.testing.assert_close(trainer.policy._pasts["average"][name], mean)
    trainer.policy.export(tmp_path / "policy")
    plain = Trainer(dataclasses.replace(run, steps=1))
    plain.policy.restore(plain.policy._read(tmp_path / "policy"))
    for name, tensor in plain.policy.state().items():
        torch.testing.assert_close(tensor, trainer.policy._pasts["average"][name], rtol=1e-6, atol=1e-7)
    trainer.save(tmp_path / "checkpoint")
    again = Trainer(dataclasses.replace(run, ema=0.75))
    again.load(tmp_path / "checkpoint")
    for name, tensor in again.policy._pasts["average"].items():
        assert torch.equal(tensor, trainer.policy._pasts["average"][name])


# --- compiled


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_compiled_blocks_compute_the_same(models: dict[str, Path], family: str) -> None:
    from diffalign import backbones

    plain, made = (backbones.load(str(models[family])) for _ in range(2))
    told = export._probe(plain)
    names = [n for n, _ in made.denoiser.named_parameters()]
    assert compiling.compile_blocks(made.denoiser, "eager") > 0
    assert [n for n, _ in made.denoiser.named_parameters()] == names
    torch.testing.assert_close(export._output(made, told), export._output(plain, told), rtol=1e-5, atol=1e-5)

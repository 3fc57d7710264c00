"""Optimizers: what each remembers comes back, masters keep what narrow weights cannot say, no overflow skips a step."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffalign import optimizers
from diffalign.objectives import DPO
from diffalign.optimizers import Adafactor, AdamW, AdamW8bit, Optimizer, Prodigy
from diffalign.records import InputError
from diffalign.run import EMA, Full, LoRA, Run, Schedule
from diffalign.trainer import Trainer

KINDS: list[Optimizer] = [AdamW(lr=0.01), Adafactor(lr=0.01), AdamW8bit(lr=0.01), Prodigy()]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: type(k).__name__)


def weights() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (64, 80), "a.bias": (80,)}
    return {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}


def advance(optimizer: torch.optim.Optimizer, held: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for weight in held.values():
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


@every_kind
def test_what_is_remembered_comes_back(kind: Optimizer) -> None:
    for package, needed_by in optimizers.EXTRAS.items():
        if isinstance(kind, needed_by):
            pytest.importorskip(package)
    whole, first = weights(), weights()
    undisturbed, interrupted = optimizers.build(kind, whole), optimizers.build(kind, first)
    advance(undisturbed, whole, range(4))
    advance(interrupted, first, range(2))
    tensors, numbers = optimizers.state(interrupted, first)
    assert all(isinstance(v, Tensor) for v in tensors.values())
    again = {n: nn.Parameter(w.detach().clone()) for n, w in first.items()}
    resumed = optimizers.build(kind, again)
    optimizers.restore(resumed, again, {n: t.clone() for n, t in tensors.items()}, numbers)
    advance(resumed, again, range(2, 4))
    assert all(torch.equal(w, whole[n]) for n, w in again.items())
    assert not any(torch.equal(w, v) for w, v in zip(whole.values(), weights().values(), strict=True))


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"lr": float("nan")}, {"max_grad_norm": 0.0}, {"weight_decay": -1.0}, {"betas": (2.0, 0.9)}],
    ids=str,
)
def test_numbers_that_cannot_be_are_named(wrong: dict[str, float | tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} = .*: expected"):
        AdamW(**wrong)
    with pytest.raises(ValueError, match="warmup = -3: expected"):
        Schedule("linear", warmup=-3)


@pytest.mark.parametrize(("kind", "package"), [(AdamW8bit(), "bitsandbytes"), (Prodigy(), "prodigyopt")])
def test_an_extra_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, kind: Optimizer, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        InputError, match=rf"{package} cannot be imported .*pip install 'diffalign\[{package}\]'"
    ) as error:
        optimizers.check(kind)
    assert "\n" not in str(error.value)
    optimizers.check(AdamW())
    optimizers.check(Adafactor())


def test_gradients_of_parts_add_up_in_float32() -> None:
    """1 + 2^-9 is 1 in bfloat16, so eight such parts would get lost one by one."""
    narrow = {"w": nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))}
    wide = {"w": nn.Parameter(torch.zeros(3))}
    for part in (1.0, *[2.0**-9] * 8):
        narrow["w"].grad = torch.full((3,), part, dtype=torch.bfloat16)
        optimizers.collect(narrow, wide)
        assert narrow["w"].grad is None
    assert torch.equal(wide["w"].grad, torch.full((3,), 1 + 2.0**-6))


@pytest.fixture
def run(models: dict[str, Path], pairs: Path, tmp_path: Path) -> Run:
    return Run(
        str(models["sdxl"]), DPO(beta=10.0), policy=Full(), data=str(pairs), out=str(tmp_path / "run"),
        steps=3, batch=2, micro_batch=1, resolution=32, optimizer=AdamW(lr=1e-6, weight_decay=0.0),
    )  # fmt: skip


def test_masters_keep_what_narrow_weights_cannot_say(run: Run) -> None:
    trainer = Trainer(dataclasses.replace(run, precision="bfloat16", reference=EMA(decay=0.5)))
    policy = trainer.policy
    before = {n: t.clone() for n, t in policy.state().items()}
    assert {p.dtype for p in policy.denoiser.parameters()} == {torch.bfloat16}
    assert {t.dtype for t in policy.state().values()} == {torch.float32}
    assert trainer.backbone.pipe.vae.dtype == torch.float32
    first = next(iter(trainer))
    assert first.metrics["margin"] == 0, "both sides are rounded alike"
    assert first.metrics["loss"] == pytest.approx(0.6931472, abs=1e-6)
    for name, master in policy.masters.items():
        moved = (master - before[name]).abs().max()
        assert 0 < moved < 2e-6, name
        assert torch.equal(policy.parameters[name], master.bfloat16())
    assert sum(torch.equal(p, before[n].bfloat16()) for n, p in policy.parameters.items()) > 100, "most round alike"
    mean = {n.removeprefix("reference."): t for n, t in policy.moving().items()}
    name = "conv_in.weight"
    torch.testing.assert_close(mean[name], (before[name] + policy.masters[name].detach()) / 2, rtol=0, atol=1e-9)
    policy.export(Path(run.out) / "policy")
    assert {p.dtype for p in policy.denoiser.parameters()} == {torch.bfloat16}


def test_the_whole_network_is_exported_as_it_was_read_where_no_gradient_reaches(
    run: Run, models: dict[str, Path]
) -> None:
    """Though it computes in bfloat16; numbers that bfloat16 cannot say are put there first."""
    place, out = Path(run.out).parent / "model", Path(run.out) / "policy" / "transformer"
    shutil.copytree(models["qwen_image"], place)
    (file,) = (place / "transformer").glob("*.safetensors")
    before = load_file(file)
    save_file({n: t + 2.0**-20 for n, t in before.items()}, file, metadata={"format": "pt"})
    before = load_file(file)
    trainer = Trainer(dataclasses.replace(run, model=str(place), precision="bfloat16", steps=1))
    idle = set(trainer.policy.idle)
    assert len(idle) == 6
    assert not any(torch.equal(before[n], before[n].bfloat16().float()) for n in idle if n.endswith("weight"))
    list(trainer)
    trainer.export(out.parent)
    (written,) = out.glob("*.safetensors")
    after = load_file(written)
    assert after.keys() == before.keys()
    assert {n for n, t in after.items() if torch.equal(t, before[n])} >= idle
    assert {t.dtype for t in after.values()} == {torch.float32}
    assert {p.dtype for p in trainer.policy.denoiser.parameters()} == {torch.bfloat16}
    assert sum(not torch.equal(t, before[n]) for n, t in after.items()) > 20


@pytest.mark.parametrize(
    ("precision", "policy"), [("bfloat16", Full()), ("float16", Full()), ("bfloat16", LoRA(rank=2))], ids=str
)
def test_interrupted_is_nothing_in_narrow_numbers(run: Run, precision: str, policy: Full | LoRA) -> None:
    changed = dataclasses.replace(run, precision=precision, policy=policy, optimizer=AdamW(lr=1e-3))
    undisturbed, interrupted = Trainer(changed), Trainer(changed)
    list(undisturbed)
    next(iter(interrupted))
    interrupted.save(Path(run.out) / "checkpoint-1")
    resumed = Trainer(changed)
    resumed.load(Path(run.out) / "checkpoint-1")
    list(resumed)
    expected = undisturbed.policy.state()
    assert all(torch.equal(t, expected[n]) for n, t in resumed.policy.state().items())
    assert resumed.scale == undisturbed.scale


def test_a_step_that_overflows_is_computed_again(run: Run) -> None:
    """So no step is left out, and the gradient is the one of float32 up to rounding."""
    wanted = next(iter(Trainer(run))).metrics["gradient_norm"]
    trainer = Trainer(dataclasses.replace(run, precision="float16"))
    trainer.scale = optimizers.Scale(2.0**30)
    step = next(iter(trainer))
    assert step.index == 1
    assert 1 < trainer.scale.value < 2.0**30
    assert step.metrics["gradient_norm"] == pytest.approx(float(wanted), rel=0.05)
    assert optimizers.Scale(8.0, 2000).kept() == optimizers.Scale(16.0)
    assert optimizers.Scale(1.0).kept() == optimizers.Scale(1.0)


def test_gradients_are_widened_and_added_up_whatever_is_there_before() -> None:
    """Fresh ones are copied, others added, in float32; what has none, or is its own master, is left as it is."""
    generator = torch.Generator().manual_seed(0)
    narrow = {str(n): torch.nn.Parameter(torch.zeros(n + 1, dtype=torch.bfloat16)) for n in range(300)}
    wide = {n: torch.nn.Parameter(p.detach().float()) for n, p in narrow.items()}
    wide["7"] = narrow["7"]
    expected: dict[str, torch.Tensor] = {}
    for told in (range(0, 300, 2), range(0, 300, 3)):
        for n in map(str, told):
            narrow[n].grad = torch.randn(narrow[n].shape, generator=generator).bfloat16()
            expected[n] = expected.get(n, torch.zeros(1)) + narrow[n].grad.float()
        optimizers.collect(narrow, wide)
        assert all(p.grad is None for p in narrow.values())
    assert {n for n, p in wide.items() if p.grad is not None} == expected.keys()
    assert all(wide[n].grad.dtype == torch.float32 and torch.equal(wide[n].grad, e) for n, e in expected.items())
    with torch.no_grad():
        wide["0"].fill_(1 / 3)
    optimizers.publish(narrow, wide)
    assert narrow["0"].item() == torch.tensor(1 / 3).bfloat16().item()

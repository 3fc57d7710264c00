"""Weights in 8 and 4 bits: what is kept of them, that only inputs get gradients, and policies on top of them."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

from diffalign import activations, backbones, export, quantization, weights
from diffalign.objectives import DPO
from diffalign.policy import Policy
from diffalign.quantization import QuantizedLinear, pack, pairs, quantize, unpack
from diffalign.run import AdamW, Frozen, LoRA, Run
from diffalign.training import train

KINDS = ("float8", "nf4")
DISTINCT = [f for f in tiny.FAMILIES if f not in ("sd_v", "flux_schnell", "pixart_alpha")]
every_kind = pytest.mark.parametrize("kind", KINDS)


def dense(weight: Tensor, kind: str) -> Tensor:
    return unpack(*pack(weight, kind), pairs() if kind == "nf4" else None, torch.float32)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_levels_are_those_that_were_published() -> None:
    """QLoRA, appendix E."""
    below = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0]
    above = [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
    torch.testing.assert_close(quantization.levels(), torch.tensor(below + above), rtol=0, atol=1e-6)


@every_kind
@pytest.mark.parametrize("columns", [16, 96, 128])
def test_packing_what_was_unpacked_changes_nothing(kind: str, columns: int) -> None:
    weight = normal(40, columns)
    once = dense(weight, kind)
    assert torch.equal(dense(once, kind), once)
    assert torch.equal(dense(torch.zeros(4, columns), kind), torch.zeros(4, columns))


def test_no_number_is_off_by_more_than_half_a_level() -> None:
    weight = normal(64, 256)
    eight = (dense(weight, "float8") - weight).abs()
    assert (eight <= weight.abs() / 16 + weight.abs().amax(1, keepdim=True) / 448 / 1024).all(), (
        "3 bits behind the point"
    )
    top = weight.unflatten(1, (-1, 64)).abs().amax(2, keepdim=True)
    half = quantization.levels().diff().max() / 2
    four = (dense(weight, "nf4") - weight).unflatten(1, (-1, 64)).abs()
    assert (four <= half * top * 1.000001).all()
    assert four.square().mean() < 0.01 < 0.001 + weight.var() / 64, "one part in ten of its spread"


@pytest.mark.parametrize(("kind", "size"), [("float8", 1 + 4 / 256), ("nf4", 0.5 + 4 / 64)])
def test_bytes_of_a_weight(kind: str, size: float) -> None:
    packed, scale = pack(normal(64, 256), kind)
    assert packed.nbytes + scale.nbytes == 64 * 256 * size


@every_kind
def test_a_layer_is_the_linear_layer_of_its_rounded_weight(kind: str) -> None:
    linear = nn.Linear(96, 40).requires_grad_(False)
    layer = QuantizedLinear(linear, kind)
    rounded = nn.Linear(96, 40).requires_grad_(False)
    rounded.weight.copy_(layer.dense(torch.float32))
    rounded.bias.copy_(linear.bias)
    grads = []
    for one in (layer, rounded):
        x = normal(3, 7, 96).requires_grad_()
        y = one(x)
        y.square().sum().backward()
        grads.append((y.detach(), x.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not list(layer.buffers())[0].requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(normal(3, 96)).dtype == torch.bfloat16


def test_no_wide_weight_is_kept_for_the_backward_pass() -> None:
    layer = QuantizedLinear(nn.Linear(256, 256, bias=False).requires_grad_(False), "nf4")
    x = normal(2, 256).requires_grad_()
    assert activations.bytes_kept(lambda: layer(x), layer) == 0


def test_what_lies_outside_the_blocks_and_what_learns_is_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Linear(32, 32), nn.Linear(32, 32)
            self.blocks = nn.ModuleList(
                nn.ModuleDict({"a": nn.Linear(32, 32), "odd": nn.Linear(12, 32), "b": nn.Sequential(nn.Linear(32, 32))})
                for _ in range(2)
            )

    for kind, count in (("float8", 6), ("nf4", 4), ("none", 0)):
        net = Net().requires_grad_(False)
        net.blocks[0]["a"].weight.requires_grad_(True)
        assert quantize(net, kind, torch.device("cpu")) == max(0, count - 1)
        kept = {n for n, m in net.named_modules() if isinstance(m, nn.Linear)}
        assert {"embed", "out", "blocks.0.a"} <= kept


@pytest.mark.parametrize("family", DISTINCT)
def test_policies_of_every_family_stand_on_it(models: dict[str, Path], family: str) -> None:
    made = Policy(backbones.load(str(models[family])), LoRA(rank=2, quantization="float8"), 0, reference=Frozen())
    assert any(isinstance(m, QuantizedLinear) for m in made.denoiser.modules())
    told = export._probe(made.backbone)
    plain = export._output(backbones.load(str(models[family])), told)
    now = export._output(made.backbone, told)
    assert 0 < (now - plain).norm() < 0.3 * plain.norm(), "rounded, and the same network"
    with made.reference(made.denoiser):
        assert torch.equal(export._output(made.backbone, told), now)
    made.backbone.predict(made.denoiser, *told).square().mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in made.parameters.values())


def test_a_run_on_four_bits_writes_a_plain_adapter(models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    run = Run(
        str(models["flux"]), DPO(beta=100.0), policy=LoRA(rank=2, quantization="nf4"), data=str(pairs),
        out=str(tmp_path / "run"), steps=2, batch=2, resolution=32, optimizer=AdamW(lr=1e-2), log_every=1,
        precision="bfloat16",
    )  # fmt: skip
    train(run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert lines[1]["margin"] != 0
    backbone = backbones.load(str(models["flux"]))
    backbone.load_lora(weights.adapter_file(tmp_path / "run"))

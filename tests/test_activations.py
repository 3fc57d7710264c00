"""What a forward pass keeps changes its memory and its time, never its gradients; which kernel computes attention."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffalign import activations, attention, backbones, export
from diffalign.backbones.base import Backbone
from diffalign.objectives import DPO
from diffalign.policy import Policy
from diffalign.records import InputError
from diffalign.run import EMA, AdamW, Frozen, LoRA, Run
from diffalign.training import train

DISTINCT = [f for f in tiny.FAMILIES if f not in ("sd_v", "flux_schnell", "pixart_alpha")]


class Operators(TorchDispatchMode):
    """Counts operators, forward and again, by what they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "backward" not in name:
            for kind in ("convolution", "attention", "addmm", "mm"):
                self.seen[kind] += kind in name
        return func(*args, **(kwargs or {}))


def policy(folder: Path, lora: LoRA | None = None, reference: Frozen | EMA | None = None) -> Policy:
    return Policy(backbones.load(str(folder)), lora or LoRA(rank=2, alpha=3.0), 0, reference=reference)


def gradients(made: Policy, told: export.Told) -> tuple[dict[str, Tensor], Counter[str]]:
    for parameter in made.parameters.values():
        parameter.grad = None
    with Operators() as operators:
        made.backbone.predict(made.denoiser, *told).square().mean().backward()
    return {name: p.grad for name, p in made.parameters.items()}, operators.seen


@pytest.mark.parametrize("family", DISTINCT)
def test_gradients_are_the_same_to_the_last_bit(models: dict[str, Path], family: str) -> None:
    made = policy(models[family])
    told = export._probe(made.backbone)
    found, seen = {}, {}
    for choice in ("off", "selective", "full"):
        activations.keep(made.denoiser, choice, random=False)
        found[choice], seen[choice] = gradients(made, told)
    assert all(g is not None for g in found["off"].values()), "what no gradient reaches is not adapted"
    for choice in ("selective", "full"):
        assert all(torch.equal(g, found[choice][n]) for n, g in found["off"].items()), choice
    off, selective, full = seen["off"], seen["selective"], seen["full"]
    assert (selective["convolution"], selective["attention"]) == (off["convolution"], off["attention"])
    assert full["attention"] == 2 * off["attention"] > 0
    assert selective["mm"] == full["mm"] > off["mm"]


def test_memory_is_counted_by_images_and_checkpointing_saves_it(models: dict[str, Path]) -> None:
    made = policy(models["sd3"])
    x, t, told = export._probe(made.backbone)

    def kept(images: int) -> int:
        rows = {name: value.repeat(images, *[1] * (value.ndim - 1)) for name, value in told.items()}
        call = lambda: made.backbone.predict(made.denoiser, x.repeat(images, 1, 1, 1), t.repeat(images), rows)  # noqa: E731
        return activations.bytes_kept(call, made.denoiser)

    once, twice, thrice = kept(1), kept(2), kept(3)
    assert once > x.nbytes
    assert thrice - twice == pytest.approx(twice - once, rel=0.01)
    activations.keep(made.denoiser, "full", random=False)
    assert kept(1) < 0.5 * once
    with torch.no_grad():
        assert kept(1) == 0


def test_the_cheapest_setting_that_fits_is_chosen() -> None:
    assert activations.choose(80, 100) == "off"
    assert activations.choose(81, 100) == "selective"
    assert activations.choose(420, 100) == "selective"
    assert activations.choose(500, 100) == "full"
    assert activations.choose(10**9, 100) == "full"


def run(model: Path, pairs: Path, out: Path, **changes: Any) -> Run:
    settings = {"policy": LoRA(rank=2, alpha=2.0), "steps": 2, "batch": 2, "resolution": 32} | changes
    optimizer = AdamW(lr=1e-3)
    return Run(str(model), DPO(beta=10.0), data=str(pairs), out=str(out), optimizer=optimizer, log_every=1, **settings)


def weights_of(out: Path) -> bytes:
    return (out / "policy" / "pytorch_lora_weights.safetensors").read_bytes()


def test_a_run_ends_in_the_same_bytes(models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    for choice in ("off", "selective", "full"):
        train(run(models["sd3"], pairs, tmp_path / choice, gradient_checkpointing=choice))
    assert weights_of(tmp_path / "off") == weights_of(tmp_path / "selective") == weights_of(tmp_path / "full")
    train(run(models["sd3"], pairs, tmp_path / "off", gradient_checkpointing="full"))  # is no other run


# --- dropout


def test_dropout_is_in_the_policys_own_pass_only(models: dict[str, Path]) -> None:
    made = policy(models["sd"], LoRA(rank=2, alpha=3.0, dropout=0.5), EMA())
    for name, parameter in made.parameters.items():
        if "lora_B" in name:
            parameter.data += 0.3
    made.follow("reference", 1)
    told = export._probe(made.backbone)

    def output(backbone: Backbone) -> Tensor:
        return export._output(backbone, told)

    plain = output(made.backbone)
    with made.learning("group", 0):
        dropped = output(made.backbone)
    with made.past("reference", made.denoiser):
        first = output(made.backbone)
    with made.past("reference", made.denoiser):
        assert torch.equal(output(made.backbone), first), "a reference does not draw"
    assert not torch.equal(dropped, plain)
    with made.learning("group", 0):
        assert torch.equal(output(made.backbone), dropped), "the draw is named"
    with made.learning("group", 1):
        assert not torch.equal(output(made.backbone), dropped)
    state = torch.random.get_rng_state()
    with made.learning("group", 1):
        output(made.backbone)
    assert torch.equal(torch.random.get_rng_state(), state), "nobody else's draws move"


def test_dropout_is_drawn_again_alike_by_the_backward_pass(
    models: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    dropping = LoRA(rank=2, alpha=2.0, dropout=0.3)
    for choice in ("off", "full"):
        train(run(models["sd"], pairs, tmp_path / choice, gradient_checkpointing=choice, policy=dropping))
    assert weights_of(tmp_path / "off") == weights_of(tmp_path / "full")
    train(run(models["sd"], pairs, tmp_path / "none"))
    assert weights_of(tmp_path / "off") != weights_of(tmp_path / "none")
    lines = (tmp_path / "off" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["loss"] == pytest.approx(0.6931472, abs=1e-6), "B = 0: nothing to drop yet"
    with pytest.raises(ValueError, match="dropout = 1"):
        LoRA(dropout=1.0)


# --- attention


@pytest.mark.parametrize("family", DISTINCT)
def test_every_denoiser_asks_torch_for_its_attention(models: dict[str, Path], family: str) -> None:
    """So that one setting reaches them all, which diffusers' own does not."""
    backbone = backbones.load(str(models[family]))
    told = export._probe(backbone)
    assert sum(attention.kernels(lambda: export._output(backbone, told)).values()) > 0
    attention.verify("flash", lambda: export._output(backbone, told))
    with pytest.raises(InputError, match="attention = cudnn: did not take effect.*flash_attention_for_cpu"):
        attention.verify("cudnn", lambda: export._output(backbone, told))


def test_a_run_refuses_kernels_that_are_not_there(models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="attention = cudnn: did not take effect"):
        train(run(models["sdxl"], pairs, tmp_path / "a", attention="cudnn"))
    with pytest.raises(InputError, match="attention = xformers: .*; install an xformers") as error:
        train(run(models["sdxl"], pairs, tmp_path / "b", attention="xformers"))
    assert "\n" not in str(error.value)


def test_a_run_by_a_kernel_says_so(models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    train(run(models["sdxl"], pairs, tmp_path / "flash", attention="flash"))
    train(run(models["sdxl"], pairs, tmp_path / "auto"))
    assert json.loads((tmp_path / "flash" / "run.json").read_text())["run"]["attention"] == "flash"
    assert json.loads((tmp_path / "auto" / "run.json").read_text())["run"]["attention"] == "sdpa"

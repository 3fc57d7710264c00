"""Adapters as factors: read off a denoiser, fused, removed, joined; a run that starts from one."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from diffalign import adapters, backbones, export, weights
from diffalign.backbones.base import Backbone
from diffalign.objectives import DPO
from diffalign.policy import Policy
from diffalign.records import InputError
from diffalign.run import AdamW, Frozen, Full, LoRA, Run
from diffalign.streams import normal
from diffalign.training import train


def policy(folder: Path, lora: LoRA | Full | None = None, *, init_lora: str = "", moved: bool = True) -> Policy:
    """A policy on a tiny model; `moved` away from its base, differently for each rank."""
    made = Policy(
        backbones.load(str(folder)), lora or LoRA(rank=2, alpha=3.0), 0, reference=Frozen(), init_lora=init_lora
    )
    for name, parameter in made.parameters.items():
        if moved and "lora_B" in name:
            drawn = normal("noise", 0, name, parameter.shape[1], shape=tuple(parameter.shape))
            parameter.data = torch.from_numpy(drawn) * 0.3
    return made


def output(backbone: Backbone) -> Tensor:
    return export._output(backbone, export._probe(backbone))


@pytest.mark.parametrize("family", ["sd", "sd3", "pixart"])
def test_fused_is_the_same_function_and_removed_is_the_base(models: dict[str, Path], family: str) -> None:
    made = policy(models[family])
    denoiser, plain = made.denoiser, output(backbones.load(str(models[family])))
    wanted, adapter = output(made.backbone), adapters.of(denoiser)
    assert {f.rank for f in adapter.values()} == {2}
    assert {f.alpha for f in adapter.values()} == {3.0}
    names = set(backbones.load(str(models[family])).denoiser.state_dict())
    adapters.remove(denoiser)
    assert set(denoiser.state_dict()) == names
    assert torch.equal(output(made.backbone), plain)
    adapters.fuse(denoiser, adapter)
    torch.testing.assert_close(output(made.backbone), wanted, rtol=0, atol=1e-5)


def test_a_run_that_starts_from_an_adapter_has_it_in_the_reference(models: dict[str, Path], tmp_path: Path) -> None:
    first = policy(models["sd"])
    first.export(tmp_path / "first")
    wanted = output(first.backbone)
    made = policy(models["sd"], LoRA(rank=3, alpha=1.0), init_lora=str(tmp_path / "first"), moved=False)
    torch.testing.assert_close(output(made.backbone), wanted, rtol=0, atol=1e-5)
    with made.past("reference", made.denoiser):
        assert torch.equal(output(made.backbone), output(made.backbone))
        reference = output(made.backbone)
    assert torch.equal(reference, output(made.backbone)), "at step 0 policy and reference are one"


@pytest.mark.parametrize("adaptation", [LoRA(rank=3, alpha=1.0), Full()], ids=["lora", "full"])
def test_what_is_exported_holds_the_first_adapter_too(
    models: dict[str, Path], tmp_path: Path, adaptation: LoRA | Full
) -> None:
    policy(models["sd"]).export(tmp_path / "first")
    made = policy(models["sd"], adaptation, init_lora=str(tmp_path / "first"))
    wanted = output(made.backbone)
    made.export(tmp_path / "both")
    again = backbones.load(str(models["sd"]))
    if isinstance(adaptation, Full):
        export._load_full(again, list((tmp_path / "both" / "unet").glob("*.safetensors")))
    else:
        again.load_lora(weights.adapter_file(tmp_path / "both"))
        assert {f.rank for f in adapters.of(again.denoiser).values()} == {5}
    torch.testing.assert_close(output(again), wanted, rtol=0, atol=1e-5)


def test_first_adapters_that_do_not_fit_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    policy(models["sd3"]).export(tmp_path / "sd3")
    with pytest.raises(InputError, match="of another family"):
        policy(models["sd"], init_lora=str(tmp_path / "sd3"))
    file = tmp_path / "te.safetensors"
    safetensors.torch.save_file({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="adapts a text encoder too"):
        policy(models["sd"], init_lora=str(file))


def test_a_run_from_a_first_adapter_trains_and_knows_it_again(
    models: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    policy(models["sdxl"]).export(tmp_path / "first")
    run = Run(
        str(models["sdxl"]),
        DPO(beta=10.0),
        init_lora=str(tmp_path / "first"),
        policy=LoRA(rank=1, alpha=1.0),
        data=str(pairs),
        out=str(tmp_path / "run"),
        steps=2,
        batch=2,
        resolution=32,
        optimizer=AdamW(lr=1e-3),
        log_every=1,
    )
    train(run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.6931472, abs=1e-6), "the first step's margin is exactly 0"
    policy(models["sdxl"], LoRA(rank=2, alpha=1.0)).export(tmp_path / "first")
    with pytest.raises(InputError, match="holds another run"):
        train(run)


def test_adapters_that_are_more_than_two_factors_are_refused(models: dict[str, Path]) -> None:
    made = policy(models["sd"])
    layer = next(m for n, m in made.denoiser.named_modules() if n.endswith("attn1.to_q"))
    layer.lora_magnitude_vector["default"] = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match="expected one plain LoRA"):
        adapters.of(made.denoiser)

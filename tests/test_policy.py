"""The policy over all families: the reference at the start, its base at rest, and exported as what it was."""

import dataclasses
from pathlib import Path

import pytest
import safetensors
import tiny
import torch
from torch import Tensor

from diffalign import backbones
from diffalign.backbones.base import Backbone, errors, residuals
from diffalign.policy import Policy
from diffalign.records import InputError
from diffalign.run import Adaptation, Frozen, Full, LoRA

SIZE = 32
ADAPTATIONS: list[Adaptation] = [LoRA(rank=2, alpha=6.0), Full()]
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
every_adaptation = pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=lambda a: type(a).__name__)
PIPELINES_WITHOUT_A_LOADER = ("pixart", "pixart_alpha")


class Case:
    """A backbone with a noisy batch of two images."""

    def __init__(self, folder: Path) -> None:
        self.backbone: Backbone = backbones.load(str(folder))
        torch.manual_seed(1)
        shape = (2, *self.backbone.latent_shape(SIZE, SIZE))
        t = self.backbone.process.time(torch.tensor([0.3, 0.7], dtype=torch.float64))
        self.noised = self.backbone.process.noise(torch.randn(shape), torch.randn(shape), t)
        known = self.backbone.encode_negative() | self.backbone.size_conditioning([(SIZE, SIZE)], (SIZE, SIZE))
        self.known = {name: value.expand(2, *value.shape[1:]).clone() for name, value in known.items()}

    def say(self, backbone: Backbone | None = None) -> Tensor:
        backbone = backbone or self.backbone
        with torch.no_grad():
            return residuals(backbone, backbone.denoiser, self.noised, self.known)

    def margins(self, policy: Policy, *, narrow: bool = False) -> Tensor:
        """Policy's less reference's error per image, as a step has them: the policy's pass alone keeps a graph."""
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            now = errors(self.backbone, policy.denoiser, self.noised, self.known)
            with policy.reference(policy.denoiser) as denoiser:
                return now - errors(self.backbone, denoiser, self.noised, self.known)

    def widen(self) -> None:
        """Everything in float64."""
        self.backbone.denoiser.double()
        self.noised = dataclasses.replace(self.noised, x_t=self.noised.x_t.double(), target=self.noised.target.double())
        self.known = {n: v.double() if v.is_floating_point() else v for n, v in self.known.items()}

    def past(self, policy: Policy) -> Tensor:
        with policy.reference(policy.denoiser) as denoiser:
            return residuals(self.backbone, denoiser, self.noised, self.known)


def disturb(policy: Policy, by: float = 0.05) -> None:
    """Move every trainable number, as training would."""
    generator = torch.Generator().manual_seed(5)
    for parameter in policy.parameters.values():
        parameter.data += by * torch.randn(parameter.shape, generator=generator).to(parameter)


@every_family
@every_adaptation
def test_policy_is_reference_at_the_start_and_reference_never_moves(
    models: dict[str, Path], family: str, adaptation: Adaptation
) -> None:
    case = Case(models[family])
    loaded = case.say()
    policy = Policy(case.backbone, adaptation, 0, reference=Frozen())
    start = {name: p.detach().clone() for name, p in policy.parameters.items()}
    base = case.say()
    # torch folds some products otherwise where a weight can be trained (Sana's), which costs the last bit
    torch.testing.assert_close(base, loaded, rtol=0, atol=1e-6 if isinstance(adaptation, Full) else 0)
    now = errors(case.backbone, policy.denoiser, case.noised, case.known)
    with policy.reference(policy.denoiser) as denoiser:
        assert torch.equal(now.detach(), errors(case.backbone, denoiser, case.noised, case.known)), "margin exactly 0"
    now.sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in policy.parameters.values())
    assert torch.equal(case.margins(policy, narrow=True), torch.zeros(2)), "in bfloat16 too"
    disturb(policy)
    assert (case.say() - base).abs().max() > 1e-4
    assert torch.equal(case.past(policy), base), "adapters off, or a frozen copy, is the network that was loaded"
    assert not case.past(policy).requires_grad
    if isinstance(adaptation, LoRA):
        assert case.margins(policy, narrow=True).abs().max() > 0
        policy.restore(start)
        case.widen()
        assert torch.equal(case.margins(policy), torch.zeros(2, dtype=torch.float64)), "and in float64"


@every_family
def test_exported_adapters_are_the_policy_for_diffusers(models: dict[str, Path], family: str, tmp_path: Path) -> None:
    """alpha is not the rank, so a file without its metadata would draw another picture."""
    case = Case(models[family])
    policy = Policy(case.backbone, LoRA(rank=2, alpha=6.0), 0, reference=None)
    disturb(policy)
    policy.export(tmp_path / "policy")
    assert [p.name for p in tmp_path.iterdir()] == ["policy"], "nothing beside it"
    file = tmp_path / "policy" / "pytorch_lora_weights.safetensors"
    again = backbones.load(str(models[family]))
    again.load_lora(file)
    torch.testing.assert_close(case.say(again), case.say(), rtol=1e-5, atol=1e-5)
    if family in PIPELINES_WITHOUT_A_LOADER:
        return
    elsewhere = backbones.load(str(models[family]))
    elsewhere.pipe.load_lora_weights(str(tmp_path / "policy"))
    torch.testing.assert_close(case.say(elsewhere), case.say(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_exported_weights_are_the_policy_for_diffusers(models: dict[str, Path], family: str, tmp_path: Path) -> None:
    case = Case(models[family])
    policy = Policy(case.backbone, Full(), 0, reference=None)
    disturb(policy)
    policy.export(tmp_path / "policy")
    again = type(policy.denoiser).from_pretrained(tmp_path / "policy" / case.backbone.part, use_safetensors=True)
    expected = policy.denoiser.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in again.state_dict().items())


def test_adapters_start_at_zero_from_named_numbers(models: dict[str, Path]) -> None:
    def parameters(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed + 100)
        return Policy(Case(models["sdxl"]).backbone, LoRA(rank=2), seed, reference=None).state()

    first, second = parameters(0), parameters(1)
    torch.manual_seed(7)
    assert all(torch.equal(v, first[k]) for k, v in parameters(0).items()), "no global generator decides them"
    for name, value in first.items():
        if "lora_B" in name:
            assert not value.any()
        else:
            assert value.abs().max() <= value[0].numel() ** -0.5
            assert value.std() == pytest.approx((3 * value[0].numel()) ** -0.5, rel=0.5)
            assert not torch.equal(value, second[name])
    assert len({v.flatten()[0].item() for n, v in first.items() if "lora_A" in n}) > 1


@every_adaptation
def test_only_what_is_adapted_can_be_trained(models: dict[str, Path], adaptation: Adaptation) -> None:
    case = Case(models["sdxl"])
    policy = Policy(case.backbone, adaptation, 0, reference=None)
    names = {n for n, p in policy.denoiser.named_parameters() if p.requires_grad}
    assert names == set(policy.parameters)
    assert names == {n for n, _ in policy.denoiser.named_parameters() if isinstance(adaptation, Full) or "lora_" in n}
    assert all(p.dtype == torch.float32 for p in policy.parameters.values())


def test_asking_for_a_reference_that_was_not_made_is_refused(models: dict[str, Path]) -> None:
    policy = Policy(Case(models["sdxl"]).backbone, Full(), 0, reference=None)
    with pytest.raises(InputError, match="the reference policy was asked for, but the objective compares with none"):
        policy.reference(policy.denoiser).__enter__()


def test_targets_that_are_not_there_are_refused(models: dict[str, Path]) -> None:
    backbone = Case(models["sdxl"]).backbone
    with pytest.raises(InputError, match="LoRA targets .*nothing"):
        Policy(backbone, LoRA(targets=("nothing",)), 0, reference=None)


def test_restoring_what_does_not_fit_is_refused_and_changes_nothing(models: dict[str, Path]) -> None:
    policy = Policy(Case(models["sdxl"]).backbone, LoRA(rank=2), 0, reference=None)
    state = {n: t.clone() + 1 for n, t in policy.state().items()}
    name = sorted(state)[-1]
    before = {n: t.clone() for n, t in policy.state().items()}
    for wrong in (
        {n: t for n, t in state.items() if n != name},
        {**state, "foreign": torch.zeros(1)},
        {**state, name: torch.zeros(1)},
    ):
        with pytest.raises(InputError, match=r"checkpoint: tensor \S+ does not fit this policy"):
            policy.restore(wrong)
        assert all(torch.equal(t, before[n]) for n, t in policy.state().items())
    policy.restore(state)
    assert all(torch.equal(t, state[n]) for n, t in policy.state().items())


def test_adapter_files_say_their_alpha(models: dict[str, Path], tmp_path: Path) -> None:
    policy = Policy(Case(models["sdxl"]).backbone, LoRA(rank=2, alpha=6.0), 0, reference=None)
    policy.export(tmp_path / "policy")
    with safetensors.safe_open(tmp_path / "policy" / "pytorch_lora_weights.safetensors", "pt") as file:
        assert '"unet.lora_alpha": 6.0' in file.metadata()["lora_adapter_metadata"]
        assert all(name.startswith("unet.") for name in file.keys())  # noqa: SIM118
